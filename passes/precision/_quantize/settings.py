"""Quantization settings: how scales and codes are chosen, and what is to be coded."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from memoptc.ir.core import Graph
from memoptc.ir.types import DType
from memoptc.pass_base import Pass
from memoptc.passes.precision._quantize.static_choice import Choice, choose
from memoptc.runtime.devices import Device


@dataclass(frozen=True)
class Setting:
    """Setting by which scales and zero points are chosen.

    Args:
        recoveries: Passes that prepare the graph.
        method: Ranges of activations; see `memoptc.runtime.observers`.
        clip: Clip weights where the error of the product is least.
        bias: Correct biases.
        rounding: Round weights for the least error of their products.
        run_time: Let products that read floats find their range in each run.
    """

    recoveries: tuple[Pass, ...] = ()
    method: str = "auto"
    clip: bool = False
    bias: bool = False
    rounding: bool = False
    run_time: bool = False

    def __str__(self) -> str:
        parts = [p.name for p in self.recoveries] + [f"ranges by {self.method}"]
        parts += ["products by the range of each run"] if self.run_time else []
        parts += ["clipped weights"] if self.clip else []
        parts += ["weights rounded by data"] if self.rounding else []
        return ", ".join(parts + (["corrected biases"] if self.bias else []))


@dataclass(frozen=True)
class QuantizationConfig:
    """Quantization configuration of weights, whatever the setting.

    Args:
        dtype: Element type.
        bits: Bits.
        device: What has integer kernels.
        percentile: For the method of that name, in percent.
        excluded: Node names and operators that stay in float.
        embeddings: Also code tables of Gather.
        recurrent: Also code weights of LSTM.
        outputs: Whether outputs shall be codes, too.
        narrow: Names of nodes whose weights can be in blocks of 4 bits.
        weight_only: Names of those among them that have no integer kernel.
        wide: Names of products whose weights, in float activations, are read in blocks of 8 bits.
        tabled: Names of convolutions whose weights, in float activations, are decoded while onnxruntime loads
            them, or, if small, stay as they are.
    """

    dtype: DType
    bits: int
    device: Device
    percentile: float = 99.99
    excluded: frozenset[str] = frozenset()
    embeddings: bool = True
    recurrent: bool = True
    outputs: bool = False
    narrow: frozenset[str] = frozenset()
    weight_only: frozenset[str] = frozenset()
    wide: frozenset[str] = frozenset()
    tabled: frozenset[str] = frozenset()

    def choose(
        self,
        graph: Graph,
        excluded: frozenset[str],
        stats: Counter[str],
        decoded: frozenset[str] = frozenset(),
        run_time: frozenset[str] = frozenset(),
    ) -> Choice:
        """Decide what to quantize in a graph, as `static_choice.choose`."""
        return choose(graph, excluded, stats, self.device, outputs=self.outputs, decoded=decoded, run_time=run_time)
