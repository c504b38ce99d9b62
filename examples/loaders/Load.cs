// Runs a model that memoptc wrote in onnxruntime for .NET, by its session contract, and prints what comes out.
//
//     dotnet new console -o load && cp Load.cs load/Program.cs && cd load && dotnet add package Microsoft.ML.OnnxRuntime
//     dotnet run -- MODEL.onnx [INPUT=FILE.bin ...]
//
// Inputs are raw bytes or zeros, symbolic extents are 1, outputs are printed where they are float32 or int64. What .NET
// has no setting for (the order of nodes, the sized arena) is left out; the numbers are the same without it.
using System;
using System.Collections.Generic;
using System.IO;
using System.Linq;
using System.Text.Json;
using Microsoft.ML.OnnxRuntime;
using Microsoft.ML.OnnxRuntime.Tensors;

static SessionOptions OptionsOf(string model)
{
    var options = new SessionOptions();
    var file = Path.ChangeExtension(model, ".session.json");
    if (!File.Exists(file)) return options;
    var contract = JsonDocument.Parse(File.ReadAllText(file)).RootElement;
    if (contract.GetProperty("version").GetInt32() != 1) throw new Exception($"{file}: compile the model again.");
    var session = contract.GetProperty("session");
    bool On(string name) => !session.TryGetProperty(name, out var value) || value.GetBoolean();
    options.EnableMemoryPattern = On("enable_mem_pattern");
    options.EnableCpuMemArena = On("enable_cpu_mem_arena");
    if (session.TryGetProperty("graph_optimization_level", out var level) && level.GetString() == "ORT_DISABLE_ALL")
        options.GraphOptimizationLevel = GraphOptimizationLevel.ORT_DISABLE_ALL;
    if (session.TryGetProperty("intra_op_num_threads", out var threads)) options.IntraOpNumThreads = threads.GetInt32();
    foreach (var entry in contract.GetProperty("config").EnumerateObject())
        options.AddSessionConfigEntry(entry.Name, entry.Value.GetString());
    return options;
}

var given = args.Skip(1).Select(word => word.Split('=', 2)).ToDictionary(pair => pair[0], pair => pair[1]);
using var session = new InferenceSession(args[0], OptionsOf(args[0]));
var feed = new Dictionary<string, OrtValue>();
foreach (var (name, input) in session.InputMetadata)
{
    var shape = input.Dimensions.Select(extent => extent < 0 ? 1L : extent).ToArray();
    var value = OrtValue.CreateAllocatedTensorValue(OrtAllocator.DefaultInstance, input.ElementDataType, shape);
    var data = value.GetTensorMutableRawData();
    data.Clear();
    if (given.TryGetValue(name, out var file)) File.ReadAllBytes(file).CopyTo(data);
    feed[name] = value;
}
using var run = new RunOptions();
using var outputs = session.Run(run, feed, session.OutputNames);
foreach (var (name, value) in session.OutputNames.Zip(outputs))
{
    var numbers = value.GetTensorTypeAndShape().ElementDataType == TensorElementType.Float
        ? value.GetTensorDataAsSpan<float>().ToArray().Select(n => (double)n)
        : value.GetTensorDataAsSpan<long>().ToArray().Select(n => (double)n);
    Console.WriteLine($"{name}: {string.Join(' ', numbers.Take(10))}");
}
