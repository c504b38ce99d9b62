// What a model needs in onnxruntime-web (WebAssembly, one thread, under node), before and after memoptc: JSON lines.
//
//     npm install onnxruntime-web
//     memoptc MODEL.onnx --device wasm -o SMALL.onnx
//     node wasm.mjs MODEL.onnx [INPUT=1x3x224x224 ...] && node wasm.mjs SMALL.onnx [INPUT=1x3x224x224 ...]
//
// heap: what the module's own memory grew by, to the end of four runs; it begins with 16.8 MB. resident: the same of the
// process, with what JavaScript holds. check: sums of float outputs, to compare. Weights beside a model are handed over.
import { existsSync, readFileSync } from "node:fs";
import { basename } from "node:path";

const memories = []; // of the modules that are made
const record = (found) => (found instanceof Memory ? memories.push(found) : 0);
const { Memory, instantiate } = WebAssembly;
WebAssembly.Memory = class extends Memory {
  constructor(size) {
    super(size);
    memories.push(this);
  }
};
WebAssembly.instantiate = async (...given) => {
  const made = await instantiate(...given);
  Object.values((made.instance ?? made).exports).forEach(record);
  return made;
};
const { default: ort } = await import("onnxruntime-web/wasm");
Object.assign(ort.env.wasm, { numThreads: 1 });
ort.env.logLevel = "fatal";

const ARRAYS = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, bool: Uint8Array };
const heap = () => Math.max(0, ...memories.map((memory) => memory.buffer.byteLength));
const resident = () => process.resourceUsage().maxRSS * 1024;

function optionsOf(model) {
  const contract = model.replace(/\.onnx$/, ".session.json");
  const set = existsSync(contract) ? JSON.parse(readFileSync(contract, "utf8")).session : {};
  const data = `${model}.data`;
  return {
    enableMemPattern: set.enable_mem_pattern ?? true,
    graphOptimizationLevel: set.graph_optimization_level === "ORT_DISABLE_ALL" ? "disabled" : "all",
    ...(existsSync(data) ? { externalData: [{ path: basename(data), data: readFileSync(data) }] } : {}),
  };
}

// Waves for floats, 0 and 1 for integers, which any table of embeddings has.
function feedOf(session, shapes) {
  const feed = {};
  for (const { name, type, shape } of session.inputMetadata) {
    const dims = shapes[name]?.split("x").map(Number) ?? shape.map((d) => (typeof d === "number" && d > 0 ? d : 1));
    const data = new ARRAYS[type](dims.reduce((a, b) => a * b, 1));
    const value = { float32: (i) => Math.sin(0.37 * i), float64: (i) => Math.sin(0.37 * i), int64: (i) => BigInt(i % 2) };
    feed[name] = new ort.Tensor(type, data.map((_, i) => (value[type] ?? ((j) => j % 2))(i)), dims);
  }
  return feed;
}

const [model, ...words] = process.argv.slice(2);
await ort.InferenceSession.create(new Uint8Array([8, 8])).catch(() => {}); // no model: it only loads the module
const before = { heap: heap(), resident: resident() };
const session = await ort.InferenceSession.create(readFileSync(model), optionsOf(model));
const feed = feedOf(session, Object.fromEntries(words.map((word) => word.split("="))));
const times = [];
let outputs;
for (let run = 0; run < 4; run++) {
  const start = performance.now();
  outputs = await session.run(feed);
  times.push(performance.now() - start);
}
const floats = Object.values(outputs).filter(({ type }) => type === "float32");
console.log(
  JSON.stringify({
    model: basename(model),
    heap_MB: (heap() - before.heap) / 1e6,
    resident_MB: (resident() - before.resident) / 1e6,
    ms: Math.min(...times),
    check: floats.map(({ data }) => data.reduce((a, b) => a + b, 0)),
  }),
);
