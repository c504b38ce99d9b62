"""Fuzz for long: thousands of small models, each compiled in several ways, with a log that can be gone on with.

    python tests/fuzz/long_run.py --count 10000 --log build/fuzz.jsonl [--minutes 5]     # as `make fuzz N=10000`
    python tests/fuzz/long_run.py --summary build/fuzz.jsonl                             # tables of what was tried
    python tests/fuzz/long_run.py --seed 4711 [--keep FOLDER]                            # one model again

A seed decides the family (a case of a pass with edits, a chain that a pass looks for, one operator, a random graph, a
network with data, what seldom makes a pass do something, a model to merge, cut into stages and run in Session), the
model, and two to four ways: passes that have something to do there, and draws of level, target, data, lossy and writing
options, or of passes in any order. One line of JSON per seed says which operators it had, which passes did something,
seconds, and what was wrong. Models run in processes of their own, a few dozen each: what ends the process, or takes
longer than it may, is a fault, too.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import helper

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from fuzzing import ITSELF, UNOPTIMIZED, Way, try_ways
from fuzzing_commands import TIERS, try_commands
from samplers import SAMPLERS, instance
from samplers.near_misses import edited, fitted, input_wrapped, near_miss
from samplers.networks import NETWORKS, images, perceptron, steps, tokens
from samplers.patterns import PATTERNS, chain
from samplers.sample import Rng, pick
from shape_oracle import deviates

from memoptc.ir.diagnostics import MemoptcError
from memoptc.ir.onnx_io import read_onnx, to_proto
from memoptc.registry import names
from memoptc.runtime.evaluate import Evaluator, RunOptions
from memoptc.testing.graphs import feeds as feeds_of_graph
from memoptc.testing.graphs import random_graph

CHUNK = 40
"""Models of one process."""
SECONDS = 120
"""Longest that one model may take in all its ways."""
ENOUGH = 100
"""Times that each pass shall have done something."""
FAMILIES = (
    *("case", "case", "case", "case", "chain", "chain", "operator", "operator", "graph", "network", "network"),
    *("rare", "rare", "command"),
)
RARE = ("equalize", "share-transposed", "smooth", "split-products", "split-sums", "tile", "widen-half")
"""Passes with cases whose forms edits and other families seldom make."""
RARE_NETWORKS = (
    (steps, "fuse-rotary,fuse-skip-norm,fuse-cached-attention,quantize-cache"),
    (perceptron, "split-outliers"),
    (perceptron, "feature-statistics,factorize{smallest=256}"),
    (perceptron, f'cascade{{small="{ITSELF}",threshold=0.5}}'),
    (images, f'cascade{{small="{ITSELF}",max_disagreement=0.3}}'),
    (tokens, "prune-tokens{keep=0.5}"),
)
"""The same of passes that need data: networks, and a pipeline for each."""
_WRITING: tuple[Way, ...] = (
    {},
    {},
    {"external": "always"},
    {"freeze_runtime": True, "force": True},
    {"freeze_runtime": True, "pack_weights": True, "external": "always", "force": True},
    {"form": "branch", "force": True},
    {"form": "captured", "force": True},
    {"form": "shapeless", "force": True},
    {"from_file": True},
    {"verify": "fast"},
    {"memory_budget": "activations=1KiB", "force": True, "bound": True},
    {"frozen": True},
    {"bound": True},
    {"portable": True, "device": "arm64"},
)
_TARGETS = ("float32", "float32", "int8", "int4", "float16", "mixed", "uint8", "bfloat16", "float8")
_LOSSY: tuple[Way, ...] = (
    {"prune": 0.5},
    {"low_rank": True},
    {"cluster": 16},
    {"cluster": 256},
    {"prune_tokens": True},
    {"early_exit": 0.1},
    {"prune": 0.3, "low_rank": True, "target": "int8"},
    {"low_rank": True, "target": "float16"},
)
_NEED_OPTIONS = ("cascade", "tile", "lower")
"""Passes that do nothing without options, or stand last."""


WRAPPED = 0.06
"""Share of models that get an input as a sequence or optional."""


class TookTooLong(Exception):
    """A model took longer than it may."""


def way_of(r: Rng) -> Way:
    """Draw a level, a target and how to write; sometimes with data, or passes in any order."""
    chance = r.random()
    if chance < 0.15:
        known = sorted(set(names()) - set(_NEED_OPTIONS))
        chosen = [pick(r, *known) for _ in range(int(r.integers(1, 5)))]
        return {"passes": ",".join([*chosen, "lower"]), "data": bool(r.random() < 0.5)}
    way: Way = {"level": int(r.integers(4)), "target": pick(r, *_TARGETS)}
    if way["level"] == 0:
        way = {"level": 0, "target": "float32"}
    if chance < 0.25:
        return {**way, "target": "float32", **pick(r, *_LOSSY), "data": True, **pick(r, {}, {"min_sqnr": 15.0})}
    if chance < 0.45:
        asked = pick(r, {}, {"min_sqnr": 20.0}, {"min_sqnr": 20.0, "verify": "fast"}, {"quantize_io": True})
        return {**way, "target": pick(r, "int8", "int8", "uint8", "mixed", "int4"), "data": True, **asked}
    return {**way, **pick(r, *_WRITING)}


def draw(seed: int, only: str = "") -> tuple[str, onnx.ModelProto, list[Any], list[Any], list[Way]]:
    """Make the model of a seed: its name, itself, feeds, hard feeds, and the ways to compile it.

    Raises:
        MemoptcError: what was drawn is no model.
    """
    name, model, feeds, hard, ways = _draw(seed, only)
    r = np.random.default_rng([seed, 78])
    wrapped = input_wrapped(model, r, [*feeds, *hard]) if r.random() < WRAPPED else ""
    return f"{name} {wrapped}".strip(), model, feeds, hard, ways


def _draw(seed: int, only: str) -> tuple[str, onnx.ModelProto, list[Any], list[Any], list[Way]]:
    r = np.random.default_rng([seed, 77])
    family, ways = "case" if only else pick(r, *FAMILIES), [way_of(r), way_of(r)]
    if family == "command":
        family, ways = (
            pick(r, "chain", "graph", "operator"),
            [{"command": pick(r, *TIERS), "count": int(r.integers(2, 4))}],
        )
    if family == "rare" and r.random() < 0.5:
        family, only = "case", pick(r, *RARE)
    if family == "case":
        made = near_miss(r, only)
        name = " ".join([made.name, *made.edits])
        own = {"passes": f"{made.pipeline},lower", "data": bool(r.random() < 0.4)}
        return name, made.model, made.feeds, made.hard, [own, *ways]
    if family == "chain":
        name = pick(r, *PATTERNS)
        model, feeds = chain(name, r)
        ways += [] if "command" in ways[0] else [way_of(r)]
    elif family == "operator":
        sampler = pick(r, *(s for group in SAMPLERS.values() for s in group))
        sample = sampler(r)
        if sample.random or sample.opset < 7:
            raise MemoptcError("numbers differ from run to run")
        one = instance(sample, r)
        name, model = sample.op_type, one.model
        model.graph.output.extend(helper.make_empty_tensor_value_info(o) for o in sample.nodes[-1].output if o)
        graph = read_onnx(model)
        feeds = [f for f in one.feeds if not _deviates(graph, f)]
    elif family in ("network", "rare"):
        network, chosen = pick(r, *RARE_NETWORKS) if family == "rare" else (pick(r, *NETWORKS), "")
        model, feeds, passes = network(r)
        chosen = chosen or ",".join(pick(r, *passes) for _ in range(int(r.integers(1, 4))))
        name, ways = network.__name__, [{"passes": f"{chosen},lower", "data": True}, ways[0]]
        edits = edited(model, r, int(r.integers(2)))
        return " ".join([name, *edits]), model, fitted(model, feeds, r), [], ways
    else:
        drawn = random_graph(seed, int(r.integers(4, 24)))
        bindings = [{"N": n, "M": m} for n, m in ((3, 5), (1, 1), (2, 7), (8, 1))]
        name, model, feeds = "random graph", to_proto(drawn), [feeds_of_graph(drawn, seed, b) for b in bindings]
    edits = edited(model, r, int(r.integers(3)))
    return " ".join([name, *edits]), model, fitted(model, feeds, r), [], ways


def _deviates(graph: Any, feed: Any) -> bool:
    return any(deviates(op, feed) for op in graph.ops)


def operators(graph: onnx.GraphProto) -> Counter[str]:
    """Count the operators of a graph and its subgraphs."""
    found: Counter[str] = Counter()
    for node in graph.node:
        found[f"{node.domain}::{node.op_type}" if node.domain else node.op_type] += 1
        for attr in node.attribute:
            for inner in (attr.g, *attr.graphs):
                found += operators(inner)
    return found


def try_seed(seed: int, only: str = "", keep: Path | None = None) -> dict[str, Any]:
    """Make the model of a seed and try it; gives the line for the log."""
    started, counts = time.perf_counter(), Counter[str]()
    entry: dict[str, Any] = {"seed": seed, "name": "", "fault": ""}

    def late(*_: object) -> None:
        raise TookTooLong(f"more than {SECONDS} s")

    signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        name, model, feeds, hard, ways = draw(seed, only)
        entry |= {"name": name, "operators": dict(operators(model.graph))}
        if keep is not None:
            keep.mkdir(parents=True, exist_ok=True)
            onnx.save(model, keep / f"{seed}.onnx")
            np.savez(keep / f"{seed}.npz", **feeds[0])
            print(*ways, sep="\n")
        if "command" in ways[0]:
            entry["fault"] = try_commands(model, feeds, counts, ways[0]["command"], ways[0]["count"])
        else:
            entry["fault"] = try_ways(model, feeds, ways, counts, hard)
    except MemoptcError:
        counts["refused"] += 1
    except TookTooLong as e:
        entry["fault"] = str(e)
    finally:
        signal.alarm(0)
    return entry | {"counts": dict(counts), "seconds": round(time.perf_counter() - started, 2)}


def load(seed: int) -> None:
    """Run the model of a seed as it is, without onnxruntime's optimizer and with it: some end the process there."""
    _, model, feeds, hard, _ = draw(seed)
    for options in (UNOPTIMIZED, RunOptions()):
        with contextlib.suppress(MemoptcError):
            original = Evaluator(model, options)
            for feed in (*feeds, *hard):
                with contextlib.suppress(MemoptcError):
                    original.run(feed)


