"""Names in options of passes and commands that match nothing are an error or a warning with the way out."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from accuracy_models import CNN
from runtime_models import normal

import memoptc
from memoptc import registry
from memoptc.cli.main import main
from memoptc.ir.diagnostics import InputError
from memoptc.ir.onnx_io import write_into
from memoptc.ir.parser import parse as parse_graph
from memoptc.manager import run_pipeline
from memoptc.pass_base import Context
from memoptc.pipeline import parse

TEXT = """
graph @g(%x: f32[4,8]) -> (f32[4,8]) {
  %r = Relu(%x) : f32[4,8] loc("first")
  %y = Exp(%r) : f32[4,8] loc("second")
  return %y
}
"""


@pytest.mark.parametrize("pipeline", ['quantize{exclude=["frist"]}', 'to-half{exclude=["frist"]}', 'tile{at="frist"}'])
def test_a_name_that_nothing_has_is_an_error_that_names_a_near_one(pipeline: str) -> None:
    with pytest.raises(InputError, match="names 'frist'") as error:
        run_pipeline(parse(pipeline), parse_graph(TEXT))
    assert "Did you mean 'first'?" in error.value.hint


@pytest.mark.parametrize("name", ["first", "r", "Relu"])
def test_nodes_go_by_their_name_their_result_and_their_operator(name: str) -> None:
    run_pipeline(parse(f'quantize{{exclude=["{name}"]}}'), parse_graph(TEXT))


def test_names_of_the_original_count_where_the_pipeline_starts_with_another_graph() -> None:
    graph = parse_graph(TEXT)
    for op in list(graph.walk("Relu")):
        op.result.replace_by(op.operand)
        op.erase()
    run_pipeline(parse('quantize{exclude=["first"]}'), graph, Context(original=parse_graph(TEXT)))
    with pytest.raises(InputError, match="names 'first'"):
        run_pipeline(parse('quantize{exclude=["first"]}'), graph)


@pytest.mark.parametrize(
    ("pipeline", "why"),
    [
        ('tile{at="y",axis=5}', "declined: Exp y has no axis 5 to tile along"),
        ('tile{at="second",axis=-3}', "declined: Exp second has no axis -3 to tile along"),
        ('tile{at="y",sums=true}', "declined: Exp y has no axis 0 to add up along"),
        ("tile{axis=5}", "declined: no operator of the top graph has an axis 5 that can be tiled"),
        ('tile{at="Exp"}', "declined: no operator of the top graph is called 'Exp'"),
    ],
)
def test_tile_says_why_it_does_nothing(pipeline: str, why: str) -> None:
    (record,) = run_pipeline(parse(pipeline), parse_graph(TEXT))
    assert record.stats == {why: 1}


def test_tile_finds_an_operator_by_its_name() -> None:
    (record,) = run_pipeline(parse('tile{at="second"}'), parse_graph(TEXT))
    assert record.stats["tiles"] == 2


def test_layers_that_are_not_there_are_an_error() -> None:
    with pytest.raises(InputError, match="layers names 3, and the model has 0 attention layers"):
        run_pipeline(parse("prune-tokens{layers=[3],keep=0.5}"), parse_graph(TEXT))


def test_an_optimizer_that_onnxruntime_does_not_have_is_a_warning() -> None:
    names = '"ConstantFolding","ConvActivationFusion","Level1_RuleBasedTransformer","ConstantFoldng"'
    result = memoptc.compile(CNN, 1, passes=f"freeze-runtime{{disabled=[{names}]}},lower", verify="off")
    told = [w for w in result.report.warnings if "has no optimizer" in w]
    assert len(told) == 1
    assert "'ConstantFoldng'" in told[0]


def test_excluded_nodes_stay_wide_in_halves() -> None:
    wide = memoptc.compile(CNN, 1, "float16", verify="off", exclude=("Conv",)).graph
    kinds = {op.operands[1].tensor.dtype.name for op in wide.walk("Conv") if op.operands[1].tensor is not None}
    assert kinds == {"FLOAT"}


FUSED = """
graph @g(%x: f32[B,3,8,8]) -> (f32[B,64]) {
  %k = const() {value=@k} : f32[64,3,8,8]
  %w = const() {value=@w} : f32[64,64]
  %c = const() {value=@c} : f32[64]
  %one = Conv(%x, %k) : f32[B,64,1,1] loc("one")
  %norm = BatchNormalization(%one, %c, %c, %c, %c) : f32[B,64,1,1] loc("norm")
  %flat = Flatten(%norm) : f32[B,64] loc("flat")
  %r = Relu(%flat) : f32[B,64] loc("relu")
  %two = MatMul(%r, %w) : f32[B,64] loc("two")
  %y = Add(%two, %c) : f32[B,64] loc("bias")
  return %y
}
"""


@pytest.mark.parametrize("target", ["int8", "float16"])
@pytest.mark.parametrize("name", ["one", "two"])
def test_a_node_stays_in_float_where_a_scale_or_offset_went_into_it(name: str, target: str, tmp_path: Path) -> None:
    """The operator in its place bears its name."""
    weights = {"k": normal(64, 3, 8, 8, seed=0), "w": normal(64, 64, seed=1), "c": np.full(64, 0.3, np.float32)}
    model = tmp_path / "m.onnx"
    write_into(parse_graph(FUSED, weights=weights), model)

    def kinds(*exclude: str) -> dict[str, str]:
        made = memoptc.compile(str(model), 2, target, verify="off", measure=False, exclude=exclude).graph
        products = [op for op in made.walk() if op.name in ("one", "two")]
        return {op.name: op.operands[1].tensor.dtype.name for op in products if op.operands[1].tensor is not None}

    assert kinds().get(name) != "FLOAT"
    assert kinds(name)[name] == "FLOAT"


@pytest.mark.parametrize("given", ["bool = True", "tuple[int, ...] = (3,)"])
def test_an_option_of_a_plugin_may_be_called_so_and_hold_no_names(given: str, tmp_path: Path) -> None:
    plugin = tmp_path / "plugin.py"
    plugin.write_text(
        "from memoptc.pass_base import Pass\n"
        f"class Odd(Pass):\n    exclude: {given}\n    def run(self, graph, context):\n        pass\n"
    )
    registry.load_plugins([str(plugin)])
    (record,) = run_pipeline(parse("odd"), parse_graph(TEXT))
    assert record.name == "odd"


@pytest.mark.parametrize(
    ("options", "what"),
    [
        ({"max_slowdown": 1.5}, "--max-slowdown does nothing without measuring"),
        ({"max_error": 0.5}, "--max-error does nothing without a proof"),
        ({"device": "arm64"}, "--device does nothing but for a --target"),
    ],
)
def test_options_without_an_effect_are_a_warning(options: dict[str, object], what: str) -> None:
    result = memoptc.compile(CNN, 1, verify="off", **options)  # type: ignore[arg-type]
    assert any(what in w for w in result.report.warnings)
    assert not any("does nothing" in w for w in memoptc.compile(CNN, 1, verify="off").report.warnings)


def test_a_plug_in_that_the_pipeline_does_not_run_is_a_warning(tmp_path: Path) -> None:
    plugin = tmp_path / "idle.py"
    plugin.write_text(
        "from memoptc import Pass\n\n\nclass DoMine(Pass):\n    'Nothing.'\n\n"
        "    def run(self, graph, context):\n        pass\n"
    )
    told = memoptc.compile(CNN, 1, verify="off", plugins=(str(plugin),)).report.warnings
    assert any("idle.py (do-mine), so nothing of it runs" in w for w in told)
    told = memoptc.compile(CNN, 1, verify="off", plugins=(str(plugin),), passes="do-mine,lower").report.warnings
    assert not any("nothing of it runs" in w for w in told)


def test_a_reduction_refuses_a_dimension_that_the_model_does_not_have(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It would otherwise keep the refusal, and reduce the model to nothing."""
    out = tmp_path / "small.onnx"
    assert main(["reduce", str(CNN), "--fails", "--dim", "foo=3", "-o", str(out), "--config", "none"]) == 2
    assert "'foo' is not a symbolic dimension" in capsys.readouterr().err
    assert not out.exists()


@pytest.mark.parametrize("command", ["run", "verify"])
def test_data_goes_by_either_word(command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import numpy as np

    data = tmp_path / "in.npz"
    np.savez(data, image=np.zeros((3, 1, 8, 8), np.float32))
    models = [str(CNN)] * (1 + (command == "verify"))
    said = []
    for word in ("--inputs", "--validation"):
        assert main([command, *models, word, str(data), "--config", "none", "--json"]) == 0
        said.append("validation" in capsys.readouterr().out or command == "run")
    assert said == [True, True]
