"""Operators that change the resolution: resize, depth to space, padding."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import numpy as np

from memoptc.ir.core import Op
from memoptc.ir.ops.axis import Along, Axis, Form, axis_of_result, dtype_of, extents, shape
from memoptc.ir.ops.definition import Blocked, IntegerKernel, Operator, also, define
from memoptc.ir.ops.double_resize import resize
from memoptc.ir.ops.parameters import Setting
from memoptc.ir.ops.sample import Rng, Sample, Sampler, floats
from memoptc.ir.ops.sample import extents as drawn_extents
from memoptc.ir.ops.schema import MICROSOFT, default_of
from memoptc.ir.ops.sizes import Sizes
from memoptc.ir.tensors import ints
from memoptc.ir.types import DType


def _resize(op: Op) -> list[Axis]:
    """Nearest and linear, by whole factors up; linear between known extents; every axis that keeps its extent."""
    x, y = extents(op, 0), shape(op.results[0]) or ()
    if len(x) != len(y) or op.attrs.get("axes") or op.attrs.get("antialias"):
        return []
    found = []
    mode = str(default_of(op, "mode") or "nearest")
    where = str(default_of(op, "coordinate_transformation_mode") or "asymmetric")
    if where == "tf_crop_and_resize":
        return []
    factors = [factor_of(op, axis) for axis in range(len(x))]
    for axis, factor in enumerate(factors):
        if factor is None:
            found.extend(_interpolated(op, axis))
        elif factor == 1:
            if mode != "cubic" or all(f == 1 for f in factors):
                found.append(axis_of_result(op, axis, (0, Along(axis)), form=Form.RESIZE, reorders=mode != "nearest"))
        elif mode == "nearest" and _repeats(op, where, factor):
            found.append(axis_of_result(op, axis, (0, Along(axis, 1, factor)), form=Form.RESIZE, grain=factor))
        elif mode in ("linear", "bilinear") and where in ("half_pixel", "pytorch_half_pixel"):
            along = Along(axis, 2, 2 * factor, 1 - factor, 1 + factor)
            found.append(axis_of_result(op, axis, (0, along), form=Form.RESIZE, reorders=True))
        elif mode in ("linear", "bilinear") and where == "asymmetric":
            found.append(
                axis_of_result(op, axis, (0, Along(axis, 1, factor, 0, factor)), form=Form.RESIZE, reorders=True)
            )
        else:
            found.extend(_interpolated(op, axis))
    return found


def _interpolated(op: Op, axis: int) -> list[Axis]:
    """Cut an axis between whose elements a linear resize goes by any step."""
    x, y, places = extents(op, 0)[axis], (shape(op.results[0]) or ())[axis], interpolation(op, axis)
    if places is None or not isinstance(x, int) or not isinstance(y, int):
        return []
    step = Fraction(x, y)
    # One element more than the two neighbours, so that no rounded place lies behind the last.
    exact = (places.stride, places.per, places.low, places.low + 2 * places.per)
    along = Along(axis, step.numerator, step.denominator, exact=exact)
    return [axis_of_result(op, axis, (0, along), form=Form.INTERPOLATED, reorders=True)]


def has_blocked_kernel(op: Op) -> bool:
    """False for a linear resize in a mode for which onnxruntime has no kernel on blocks of channels."""
    linear = op.op_type == "Resize" and str(default_of(op, "mode") or "nearest") == "linear"
    return not linear or str(default_of(op, "coordinate_transformation_mode")) in _BLOCKED_MODES


_BLOCKED_MODES = ("half_pixel", "align_corners", "asymmetric")
"""core/optimizer/nchwc_transformer.cc"""


def as_unblocked(op: Op) -> str | None:
    """The mode that means the same for a linear resize, and for which there is no kernel on blocks of channels.

    Only where onnxruntime would take the kernel on blocks: by whole factors, along two axes, of which one is greater
    than 1. Both modes place elements alike where there are two or more; `None` where there may be one.
    """
    if op.op_type != "Resize" or dtype_of(op, 0) is not DType.FLOAT or len(op.operands) < 3 or op.attrs.get("axes"):
        return None
    if str(default_of(op, "mode") or "nearest") != "linear" or op.attrs.get("antialias"):
        return None
    if str(default_of(op, "coordinate_transformation_mode")) != "half_pixel" or len(extents(op, 0)) != 4:
        return None
    factors = [factor_of(op, axis) for axis in range(4)]
    whole = all(f is not None for f in factors) and factors[:2] == [1, 1] and factors[2:] != [1, 1]
    # An axis by the factor 1 stays as it is, whatever the mode.
    return "pytorch_half_pixel" if whole else None


@dataclass(frozen=True, slots=True)
class Interpolation:
    """Places between which a linear resize interpolates: result element i lies at (i * stride + low) / per."""

    stride: int
    per: int
    low: int

    def source_coordinate(self, i: int) -> Fraction:
        """Coordinate of a result element in the operand, in elements; coordinates outside take the border's element."""
        return Fraction(i * self.stride + self.low, self.per)