def run(seeds: range, log: Path, minutes: float, only: str = "") -> Iterator[str]:
    """Try seeds, in processes; append to the log; gives the faults as they come."""
    end, seed = time.perf_counter() + 60 * minutes, seeds.start
    log.parent.mkdir(parents=True, exist_ok=True)
    while seed < seeds.stop and time.perf_counter() < end:
        stop = min(seed + CHUNK, seeds.stop)
        command = [sys.executable, __file__, "--chunk", str(seed), str(stop), "--only", only]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
        assert process.stdout is not None
        with log.open("a") as file:
            for line in process.stdout:
                file.write(line)
                file.flush()
                entry = json.loads(line)
                seed = entry["seed"] + 1
                if entry["fault"]:
                    yield f"{entry['seed']} {entry['name']}: {entry['fault']}"
            if process.wait() != 0:
                alone = subprocess.run([sys.executable, __file__, "--load", str(seed)], stderr=subprocess.DEVNULL)
                ours = alone.returncode == 0
                fault = f"the process ended with {process.returncode}" if ours else ""
                counts = {} if ours else {"ends onnxruntime": 1}
                file.write(json.dumps({"seed": seed, "name": "", "fault": fault, "counts": counts}) + "\n")
                if ours:
                    yield f"{seed} {fault}"
                seed += 1


