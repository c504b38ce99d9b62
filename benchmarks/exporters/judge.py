"""Compile exported models as a user does who knows nothing, and judge what comes out from outside.

    python benchmarks/exporters/judge.py FOLDER [--only PATTERN] [--way=-O2 --way='-O2 --target int8' ...] [--measure]
                                         [--seconds 120] [--log results.jsonl] [--budget 200]

FOLDER holds what `export.py`, `export_sklearn.py` or `export_keras.py` write. Each model is compiled by the command
line in each way, without inputs and without data, with a limit on time. Then the original and the result run in stock
onnxruntime, with and without its optimizer, on valid inputs of each size, and what comes out is compared; interfaces,
too. One line per model and way: `ok`, or what is wrong, with seconds and the compiler's highest resident MB.
`--measure` compares needs of fresh processes as the product's own gate would; without it compiles run with `--no-
measure`, as smaller models gain nothing that could be measured.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort

WAYS = ["-O1", "-O2", "-O3", "-O2 --target int8", "-O2 --target int4", "-O2 --target float16"]
BOUND = {"float32": 2e-5, "float16": 2e-2, "int8": 0.15, "int4": 0.6}
"""Largest accepted root mean square of differences over that of the output; bounds for a judge, not for a gate."""


def extent(dim: int | str, size: dict[str, int]) -> int:
    """Value of an extent such as `8*h` or `P+T`."""
    if isinstance(dim, int):
        return dim
    total = 0
    for term in dim.split("+"):
        value = 1
        for part in term.split("*"):
            value *= int(part) if part.isdigit() else size[part]
        total += value
    return total


def feed_of(about: dict[str, Any], size: dict[str, int], seed: int) -> dict[str, Any]:
    """Make valid inputs of a size."""
    rng = np.random.default_rng(seed)
    feed = {}
    for given in about["inputs"]:
        shape, kind = [extent(d, size) for d in given["dims"]], given["kind"]
        if kind.startswith("ids:"):
            value = rng.integers(0, int(kind[4:]), shape)
        elif kind == "ones" or kind == "bool":
            value = np.ones(shape)
        elif kind == "mask":
            value = np.ones(shape)
            if shape[-1] > 2 and seed % 2:
                value[0, -2:] = 0
        elif kind == "positions":
            value = np.broadcast_to(np.arange(shape[-1]) + size.get("P", 0), shape)
        else:
            value = rng.standard_normal(shape)
        feed[given["name"]] = np.ascontiguousarray(value.astype(given["dtype"]))
    return feed


def session(path: Path, optimized: bool) -> ort.InferenceSession:
    """Open a model in stock onnxruntime."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimized else level.ORT_DISABLE_ALL
    return ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])


def interface(path: Path) -> list[Any]:
    """Names, dtypes, dims and docs of inputs and outputs; metadata of the author's."""
    model = onnx.load(path, load_external_data=False)
    own = {i.name for i in model.graph.initializer}
    sides = [i for i in model.graph.input if i.name not in own], model.graph.output
    listed: list[Any] = [[(v.name, v.type.SerializeToString(deterministic=True), v.doc_string) for v in side]
                         for side in sides]  # fmt: skip
    return [*listed, sorted((p.key, p.value) for p in model.metadata_props if not p.key.startswith("memoptc"))]


def difference(a: Any, b: Any) -> float:
    """Root mean square of the difference over that of the first; infinite where kinds or shapes differ."""
    if isinstance(a, dict) and isinstance(b, dict):
        a, b = ([v for _, v in sorted(m.items())] for m in (a, b))
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return float("inf")
    if a.dtype.kind not in "f":
        return float(np.mean(a != b)) if a.size else 0.0
    a, b = a.astype(np.float64), b.astype(np.float64)
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    if same.all():
        return 0.0
    off = np.sqrt(np.mean(np.where(same, 0, a - b) ** 2))
    scale = np.sqrt(np.mean(a[np.isfinite(a)] ** 2))
    return float(off / max(scale, 1e-30))


def compare(original: Path, result: Path, about: dict[str, Any], exact: bool) -> tuple[float, str]:
    """Largest difference over sizes, seeds and optimizers, and where; a sentence where a model does not run."""
    worst, where, runs = 0.0, "", 0
    for optimized in (False, True):
        try:
            before = session(original, optimized)
        except Exception as error:
            return 0.0, f"original does not load: {str(error)[:100]}" if not optimized else where
        after = session(result, optimized)
        taken = {i.name for i in before.get_inputs()}  # exporters drop inputs that nothing reads
        for size in about["sizes"]:
            for seed in (0, 1):
                feed = {n: v for n, v in feed_of(about, size, seed).items() if n in taken}
                try:
                    wanted = before.run(None, feed)
                except Exception:
                    continue
                runs += 1
                try:
                    got = after.run(None, feed)
                except Exception as error:
                    return float("inf"), f"fails at {size}: {str(error)[:160]}"
                for output, a, b in zip(before.get_outputs(), wanted, got, strict=True):
                    d = max((difference(*p) for p in zip(a, b, strict=True)), default=0.0) if isinstance(
                        a, list) else difference(a, b)  # fmt: skip
                    if d > worst:
                        worst, where = d, f"{output.name} at {size}, optimizer {'on' if optimized else 'off'}"
    return worst, where if runs else "the original runs at no size"


