"""Random instances of operators to hold against onnxruntime what is said of them: those of the definitions, and more.

The families here draw what the `sample` of a definition does not: operators without one, attributes of old versions of
ONNX, empty operands.
"""

import numpy as np

from memoptc.ir.ops import TABLE
from samplers import contrib, control, layout, numeric, products, windows
from samplers.sample import Array, Instance, Operand, Rng, Sample, Sampler, instance, one


def _of_definition(key: str) -> Sampler:
    """The instances that an operator's definition draws, in any version of ONNX that has the operator.

    Constants of whole numbers say what the operator does: they come as weights, as inputs, or as shapes of others.
    """

    def sampler(r: Rng) -> Sample:
        draw = TABLE[key].sampler
        assert draw is not None
        made = draw(r)
        operands = [None if a is None else _operand(a, constant=i in made.weights) for i, a in enumerate(made.operands)]
        domain, _, name = key.rpartition("::")
        opset = made.opset if r.random() < 0.5 else int(r.integers(9, made.opset + 1))
        return one(name, operands, opset=opset, domain=domain, outputs=made.results, empty=False, **made.attrs)

    sampler.__name__ = key
    return sampler


def _operand(array: Array, *, constant: bool) -> Operand:
    whole = constant and array.dtype == np.int64
    return Operand(array, weight=constant and not whole, param=whole)


SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "windows": windows.SAMPLERS,
    "layout": layout.SAMPLERS,
    "numeric": numeric.SAMPLERS,
    "products": products.SAMPLERS,
    "contrib": contrib.SAMPLERS,
    "control": control.SAMPLERS,
    "definitions": tuple(_of_definition(key) for key, known in sorted(TABLE.items()) if known.sampler is not None),
}

__all__ = ["SAMPLERS", "Instance", "Operand", "Rng", "Sample", "Sampler", "instance"]