def interpolation(op: Op, axis: int) -> Interpolation | None:
    """Places of a linear resize of floats from one known extent to another.

    `None` for other modes, for extents that are known at run time only, and where the image keeps its proportions.
    """
    x, y = extents(op, 0)[axis], (shape(op.results[0]) or ())[axis]
    if op.op_type != "Resize" or len(op.operands) < 3 or dtype_of(op, 0) is not DType.FLOAT:
        return None
    if str(default_of(op, "mode") or "nearest") != "linear" or op.attrs.get("axes") or op.attrs.get("antialias"):
        return None
    if str(default_of(op, "keep_aspect_ratio_policy") or "stretch") != "stretch":
        return None
    if not isinstance(x, int) or not isinstance(y, int) or x < 1 or y < 2:
        return None
    where = str(default_of(op, "coordinate_transformation_mode"))
    if where == "align_corners":
        return Interpolation(x - 1, y - 1, 0)
    scale = Fraction(y, x)
    if op.input(3) is None:
        scales = op.operands[2].tensor
        if scales is None:
            return None
        scale = Fraction(float(scales.numpy().reshape(-1)[axis]))
    if where in ("half_pixel", "pytorch_half_pixel"):
        # (i + 1/2) / scale - 1/2
        return Interpolation(2 * scale.denominator, 2 * scale.numerator, scale.denominator - scale.numerator)
    return Interpolation(scale.denominator, scale.numerator, 0) if where == "asymmetric" else None


def _repeats(op: Op, where: str, factor: int) -> bool:
    """True if each element of the operand is repeated `factor` times, no more at one end than the other."""
    rounding = str(
        default_of(op, "nearest_mode") or "floor" if op.op_type == "Upsample" else default_of(op, "nearest_mode")
    )
    if where == "asymmetric":
        return rounding == "floor" or op.op_type == "Upsample"
    return where in ("half_pixel", "pytorch_half_pixel") and rounding in ("round_prefer_floor", "round_prefer_ceil")


def factor_of(op: Op, axis: int) -> int | None:
    """By what whole number an axis is scaled, where that holds for every extent."""
    x, y = extents(op, 0)[axis], (shape(op.results[0]) or ())[axis]
    scales = op.input(1 if op.op_type == "Upsample" or len(op.operands) == 2 else 2)
    if scales is not None and scales.tensor is not None and scales.tensor.size:
        scale = float(scales.tensor.numpy().reshape(-1)[axis])
        return int(scale) if scale == int(scale) and scale >= 1 else None
    if "scales" in op.attrs:
        scale = float(op.attrs["scales"][axis])
        return int(scale) if scale == int(scale) and scale >= 1 else None
    if x is None or y is None or str(default_of(op, "keep_aspect_ratio_policy") or "stretch") != "stretch":
        return None  # one scale holds for all axes then, and extents are rounded
    if isinstance(x, int) and isinstance(y, int):
        return y // x if x and y % x == 0 and y else None
    for factor in (1, 2, 3, 4, 8):
        if x * factor == y:
            return factor
    return None


def _depth_to_space(op: Op) -> list[Axis]:
    block = int(op.attrs["blocksize"])
    spatial = [axis_of_result(op, i, (0, Along(i, 1, block)), grain=block) for i in (2, 3)]
    return [axis_of_result(op, 0, (0, Along(0))), *spatial]


def _space_to_depth(op: Op) -> list[Axis]:
    block = int(op.attrs["blocksize"])
    return [
        axis_of_result(op, 0, (0, Along(0))),
        *(axis_of_result(op, i, (0, Along(i, block, 1, 0, block - 1))) for i in (2, 3)),
    ]


