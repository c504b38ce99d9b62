"""Refusals that a user meets (options of passes and compiles, files): what is wrong, and how to go on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from memoptc.api import compile, compile_file
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import read_onnx
from memoptc.options import Options
from memoptc.pipeline import parse
from memoptc.project import read_project
from memoptc.report.write import check_report_path


def model() -> onnx.ModelProto:
    weight = numpy_helper.from_array(np.ones((64, 64), np.float32), "w")
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 64]) for n in "xy")
    graph = helper.make_graph([helper.make_node("MatMul", ["x", "w"], ["y"])], "g", [x], [y], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


@pytest.mark.parametrize(
    "text",
    [
        'cascade{small="s.onnx",max_disagreement=1.5}',
        'cascade{small="s.onnx",threshold=2}',
        "cluster-weights{bits=5}",
        "early-exit{max_disagreement=1}",
        "early-exit{most=3}",
        "early-exit{threshold=2}",
        "freeze-runtime{level=most}",
        "mix-weights{by=guessing}",
        "mix-weights{by=weights,size=0.5}",
        "mix-weights{decode=never}",
        "prune{form=rows}",
        "prune{most=1}",
        "prune-tokens{form=fold}",
        "prune-tokens{keep=0}",
        "prune-tokens{score=last}",
        "quantize-io{half=bfloat16}",
        "quantize-search{weights=int3}",
        "to-half{format=float12}",
    ],
)
def test_an_option_of_a_pass_that_it_does_not_have_names_the_pass(text: str) -> None:
    name = text.partition("{")[0]
    with pytest.raises(InputError, match=f"{name} has no ") as refused:
        compile(model(), passes=text, calibration=[{"x": np.ones((4, 64), np.float32)}] * 4, measure=False)
    assert refused.value.hint


@pytest.mark.parametrize("name", ["cascade", "early-exit", "feature-statistics", "prune", "quantize-search"])
def test_a_pass_that_chooses_by_data_asks_for_some(name: str, tmp_path: Path) -> None:
    onnx.save(model(), tmp_path / "m.onnx")
    small = f'{{small="{tmp_path / "m.onnx"}"}}' if name == "cascade" else ""
    with pytest.raises(InputError, match=f"{name} needs data") as refused:
        compile(model(), passes=f"{name}{small}", measure=False)
    assert "--calibration" in refused.value.hint


def test_the_static_form_asks_for_data() -> None:
    with pytest.raises(InputError, match="The static form of quantize needs data"):
        compile(model(), passes="quantize{form=static}", measure=False)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"passes": 3}, "is no pipeline"),
        ({"level": 4}, "level cannot be 4"),
        ({"target": "int3"}, "target='int3' is unknown"),
        ({"target": "int8", "quantize_io": True, "passes": "order"}, "says all that runs"),
        ({"container": True, "measure": False}, "A container is measured"),
        ({"prune": 0.3}, "--prune needs data"),
        ({"prune": 0.3, "calibration": "d.npz", "passes": "order"}, "says all that runs, --prune too"),
        ({"cache": "int8", "calibration": "d.npz", "passes": "order"}, "says all that runs"),
    ],
)
def test_options_that_exclude_each_other(options: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message) as refused:
        Options(**options)
    assert refused.value.hint


def test_a_file_of_weights_that_ends_early(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path, save_as_external_data=True, location="m.data", size_threshold=0)
    whole = (tmp_path / "m.data").read_bytes()
    (tmp_path / "m.data").write_bytes(whole[:-1])
    with pytest.raises(
        InputError, match=r"'m\.data' is truncated: weight 'w' needs bytes 0 to 16384, the file has 16383"
    ):
        read_onnx(path)


def test_an_output_that_is_the_input(tmp_path: Path) -> None:
    path = tmp_path / "m.onnx"
    onnx.save(model(), path)
    (tmp_path / "link.onnx").symlink_to(path)
    for output in (path, tmp_path / "link.onnx"):
        with pytest.raises(InputError, match="is also an input; writing it would destroy it"):
            compile_file(path, output, measure=False)
    assert path.read_bytes() == model().SerializeToString()


def test_a_report_of_an_unknown_form() -> None:
    with pytest.raises(InputError, match=r"r\.txt is no report file: its ending is \.txt"):
        check_report_path(Path("r.txt"))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[options", "is no TOML"),
        ("models = 3", "options are a table, models tables of a list"),
        ("[options]\nlevel = [1, 2]", "level is one value"),
    ],
)
def test_a_project_file_that_says_nothing(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "memoptc.toml").write_text(text)
    with pytest.raises(InputError, match=message) as refused:
        read_project(tmp_path / "memoptc.toml")
    assert refused.value.hint


def test_a_plug_in_that_is_no_python(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text("pass")
    with pytest.raises(InputError, match=r"p\.txt cannot be loaded"):
        compile(model(), passes="order", plugins=[str(tmp_path / "p.txt")], measure=False)


def test_a_pipeline_is_parsed_before_anything_runs() -> None:
    with pytest.raises(InputError, match="cluster-weights has no bits=5"):
        parse("order,cluster-weights{bits=5}")
