"""Export `modules.py` and the decoders of `language.py` by both of torch's exporters, with inputs to try them with.

    python benchmarks/exporters/export.py FOLDER [--only NAME ...] [--by dynamo --by script] [--wide 1]

needs torch, onnx and onnxscript (transformers, too, for decoders). Each model is `NAME.BY.SHAPES.DTYPE.onnx` in FOLDER,
with a `.json` beside it: input names, dtypes, extents with symbols, contents, sizes; `judge.py` makes feeds from that.
What an exporter itself refuses is named and left out.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch
from cases import Case, Input
from modules import MODULES

warnings.filterwarnings("ignore")
torch.backends.mha.set_fastpath_enabled(False)  # its operator is none that torch.onnx knows


def extent(dim: int | str, size: dict[str, int]) -> int:
    """Value of an extent such as `8*h` or `P+T`."""
    if isinstance(dim, int):
        return dim
    return sum(_product(term, size) for term in dim.split("+"))


def _product(term: str, size: dict[str, int]) -> int:
    value = 1
    for part in term.split("*"):
        value *= int(part) if part.isdigit() else size[part]
    return value


def example(given: Input, size: dict[str, int], dtype: torch.dtype) -> torch.Tensor:
    """An input of a size."""
    shape = [extent(d, size) for d in given.dims]
    if given.kind.startswith("ids:"):
        return torch.randint(0, int(given.kind[4:]), shape)
    if given.kind in ("mask", "ones"):
        return torch.ones(shape, dtype=torch.int64)
    if given.kind == "bool":
        return torch.ones(shape, dtype=torch.bool)
    if given.kind == "positions":
        return (torch.arange(shape[-1]) + size.get("P", 0)).expand(shape).contiguous()
    return torch.randn(shape, dtype=dtype)


def axes(given: Input) -> dict[int, str]:
    """Axes that vary, with names that ONNX takes."""
    return {i: re.sub(r"\W", "_", d).lower() for i, d in enumerate(given.dims) if isinstance(d, str)}


def export(case: Case, path: Path, *, by: str, dynamic: bool, dtype: torch.dtype, external: bool = False) -> None:
    """Write one model, or raise what the exporter raises."""
    module = case.module.to(dtype)
    given = tuple(example(i, case.sizes[0], dtype) for i in case.inputs)
    names = [i.name for i in case.inputs]
    with torch.no_grad():
        if by == "script":
            dims = {i.name: axes(i) for i in case.inputs} | case.free
            torch.onnx.export(
                module, given, path, dynamo=False, input_names=names, output_names=case.outputs, opset_version=17,
                dynamic_axes={k: v for k, v in dims.items() if v} if dynamic else None,
            )  # fmt: skip
            return
        shapes: tuple[Any, ...] = tuple({k: torch.export.Dim.DYNAMIC for k in axes(i)} for i in case.inputs)
        if leading := getattr(case.module, "leading", 0):  # the rest is one argument, *past
            shapes = (*shapes[:leading], shapes[leading:])
        program = torch.onnx.export(
            module, given, dynamo=True, input_names=names, output_names=case.outputs, verbose=False,
            dynamic_shapes=shapes if dynamic else None,
        )  # fmt: skip
        program.save(path, external_data=external)


def described(case: Case, dynamic: bool, dtype: torch.dtype) -> dict[str, Any]:
    """What `judge.py` makes feeds from."""
    kind = "float16" if dtype == torch.float16 else "float32"
    types = {"normal": kind, "bool": "bool"}
    return {
        "inputs": [{"name": i.name, "dtype": types.get(i.kind, "int64"), "dims": i.dims, "kind": i.kind}
                   for i in case.inputs],
        "sizes": case.sizes if dynamic else case.sizes[:1],
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--by", nargs="*", default=["dynamo", "script"])
    parser.add_argument("--shapes", nargs="*", default=["dynamic", "fixed"])
    parser.add_argument("--dtypes", nargs="*", default=["f32", "f16"])
    parser.add_argument("--wide", type=float, default=1.0)
    parser.add_argument("--language", action="store_true", help="the decoders of language.py in place of modules.py")
    given = parser.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    builders = MODULES
    if given.language:
        from language import DECODERS

        builders = DECODERS
    for name in given.only or builders:
        for dtype_name in given.dtypes:
            dtype = {"f32": torch.float32, "f16": torch.float16}[dtype_name]
            for by in given.by:
                for shapes in given.shapes:
                    torch.manual_seed(0)
                    case = builders[name](given.wide)
                    if dtype == torch.float16 and not case.half:
                        continue
                    suffix = "" if given.wide == 1 else ".wide"
                    path = given.folder / f"{name}{suffix}.{by}.{shapes}.{dtype_name}.onnx"
                    try:
                        export(case, path, by=by, dynamic=shapes == "dynamic", dtype=dtype, external=given.wide > 1)
                    except Exception as error:
                        print(f"{path.name}: exporter refuses: {type(error).__name__}: {str(error).splitlines()[0]}")
                        if "-v" in sys.argv:
                            traceback.print_exc()
                        continue
                    path.with_suffix(".json").write_text(json.dumps(described(case, shapes == "dynamic", dtype)))
                    print(path.name, path.stat().st_size, flush=True)


if __name__ == "__main__":
    main()