def _pad(op: Op) -> list[Axis]:
    """Axes that are not padded, and those padded with a constant."""
    x = extents(op, 0)
    rank = len(x)
    amounts = pad_amounts(op, rank)
    if amounts is None or op.input(3) is not None:
        return []
    mode = op.attrs.get("mode", "constant")
    constant = mode in ("constant", b"constant")
    found = []
    for axis in range(rank):
        before, after = amounts[axis], amounts[axis + rank]
        if not before and not after:
            found.append(axis_of_result(op, axis, (0, Along(axis))))
        elif constant and before >= 0 and after >= 0:
            found.append(axis_of_result(op, axis, (0, Along(axis, 1, 1, -before, -before)), form=Form.PADDED))
    return found


def pad_amounts(op: Op, rank: int) -> tuple[int, ...] | None:
    """Amounts that a Pad adds, `None` when they are computed."""
    if "pads" in op.attrs or "paddings" in op.attrs:
        return tuple(op.attrs.get("pads", op.attrs.get("paddings")))
    amounts = op.input(1)
    known = ints(amounts.tensor) if amounts is not None and amounts.tensor is not None else None
    return known if known is not None and len(known) == 2 * rank else None


def _blocks_sample(*, into_space: bool) -> Sampler:
    """Images whose channels, or whose lines and columns, are a multiple of the block."""

    def sample(r: Rng) -> Sample:
        block, n, c, h, w = (int(d) for d in r.integers(1, 4, 5))
        shape = (n, c * block * block, h, w) if into_space else (n, c, h * block, w * block)
        modes = {"mode": str(r.choice(["DCR", "CRD"]))} if into_space else {}
        return Sample((floats(r, *shape),), {"blocksize": block, **modes})

    return sample


def _pad_sample(r: Rng) -> Sample:
    x = floats(r, *drawn_extents(r, 1, 4))
    amounts = r.integers(0, 3, 2 * x.ndim).astype(np.int64)
    if r.random() < 0.5:
        return Sample((x, amounts, np.asarray(0.5, np.float32)), {"mode": "constant"}, frozenset({1, 2}))
    return Sample((x, amounts), {"mode": "edge"}, frozenset({1}))


def _positions(s: Sizes) -> int:
    """Positions and weights per line and column (tensor/upsample.cc)."""
    if s.op.attrs.get("mode") != "linear" or s.op.attrs.get("antialias"):
        return 0
    changed = [b for a, b in zip(s.operand(0), s.result, strict=True) if a != b]
    return {2: 16, 3: 24}.get(len(changed), 0) * sum(changed)


OPERATORS: tuple[Operator, ...] = (
    *define(
        "Resize",
        space=_resize,
        integer=IntegerKernel.FIRST_OPERAND,
        workspace=_positions,
        double=resize,
        float32_operands=(1, 2),
    ),
    *define("Upsample", space=_resize, workspace=_positions, float32_operands=(1,)),
    *define(
        "DepthToSpace",
        space=_depth_to_space,
        moves=True,
        integer=IntegerKernel.FIRST_OPERAND,
        sample=_blocks_sample(into_space=True),
    ),
    *define("SpaceToDepth", space=_space_to_depth, moves=True, sample=_blocks_sample(into_space=False)),
    *define("Pad", space=_pad, sample=_pad_sample),
    *define("AffineGrid CenterCropPad Col2Im Crop ImageDecoder"),
    *define("ImageScaler", types_like=("Identity", 1)),
    *define("GridSample", unchecked_ranks=True),
    *define("CropAndResize", MICROSOFT),
)
OPERATORS = also(OPERATORS, "Resize Upsample", blocked=Blocked.ALWAYS)
OPERATORS = also(OPERATORS, "Pad Resize Upsample", ort_forgets_symbols=True)
OPERATORS = also(OPERATORS, "Resize", parameters={2: Setting((1.0,)), 3: Setting((1.0,), as_operand=True)})
OPERATORS = also(OPERATORS, "Upsample", parameters={1: Setting((1.0,))})
OPERATORS = also(OPERATORS, "Pad", parameters={1: Setting((0,))})
OPERATORS = also(OPERATORS, "GridSample", equal_extents=(((0, 0), (1, 0)),))
OPERATORS = also(OPERATORS, "CropAndResize", MICROSOFT, equal_extents=(((1, 0), (2, 0)),))
