"""Other quantizers of ONNX models, one call each in a process of its own; needs none of memoptc.

    python benchmarks/quantizer_tools.py                                     # the tools whose packages are here
    python benchmarks/quantizer_tools.py TOOL MODEL.onnx OUT.onnx FEEDS      # run one, on a folder of .npz

`benchmarks/quantizers.py` calls it, with another interpreter where one is given: peers ask for versions of numpy and
onnx of their own, and torch. Each runs as its documentation shows, with its own defaults, except that all weight-only
forms take 4 bits in blocks of 32 (or what is said), and the tables of Gather where the tool can code them.
"""

from __future__ import annotations

import importlib.util
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx

Feed = dict[str, Any]
Tool = Callable[[Path, Path, list[Feed], Path], None]

BLOCK = 32


class Reader:
    """Samples in the form that onnxruntime's calibration takes."""

    def __init__(self, feeds: list[Feed]) -> None:
        self.feeds = feeds
        self.rewind()

    def get_next(self) -> Feed | None:
        """Give the next sample."""
        return next(self._rest, None)

    def rewind(self) -> None:
        """Begin again."""
        self._rest = iter(self.feeds)


def ort_static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Quantize as onnxruntime's static form does, with its pre-processing."""
    from onnxruntime.quantization import quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = folder / "prepared.onnx"
    try:
        quant_pre_process(str(source), str(prepared))
    except Exception:  # symbolic shape inference gives up on some models
        quant_pre_process(str(source), str(prepared), skip_symbolic_shape=True)
    quantize_static(str(prepared), str(output), Reader(feeds))


def ort_dynamic(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Quantize activations at run time."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(source), str(output))


def _nbits(algorithm: str, source: Path, output: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    both: Any = {"op_types_to_quantize": ("MatMul", "Gather"), "quant_axes": (("MatMul", 0), ("Gather", 1))}
    products: Any = {"op_types_to_quantize": ("MatMul",)}
    config: Any
    if algorithm == "rtn":
        config = nbits.DefaultWeightOnlyQuantConfig(block_size=BLOCK, is_symmetric=False, **both)
    elif algorithm == "hqq":
        config = nbits.HQQWeightOnlyQuantConfig(block_size=BLOCK, bits=4, **products)
    else:
        config = nbits.KQuantWeightOnlyQuantConfig(**products)
    work = nbits.MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, algo_config=config)
    work.process()
    work.model.save_model_to_file(str(output), False)


def ort_rtn(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Round blocks plainly, with zero points."""
    _nbits("rtn", source, output)


def ort_hqq(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Half-quadratic quantization (Badri and Shaji, 2023)."""
    _nbits("hqq", source, output)


def ort_kquant(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """k-quant scales, as llama.cpp searches them."""
    _nbits("k_quant", source, output)


def _intel(config: str, source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    from onnx_neural_compressor import data_reader
    from onnx_neural_compressor.quantization import config as configs
    from onnx_neural_compressor.quantization import quantize

    class Given(Reader, data_reader.CalibrationDataReader):
        """The same samples, as an instance of what is asked for."""

    if config == "static":
        made = configs.StaticQuantConfig(calibration_data_reader=Given(feeds))
        quantize(str(source), str(folder / "parts.onnx"), made)
        onnx.save(onnx.load(folder / "parts.onnx"), output)
        return
    from onnx_neural_compressor.quantization import algorithm_entry

    made = getattr(configs, f"{config}Config")(weight_sym=False, weight_group_size=BLOCK)
    entry = getattr(algorithm_entry, f"{config.lower()}_quantize_entry")
    data = () if config == "RTN" else (Given(feeds),)
    onnx.save(entry(str(source), made, *data), output)


def intel_static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Quantize as Intel's static form does."""
    _intel("static", source, output, feeds, folder)


def intel_rtn(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Round blocks plainly."""
    _intel("RTN", source, output, feeds, folder)


def intel_awq(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Scale channels by activations (Lin et al., 2023)."""
    _intel("AWQ", source, output, feeds, folder)


def intel_gptq(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Round by second moments (Frantar et al., 2022)."""
    _intel("GPTQ", source, output, feeds, folder)


def nncf_static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Quantize as NNCF's default preset does."""
    import nncf

    onnx.save(nncf.quantize(onnx.load(source), nncf.Dataset(feeds), subset_size=len(feeds)), output)


def onnxsim_static(source: Path, output: Path, feeds: list[Feed], folder: Path) -> None:
    """Quantize as onnxsim's static form does, simplified afterwards."""
    import onnxsim

    onnx.save(onnxsim.simplify(onnxsim.quantize_static(str(source), calibration_data=feeds))[0], output)


TOOLS: dict[str, tuple[str, Tool]] = {
    "ort static": ("onnxruntime", ort_static),
    "ort dynamic": ("onnxruntime", ort_dynamic),
    "ort RTN 4": ("onnxruntime", ort_rtn),
    "ort HQQ 4": ("torch", ort_hqq),
    "ort k-quant 4": ("onnxruntime", ort_kquant),
    "intel static": ("onnx_neural_compressor", intel_static),
    "intel RTN 4": ("onnx_neural_compressor", intel_rtn),
    "intel AWQ 4": ("onnx_neural_compressor", intel_awq),
    "intel GPTQ 4": ("onnx_neural_compressor", intel_gptq),
    "nncf static": ("nncf", nncf_static),
    "onnxsim static": ("onnxsim", onnxsim_static),
}
"""Each with the package that it needs beside onnxruntime."""


def main(arguments: list[str]) -> None:
    """List the tools, or run one."""
    if not arguments:
        for tool, (package, _) in TOOLS.items():
            if importlib.util.find_spec(package) is not None:
                print(tool)
        return
    tool, source, output, data = arguments
    feeds = []
    for file in sorted(Path(data).glob("*.npz")):
        with np.load(file) as arrays:
            feeds.append(dict(arrays))
    with tempfile.TemporaryDirectory() as folder:
        TOOLS[tool][1](Path(source), Path(output), feeds, Path(folder))


if __name__ == "__main__":
    main(sys.argv[1:])