def bound(model: Path) -> list[str]:
    """`--dim` for every symbol of the inputs, as the last size says."""
    about = json.loads(model.with_suffix(".json").read_text())
    dims = {d["name"]: d["dims"] for d in about["inputs"]}
    found = {}
    for given in onnx.load(model, load_external_data=False).graph.input:
        for axis, dim in enumerate(given.type.tensor_type.shape.dim):
            if dim.dim_param.isidentifier() and given.name in dims:
                found[dim.dim_param] = extent(dims[given.name][axis], about["sizes"][-1])
    return [word for name, value in found.items() for word in ("--dim", f"{name}={value}")]


def compile_once(model: Path, way: str, out: Path, seconds: float, measure: bool) -> dict[str, Any]:
    """Run the command line once: exit code, seconds, highest resident MB, last lines of what it said."""
    options = [o for word in way.split() for o in (bound(model) if word == "--dims" else [word])]
    command = [sys.executable, "-m", "memoptc", str(model), *options, "-o", str(out), "-q"]
    command += [] if measure else ["--no-measure"]
    started = time.perf_counter()
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        code: int | None = None
        while time.perf_counter() - started < seconds:
            pid, status, used = os.wait4(process.pid, os.WNOHANG)
            if pid:
                code = os.waitstatus_to_exitcode(status)
                break
            time.sleep(0.02)
        else:
            os.killpg(process.pid, 9)
            _, _, used = os.wait4(process.pid, 0)
        process.returncode = 0
        said.seek(0)
        text = said.read()
    return {"code": code, "seconds": round(time.perf_counter() - started, 1), "rss": used.ru_maxrss // 1000,
            "said": text[-1500:]}  # fmt: skip


def judge(model: Path, way: str, folder: Path, seconds: float, measure: bool) -> dict[str, Any]:
    """Compile one model in one way, and say what is wrong."""
    about = json.loads(model.with_suffix(".json").read_text())
    out = folder / "result.onnx"
    for old in folder.glob("result*"):
        old.unlink()
    row: dict[str, Any] = {"model": model.name, "way": way, **compile_once(model, way, out, seconds, measure)}
    row["verdict"] = {None: "endless", 0: "ok", 1: "crash", 2: "refused"}.get(row["code"], f"exit {row['code']}")
    if row["code"] is not None and row["code"] < 0:
        row["verdict"] = "crash"
    if out.exists():
        if interface(model) != interface(out):
            row["verdict"] = "interface"
        target = way.rsplit(" ", 1)[-1] if "--target" in way else "float32"
        half = ".f16." in model.name
        bound = max(BOUND[target], BOUND["float16"] if half and "-O1" not in way else 0)
        try:
            row["difference"], row["where"] = compare(model, out, about, "-O1" in way)
        except Exception as error:
            row["difference"], row["where"] = float("inf"), str(error)[:300]
        if row["difference"] > (0 if "-O1" in way else bound):
            row["verdict"] = "wrong"
        row["bytes"] = [sum(f.stat().st_size for f in p.parent.glob(p.name + "*") if f.suffix != ".json")
                        for p in (model, out)]  # fmt: skip
    elif row["code"] == 0:
        row["verdict"] = "nothing written"
    return row


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", default="*")
    parser.add_argument("--way", action="append", help="may be repeated: --way='-O2 --target int8'")
    parser.add_argument("--measure", action="store_true")
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--log", type=Path, help="one JSON line per compile; what is in it is not done again")
    parser.add_argument("--budget", type=float, default=1e9, help="start no compile after so many seconds")
    given = parser.parse_args()
    started = time.perf_counter()
    done = set()
    if given.log and given.log.exists():
        done = {(r["model"], r["way"]) for r in map(json.loads, given.log.read_text().splitlines())}
    for model in sorted(given.folder.glob("*.onnx")):
        if not fnmatch.fnmatch(model.name, given.only) or not model.with_suffix(".json").exists():
            continue
        for way in given.way or WAYS:
            if (model.name, way) in done:
                continue
            if time.perf_counter() - started > given.budget:
                sys.exit(75)
            with tempfile.TemporaryDirectory() as folder:
                row = judge(model, way, Path(folder), given.seconds, given.measure)
            print(f"{row['model']:42} {way:24} {row['verdict']:10} {row['seconds']:6.1f} s {row['rss']:5} MB "
                  f"{row.get('difference', float('nan')):.1e} {row.get('where', '')}", flush=True)  # fmt: skip
            if row["verdict"] not in ("ok",):
                print("    " + row["said"].strip()[-600:].replace("\n", "\n    "), flush=True)
            if given.log:
                with given.log.open("a") as log:
                    log.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
