"""Random instances of operators: one sampler per family, to hold against onnxruntime what is said of them."""

from memoptc.ir.ops import TABLE
from samplers import contrib, control, layout, numeric, products, windows
from samplers.sample import Instance, Operand, Rng, Sample, Sampler, instance, one

NEW = ("RMSNormalization", "RotaryEmbedding")
"""Operators whose only instances are those of their definition; those of the others have symbols in more places."""


def _of_definition(key: str) -> Sampler:
    """The instances that an operator's definition makes."""

    def sampler(r: Rng) -> Sample:
        found = TABLE[key].sample
        assert found is not None
        made = found(r)
        operands = [a if a is None else Operand(a, weight=i in made.weights) for i, a in enumerate(made.operands)]
        domain, _, name = key.rpartition("::")
        return one(name, operands, opset=made.opset, domain=domain, outputs=made.results, empty=False, **made.attrs)

    sampler.__name__ = key
    return sampler


SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "windows": windows.SAMPLERS,
    "layout": layout.SAMPLERS,
    "numeric": numeric.SAMPLERS,
    "products": products.SAMPLERS,
    "contrib": contrib.SAMPLERS,
    "control": control.SAMPLERS,
    "definitions": tuple(_of_definition(key) for key in NEW),
}

__all__ = ["SAMPLERS", "Instance", "Operand", "Rng", "Sample", "Sampler", "instance"]
