"""Large models, built by script: 50,000 nodes, and 3 GB of external weights.

python benchmarks/models.py chain50k OUT.onnx
python benchmarks/models.py external3g OUT.onnx
"""

from __future__ import annotations

from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper


def chain50k(path: Path, nodes: int = 50_000) -> None:
    """Element-wise chains with skip connections, small products, Constant nodes, and some Ifs.

    Args:
        path: File to write.
        nodes: About how many nodes, those in subgraphs counted.
    """
    rng = np.random.default_rng(0)
    made: list[onnx.NodeProto] = []
    weights = [
        numpy_helper.from_array(rng.standard_normal((8, 8)).astype(np.float32) * 0.3, f"w{i}") for i in range(64)
    ]
    weights.append(numpy_helper.from_array(np.array(True), "yes"))
    last, skip, count, block = "x", "x", 0, 0
    while count < nodes - 10:
        block += 1
        tag = f"b{block}"
        made += [
            helper.make_node("MatMul", [last, f"w{block % 64}"], [f"{tag}_p"], name=f"{tag}/MatMul"),
            helper.make_node(
                "Constant",
                [],
                [f"{tag}_c"],
                name=f"{tag}/Constant",
                value=numpy_helper.from_array(np.float32(0.1 + block % 7)),
            ),
            helper.make_node("Add", [f"{tag}_p", f"{tag}_c"], [f"{tag}_a"], name=f"{tag}/Add"),
            helper.make_node("Tanh", [f"{tag}_a"], [f"{tag}_t"], name=f"{tag}/Tanh"),
            helper.make_node("Add", [f"{tag}_t", skip], [f"{tag}_s"], name=f"{tag}/Skip"),
            helper.make_node("Identity", [f"{tag}_s"], [f"{tag}_i"], name=f"{tag}/Identity"),
            helper.make_node("Sigmoid", [f"{tag}_i"], [f"{tag}_o"], name=f"{tag}/Sigmoid"),
        ]
        count += 7
        last, skip = f"{tag}_o", f"{tag}_t"
        if block % 100 == 0:
            made.append(_branch(tag, last))
            count += 3
            last = f"{tag}_if"
    graph = helper.make_graph(
        made,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", 8])],
        weights,
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def _branch(tag: str, value: str) -> onnx.NodeProto:
    def body(name: str, op: str) -> onnx.GraphProto:
        output = helper.make_tensor_value_info(f"{tag}_{name}", TensorProto.FLOAT, ["N", 8])
        return helper.make_graph([helper.make_node(op, [value], [f"{tag}_{name}"])], name, [], [output])

    return helper.make_node(
        "If",
        ["yes"],
        [f"{tag}_if"],
        name=f"{tag}/If",
        then_branch=body("then", "Relu"),
        else_branch=body("else", "Neg"),
    )


def external3g(path: Path, layers: int = 12, width: int = 8192) -> None:
    """MatMul layers with external float32 weights, 256 MB each, written one at a time.

    Args:
        path: Model file; the weights go to `PATH.data`.
        layers: How many.
        width: Rows and columns of a weight.
    """
    data = path.with_name(f"{path.name}.data")
    size = width * width * 4
    weights, nodes, last = [], [], "x"
    with open(data, "wb") as file:
        for layer in range(layers):
            rng = np.random.default_rng(layer)
            for _ in range(width // 512):
                block = rng.standard_normal((512, width), dtype=np.float32) / np.float32(np.sqrt(width))
                file.write(block.tobytes())
            tensor = TensorProto(name=f"w{layer}", data_type=TensorProto.FLOAT, dims=[width, width])
            tensor.data_location = TensorProto.EXTERNAL
            for key, value in (("location", data.name), ("offset", layer * size), ("length", size)):
                tensor.external_data.add(key=key, value=str(value))
            weights.append(tensor)
            nodes.append(helper.make_node("MatMul", [last, f"w{layer}"], [f"p{layer}"], name=f"MatMul_{layer}"))
            nodes.append(helper.make_node("Identity", [f"p{layer}"], [f"i{layer}"], name=f"Identity_{layer}"))
            nodes.append(helper.make_node("Tanh", [f"i{layer}"], [f"t{layer}"], name=f"Tanh_{layer}"))
            last = f"t{layer}"
    graph = helper.make_graph(
        nodes,
        "wide",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info(last, TensorProto.FLOAT, ["N", width])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    path.write_bytes(model.SerializeToString())


BUILDERS = {"chain50k": chain50k, "external3g": external3g}


@click.command(help=__doc__)
@click.argument("name", type=click.Choice(list(BUILDERS)))
@click.argument("path", type=click.Path(path_type=Path))
def main(name: str, path: Path) -> None:
    """Build one model."""
    BUILDERS[name](path)


if __name__ == "__main__":
    main()
