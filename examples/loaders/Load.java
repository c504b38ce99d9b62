// Runs a model that memoptc wrote in onnxruntime for Java, by its session contract, and prints what comes out.
//
//     javac -cp onnxruntime.jar Load.java && java -cp onnxruntime.jar:. Load MODEL.onnx [INPUT=FILE.bin ...]
//
// The jar is com.microsoft.onnxruntime:onnxruntime. Inputs are raw bytes or zeros, symbolic extents are 1. What Java has
// no setting for (the order of nodes, the sized arena) is left out; the numbers are the same without it.
import ai.onnxruntime.*;
import ai.onnxruntime.OrtSession.SessionOptions;
import java.nio.*;
import java.nio.file.*;
import java.util.*;
import java.util.regex.*;

public class Load {
  /** Entries of one flat object of the contract: strings, numbers and words, without their quotes. */
  static Map<String, String> part(String contract, String name) {
    Map<String, String> found = new LinkedHashMap<>();
    Matcher whole = Pattern.compile("\"" + name + "\":\\s*\\{([^}]*)\\}").matcher(contract);
    Matcher entry = Pattern.compile("\"([^\"]+)\":\\s*(?:\"([^\"]*)\"|([\\w.-]+))").matcher(whole.find() ? whole.group(1) : "");
    while (entry.find()) found.put(entry.group(1), entry.group(2) != null ? entry.group(2) : entry.group(3));
    return found;
  }

  /** Session options by a contract; onnxruntime's own where there is none. */
  static SessionOptions optionsOf(String model) throws Exception {
    SessionOptions options = new SessionOptions();
    Path file = Path.of(model.replaceAll("\\.onnx$", ".session.json"));
    if (!Files.exists(file)) return options;
    String contract = Files.readString(file);
    if (!contract.contains("\"version\": 1,")) throw new Exception(file + ": compile the model again.");
    Map<String, String> session = part(contract, "session");
    options.setMemoryPatternOptimization(!"false".equals(session.get("enable_mem_pattern")));
    options.setCPUArenaAllocator(!"false".equals(session.get("enable_cpu_mem_arena")));
    boolean plain = "ORT_DISABLE_ALL".equals(session.get("graph_optimization_level"));
    options.setOptimizationLevel(plain ? SessionOptions.OptLevel.NO_OPT : SessionOptions.OptLevel.ALL_OPT);
    options.setIntraOpNumThreads(Integer.parseInt(session.getOrDefault("intra_op_num_threads", "0")));
    for (Map.Entry<String, String> e : part(contract, "config").entrySet()) options.addConfigEntry(e.getKey(), e.getValue());
    return options;
  }

  public static void main(String[] words) throws Exception {
    OrtEnvironment env = OrtEnvironment.getEnvironment();
    Map<String, OnnxTensor> feed = new HashMap<>();
    try (OrtSession session = env.createSession(words[0], optionsOf(words[0]))) {
      for (NodeInfo input : session.getInputInfo().values()) {
        TensorInfo info = (TensorInfo) input.getInfo();
        long[] shape = Arrays.stream(info.getShape()).map(d -> d < 0 ? 1 : d).toArray();
        long count = Arrays.stream(shape).reduce(1, (a, b) -> a * b);
        ByteBuffer data = ByteBuffer.allocateDirect((int) count * info.type.size).order(ByteOrder.nativeOrder());
        for (String word : words)
          if (word.startsWith(input.getName() + "=")) data.put(Files.readAllBytes(Path.of(word.split("=", 2)[1]))).rewind();
        feed.put(input.getName(), OnnxTensor.createTensor(env, data, shape, info.type));
      }
      for (Map.Entry<String, OnnxValue> output : session.run(feed)) {
        OnnxTensor value = (OnnxTensor) output.getValue();
        System.out.println(output.getKey() + ": " + Arrays.deepToString(new Object[] {value.getValue()}));
      }
    }
  }
}
