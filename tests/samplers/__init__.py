"""Random instances of operators: one sampler per family, to hold against onnxruntime what is said of them."""

from samplers import contrib, control, layout, numeric, products, windows
from samplers.sample import Instance, Operand, Rng, Sample, Sampler, instance

SAMPLERS: dict[str, tuple[Sampler, ...]] = {
    "windows": windows.SAMPLERS,
    "layout": layout.SAMPLERS,
    "numeric": numeric.SAMPLERS,
    "products": products.SAMPLERS,
    "contrib": contrib.SAMPLERS,
    "control": control.SAMPLERS,
}

__all__ = ["SAMPLERS", "Instance", "Operand", "Rng", "Sample", "Sampler", "instance"]