def summary(log: Path) -> str:
    """Tables of a log: models, compiles per level, target and writing option, passes that did something, faults."""
    total, ops, faults = Counter[str](), Counter[str](), []
    slowest = (0.0, 0)
    for entry in map(json.loads, log.read_text().splitlines()):
        total.update(entry["counts"])
        ops.update(entry.get("operators", {}).keys() if entry["counts"].get("models") else ())
        slowest = max(slowest, (entry.get("seconds", 0.0), entry["seed"]))
        if entry["fault"]:
            faults.append(f"{entry['seed']} {entry['name']}: {entry['fault']}")
    ways = Counter[str]()
    for key, count in total.items():
        if key.startswith("way "):
            # A pipeline has spaces nowhere but between options of a way.
            ways.update(
                {w: count for w in key[4:].split(" ") if not w.startswith("passes=")} or {"own pipeline": count}
            )
    fired = {name: total[f"pass {name}"] for name in sorted(names())}
    compiles = sum(count for key, count in total.items() if key.startswith("way "))
    lines = [
        f"{total['models']} models, {total['refused']} refused by onnxruntime, {total['ends onnxruntime']} end it, "
        f"{compiles} compiles, {len(faults)} "
        f"faults, {total['ended early']} passes ended early; slowest model {slowest[0]} s (seed {slowest[1]})",
        "ways: " + ", ".join(f"{w} {n}" for w, n in sorted(ways.items())),
        "passes: " + ", ".join(f"{p} {n}" for p, n in fired.items() if n >= ENOUGH),
        f"less than {ENOUGH}: " + ", ".join(f"{p} {n}" for p, n in fired.items() if n < ENOUGH),
        f"{len(ops)} operators: " + ", ".join(f"{o} {n}" for o, n in ops.most_common()),
        *faults,
    ]
    return "\n".join(lines)


def main() -> None:
    """Run, go on, or look at a log."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=1000, help="seeds")
    parser.add_argument("--start", type=int, default=0, help="first seed")
    parser.add_argument("--log", type=Path, default=Path("build/fuzz.jsonl"))
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no model after so long")
    parser.add_argument("--only", default="", help="cases of one pass")
    parser.add_argument("--summary", type=Path, metavar="LOG")
    parser.add_argument("--seed", type=int, help="one model, its line printed")
    parser.add_argument("--keep", type=Path, help="with --seed: write the model and its first feed here")
    parser.add_argument("--chunk", type=int, nargs=2, help=argparse.SUPPRESS)
    parser.add_argument("--load", type=int, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.summary:
        print(summary(given.summary))
    elif given.seed is not None:
        print(json.dumps(try_seed(given.seed, given.only, given.keep), indent=1))
    elif given.load is not None:
        load(given.load)
    elif given.chunk:
        for seed in range(*given.chunk):
            print(json.dumps(try_seed(seed, given.only)), flush=True)
    else:
        seeds = range(given.start, given.start + given.count)
        if given.log.exists():
            done = [json.loads(line)["seed"] for line in given.log.read_text().splitlines()]
            seeds = range(max([seeds.start - 1, *(s for s in done if s in seeds)]) + 1, seeds.stop)
        failed = False
        for fault in run(seeds, given.log, given.minutes, given.only):
            failed = True
            print(fault, flush=True)
        sys.exit(failed)


if __name__ == "__main__":
    main()
