// Runs a model that memoptc wrote in onnxruntime-node, by its session contract, and prints what comes out.
//
//     npm install onnxruntime-node
//     node load.mjs MODEL.onnx [INPUT=FILE.bin ...]
//
// The contract (MODEL.session.json) says how the session needs least memory. What JavaScript has no setting for (the
// order of nodes, disabled optimizers, the sized arena) is left out; the numbers are the same without it.
import { existsSync, readFileSync } from "node:fs";
import ort from "onnxruntime-node";

const LEVELS = { ORT_DISABLE_ALL: "disabled", ORT_ENABLE_BASIC: "basic", ORT_ENABLE_EXTENDED: "extended", ORT_ENABLE_ALL: "all" };

/** Session options by a contract; onnxruntime's own where there is none. */
export function optionsOf(model) {
  const file = model.replace(/\.onnx$/, ".session.json");
  if (!existsSync(file)) return {};
  const contract = JSON.parse(readFileSync(file, "utf8"));
  if (contract.version !== 1) throw new Error(`${file} is of version ${contract.version}: compile the model again.`);
  const { session, config } = contract;
  const extra = {}; // "session.use_env_allocators": "1" becomes { session: { use_env_allocators: "1" } }
  for (const [key, value] of Object.entries(config)) {
    const path = key.split(".");
    const last = path.pop();
    path.reduce((at, part) => (at[part] ??= {}), extra)[last] = value;
  }
  return {
    enableMemPattern: session.enable_mem_pattern ?? true,
    enableCpuMemArena: session.enable_cpu_mem_arena ?? true,
    graphOptimizationLevel: LEVELS[session.graph_optimization_level] ?? "all",
    ...(session.intra_op_num_threads ? { intraOpNumThreads: session.intra_op_num_threads } : {}),
    extra,
  };
}

/** Inputs for a session: given as raw bytes, or zeros; symbolic extents are 1. */
export function feedOf(session, given) {
  const feed = {};
  for (const { name, type, shape } of session.inputMetadata) {
    const extents = shape.map((d) => (typeof d === "number" && d > 0 ? d : 1));
    const empty = new ort.Tensor(type, new (arrayOf(type))(extents.reduce((a, b) => a * b, 1)), extents);
    if (given[name]) new Uint8Array(empty.data.buffer).set(readFileSync(given[name]));
    feed[name] = empty;
  }
  return feed;
}

function arrayOf(type) {
  const kinds = { float32: Float32Array, float64: Float64Array, int64: BigInt64Array, int32: Int32Array, uint8: Uint8Array, int8: Int8Array, bool: Uint8Array };
  if (!kinds[type]) throw new Error(`This loader makes no inputs of type ${type}.`);
  return kinds[type];
}

const [model, ...rest] = process.argv.slice(2);
const session = await ort.InferenceSession.create(model, optionsOf(model));
const outputs = await session.run(feedOf(session, Object.fromEntries(rest.map((word) => word.split("=")))));
for (const [name, { dims, data }] of Object.entries(outputs)) {
  console.log(JSON.stringify({ name, dims, first: Array.from(data.slice(0, 10), Number) }));
}
