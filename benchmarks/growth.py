"""A model that grows: one formula over the symbolic dimension against planned and recorded peaks.

    python benchmarks/growth.py [MODEL --dim N=128,256,...]

Without a model: attention over 128 to 4096 tokens (4 heads, 64 wide) and a U-Net at 128² to 1024² (the zoo's, where it
is). The formula is what is alive at the largest size's peak; it is evaluated at every size. Where another step is the
peak at a small size, the formula is below the plan there.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

import click
import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper
from rich.console import Console
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
import zoo

from memoptc.cli.options import Parsed
from memoptc.ir.dims import substitute
from memoptc.ir.infer import infer_shapes
from memoptc.ir.onnx_io import read_onnx
from memoptc.option_fields import parse_bindings
from memoptc.runtime.configuration import AS_WRITTEN
from memoptc.runtime.profile import AS_PLANNED, bind_shapes, make_feed, profile, record


def attention(path: Path, heads: int = 4, depth: int = 64) -> None:
    """Write scaled dot-product attention over a symbolic number of tokens."""
    shape = [1, heads, "tokens", depth]
    nodes = [
        helper.make_node("Transpose", ["k"], ["kt"], perm=[0, 1, 3, 2], name="transpose"),
        helper.make_node("MatMul", ["q", "kt"], ["scores"], name="scores"),
        helper.make_node("Mul", ["scores", "scale"], ["scaled"], name="scale"),
        helper.make_node("Softmax", ["scaled"], ["weights"], axis=-1, name="softmax"),
        helper.make_node("MatMul", ["weights", "v"], ["y"], name="mix"),
    ]
    ports = {n: helper.make_tensor_value_info(n, TensorProto.FLOAT, shape) for n in "qkvy"}
    scale = numpy_helper.from_array(np.array(depth**-0.5, np.float32), "scale")
    graph = helper.make_graph(nodes, "attention", [ports[n] for n in "qkv"], [ports["y"]], [scale])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)


def show(path: Path, points: list[dict[str, int]], console: Console) -> None:
    """Print one line per size."""
    graph = read_onnx(path)
    infer_shapes(graph)
    found = []
    for dims in points:
        feed = make_feed(graph, path, dims)
        point = profile(graph, bind_shapes(graph, feed), configuration=AS_WRITTEN)
        found.append((point, record(path, feed, AS_PLANNED, runs=1)))
    formula = found[-1][0].formula
    table = Table("sizes", "formula MB", "planned MB", "recorded MB", title=f"{path.name}: {formula} bytes")
    for point, recorded in found:
        value = None if formula is None else substitute(formula, point.dims)
        table.add_row(
            ", ".join(f"{k}={v}" for k, v in point.dims.items()),
            f"{value / 1e6:.3f}" if isinstance(value, int) else "",
            f"{point.planned_peak_bytes / 1e6:.3f}",
            f"{recorded.run_peak_bytes / 1e6:.3f}",
        )
    console.print(table)


@click.command(help=__doc__)
@click.argument("model", required=False, type=click.Path(path_type=Path))
@click.option("--dim", "dims", multiple=True, type=Parsed(parse_bindings, "extents"))
def main(model: Path | None, dims: tuple[tuple[str, tuple[int, ...]], ...]) -> None:
    """Run the benchmark."""
    console = Console(width=150)
    if model is not None:
        if not dims:
            raise click.UsageError("Which extents grow, and how? Add --dim N=128,256.")
        names = [name for name, _ in dims]
        sizes = zip(*(extents for _, extents in dims), strict=True)
        show(model, [dict(zip(names, extents, strict=True)) for extents in sizes], console)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "attention.onnx"
        attention(path)
        show(path, [{"tokens": n} for n in (128, 256, 512, 1024, 2048, 4096)], console)
    if zoo.ZOO is not None:
        sizes = [{"batch": 1, "height": n, "width": n} for n in (128, 256, 512, 1024)]
        show(Path(zoo.ZOO.path("unet_dynamic")), sizes, console)


if __name__ == "__main__":
    main()
