"""One planned peak: every command gives the same figure for the same configuration and sizes, and names it."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from native_models import model, network, usable
from onnx import TensorProto, helper

from memoptc.cli.main import cli
from memoptc.report.rows import size
from memoptc.runtime.configuration import FILE_ORDER, SESSION

FLOAT = TensorProto.FLOAT
EXAMPLES = Path(__file__).parents[2] / "examples" / "models"


def coded() -> bytes:
    """Convolutions between quantized tensors: fused into integer kernels or not, peaks differ fourfold."""
    rng = np.random.default_rng(0)
    weights: dict[str, Any] = {"s": np.float32(0.05), "z": np.uint8(128), "ws": np.float32(0.01), "wz": np.int8(0)}
    nodes, value = [], "x"
    for i in range(3):
        weights[f"w{i}"] = rng.integers(-90, 90, (4, 4, 3, 3), np.int8)
        nodes += [
            helper.make_node("QuantizeLinear", [value, "s", "z"], [f"q{i}"]),
            helper.make_node("DequantizeLinear", [f"q{i}", "s", "z"], [f"d{i}"]),
            helper.make_node("DequantizeLinear", [f"w{i}", "ws", "wz"], [f"v{i}"]),
            helper.make_node("Conv", [f"d{i}", f"v{i}"], [f"c{i}"], pads=[1, 1, 1, 1]),
        ]
        value = f"c{i}"
    nodes += [
        helper.make_node("QuantizeLinear", [value, "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    return model(nodes, {"x": (FLOAT, [1, 4, 32, 32])}, {"y": (FLOAT, [1, 4, 32, 32])}, weights)


def wide() -> bytes:
    """Elementwise operators wide enough that -O2 puts them into a branch."""
    nodes = [helper.make_node("Exp", ["x"], ["a"]), helper.make_node("Sin", ["a"], ["b"])]
    nodes += [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("ReduceMax", ["c"], ["y"], keepdims=0)]
    return model(nodes, {"x": (FLOAT, ["batch", 300_000])}, {"y": (FLOAT, [])})


def branching() -> bytes:
    """An If that a value decides, whose larger branch holds the peak, between ops of a symbolic extent."""
    exp, sin = (helper.make_node(op, [a], [b]) for op, a, b in (("Exp", "a", "e"), ("Sin", "a", "s")))
    large = helper.make_graph(
        [exp, sin, helper.make_node("Add", ["e", "s"], ["t"])], "large", [], [helper.make_empty_tensor_value_info("t")]
    )
    small = helper.make_graph(
        [helper.make_node("Abs", ["a"], ["u"])], "small", [], [helper.make_empty_tensor_value_info("u")]
    )
    nodes = [
        helper.make_node("Neg", ["x"], ["a"]),
        helper.make_node("ReduceMax", ["a"], ["m"], keepdims=0),
        helper.make_node("Less", ["m", "zero"], ["c"]),
        helper.make_node("If", ["c"], ["d"], then_branch=large, else_branch=small),
        helper.make_node("Add", ["d", "a"], ["y"]),
    ]
    shape = ["batch", 500]
    return model(nodes, {"x": (FLOAT, shape)}, {"y": (FLOAT, shape)}, {"zero": np.float32(0)})


CASES: dict[str, tuple[Callable[[], bytes], tuple[str, ...]]] = {
    "layers": (network, ("--dim", "batch=5")),
    "coded": (coded, ()),
    "branching": (branching, ("--dim", "batch=20")),
    "wide": (wide, ("--dim", "batch=2")),
    "digits_cnn": ((EXAMPLES / "digits_cnn.onnx").read_bytes, ("--dim", "batch=3")),
    "photo_sr_x2": ((EXAMPLES / "photo_sr_x2.onnx").read_bytes, ("--dim", "height=48", "--dim", "width=40")),
}

LONG = "photo_sr_x2"
"""A quarter of the time, and a peak of the same kind as another's."""


def call(*arguments: Any) -> str:
    done = CliRunner().invoke(cli, [str(a) for a in arguments], catch_exceptions=False, standalone_mode=False)
    return done.stdout


@pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")
@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.nightly if n == LONG else ()) for n in CASES])
def test_every_command_gives_the_same_peak_for_the_same_configuration(name: str, tmp_path: Path) -> None:
    make, dims = CASES[name]
    source, out, report = (tmp_path / n for n in ("m.onnx", "out.onnx", "report.json"))
    source.write_bytes(make())
    onnx.checker.check_model(str(source))
    call("compile", source, "-o", out, "-O2", "--report", report, "--no-measure", *dims)
    compiled = json.loads(report.read_text())
    assert compiled["sizes"]["configuration"] == str(FILE_ORDER)
    contract = json.loads(out.with_name("out.session.json").read_text())
    assert contract["peaks"] == {str(FILE_ORDER): compiled["candidate"]["planned_peak_bytes"]}
    for path, side in ((source, "control"), (out, "candidate")):
        peak = compiled[side]["planned_peak_bytes"]
        call("plan", path, "--save", tmp_path / "plan.json", *dims)
        plan = json.loads((tmp_path / "plan.json").read_text())
        assert (plan["planned_peak_bytes"], plan["configuration"]) == (peak, str(FILE_ORDER))
        assert f"{size(peak)} ({FILE_ORDER}; {peak} bytes)" in call("plan", path, *dims)

        (point,) = json.loads(call("profile", path, "--json", "--contract", *dims))["points"]
        assert (point["planned_peak_bytes"], point["configuration"]) == (peak, str(FILE_ORDER))
        session = point["recorded"]["session"]["run_peak_bytes"]

        (other,) = json.loads(call("profile", path, "--json", "--static", "--threads", 2, *dims))["points"]
        assert other["configuration"] == f"{FILE_ORDER}, 2 threads"

        contract = json.loads(path.with_name(f"{path.stem}.session.json").read_text())
        assert contract["peaks"][str(FILE_ORDER)] == peak
        again = json.loads(call("profile", path, "--json", *dims))["points"][0]
        assert again["planned_peak_bytes"] == peak
        assert contract["peaks"][str(SESSION)] == again["recorded"]["session"]["run_peak_bytes"] <= session

        told = json.loads(call("run", path, "--memory", "stock", "--threads", 1, "--json", *dims))
        assert (told["planned_peak_bytes"], told["configuration"]) == (peak, str(FILE_ORDER))
        ran = call("run", path, "--memory", "planned", "--threads", 1, *dims)
        assert f"planned peak {size(peak)} ({FILE_ORDER}; {peak} bytes)" in ran
        assert f"recorded peak {size(contract['peaks'][str(SESSION)])} ({SESSION})" in ran
