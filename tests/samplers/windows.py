"""Samplers of operators that slide a window, and of those that change the size of images."""

from __future__ import annotations

from typing import Any

import numpy as np

from samplers.sample import (
    Rng,
    Sample,
    Sampler,
    extent,
    extents,
    fixed,
    floats,
    maybe,
    one,
    param,
    pick,
    weight,
    whole,
)


def _many(r: Rng, rank: int, *choices: int) -> list[int]:
    return [int(r.choice(choices)) for _ in range(rank)]


def _pads(r: Rng, rank: int, most: int = 2) -> dict[str, Any]:
    """Padding in one of the four ways to say it."""
    way = pick(r, "none", "pads", "pads", "SAME_UPPER", "SAME_LOWER", "VALID")
    if way == "none":
        return {}
    return {"pads": [int(r.integers(0, most + 1)) for _ in range(2 * rank)]} if way == "pads" else {"auto_pad": way}


def _window(r: Rng, rank: int) -> tuple[list[int], dict[str, Any]]:
    kernel = _many(r, rank, 1, 2, 3, 3, 4, 5)
    return kernel, {"strides": maybe(r, _many(r, rank, 1, 2, 3)), "dilations": maybe(r, _many(r, rank, 1, 2, 3))}


def conv(r: Rng) -> Sample:
    rank, group = int(r.integers(1, 4)), pick(r, 1, 1, 2)
    kernel, attrs = _window(r, rank)
    shape = (extent(r), 2 * group, *(max(k, 1) * 2 + extent(r) for k in kernel))
    w = floats(r, 3 * group, 2, *kernel)
    bias = maybe(r, weight(floats(r, 3 * group)))
    given = maybe(r, kernel)
    if r.random() < 0.2:
        x8, w8 = whole(r, 0, 255, *shape, dtype=np.uint8), whole(r, 0, 255, *w.shape, dtype=np.uint8)
        return one(
            "ConvInteger", [x8, weight(w8)], group=group, kernel_shape=given, **attrs, **_pads(r, rank), empty=False
        )
    opset = pick(r, 9, 11, 18, 22)
    return one(
        "Conv",
        [floats(r, *shape), weight(w) if r.random() < 0.7 else w, bias],
        opset=opset,
        group=group,
        kernel_shape=given,
        **attrs,
        **_pads(r, rank),
        empty=False,
    )


def conv_transpose(r: Rng) -> Sample:
    rank, group = int(r.integers(1, 3)), pick(r, 1, 1, 2)
    kernel, attrs = _window(r, rank)
    pads = _pads(r, rank, 1)
    x = floats(r, 1 + extent(r), 2 * group, *(1 + extent(r) for _ in kernel))
    strides = attrs["strides"] or [1] * rank
    more: dict[str, Any] = {}
    if r.random() < 0.4:
        more["output_padding"] = [int(r.integers(0, s)) for s in strides]
    elif r.random() < 0.3:
        pads.pop("pads", None)
        more["output_shape"] = [s * e + int(r.integers(0, 3)) for s, e in zip(strides, x.shape[2:], strict=True)]
    return one(
        "ConvTranspose",
        [x, weight(floats(r, 2 * group, 3, *kernel))],
        opset=pick(r, 9, 11, 22),
        group=group,
        kernel_shape=maybe(r, kernel),
        **attrs,
        **pads,
        **more,
        empty=False,
    )


def pool(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    kernel, attrs = _window(r, rank)
    op_type = pick(r, "MaxPool", "MaxPool", "AveragePool", "LpPool")
    opset = pick(r, 8, 10, 11, 12, 18, 19, 21, 22)
    since = {"MaxPool": 10, "AveragePool": 19, "LpPool": 18}[op_type]
    if opset < since:
        attrs.pop("dilations")
    ceil = int(r.random() < 0.4) if opset >= (18 if op_type == "LpPool" else 10) else None
    pads = _pads(r, rank, min(kernel) - 1)
    shape = (extent(r), 1 + extent(r), *(int(r.integers(1, 12)) for _ in kernel))
    outputs = 2 if op_type == "MaxPool" and opset >= 8 and r.random() < 0.3 else 1
    return one(
        op_type, [floats(r, *shape)], opset=opset, outputs=outputs, kernel_shape=kernel, ceil_mode=ceil, **attrs, **pads
    )


def pool_of_bytes(r: Rng) -> Sample:
    kernel, attrs = _window(r, 2)
    x = whole(r, 0, 255, 1, 2, extent(r) + 2, extent(r) + 2, dtype=np.uint8)
    return one("MaxPool", [x], opset=12, kernel_shape=kernel, ceil_mode=int(r.integers(2)), **attrs, **_pads(r, 2, 0))


def unpool(r: Rng) -> Sample:
    h, w = 1 + extent(r), 1 + extent(r)
    x = floats(r, 1, 1, h, w)
    places = np.asarray(r.permutation(4 * h * w)[: h * w], np.int64).reshape(x.shape)
    shape = maybe(r, param(1, 1, 2 * h + 1, 2 * w), 0.4)
    return one("MaxUnpool", [x, places, shape], kernel_shape=[2, 2], strides=[2, 2], pads=maybe(r, [0, 0, 0, 0]))


def resize(r: Rng) -> Sample:
    rank = int(r.integers(2, 5))
    x = floats(r, *(1 + extent(r) for _ in range(rank - 2)), 3 + extent(r), 3 + 4 * extent(r))
    opset = pick(r, 10, 11, 13, 18, 19, 21)
    scales = np.ones(rank, np.float32)
    scales[-2:] = [pick(r, 0.3, 0.6, 0.7, 1.0, 1.3, 1.5, 2.0, 2.6, 1 / 3, float(r.uniform(0.2, 3))) for _ in range(2)]
    mode = pick(r, "nearest", "linear") if rank == 4 or opset >= 11 else "nearest"
    if rank == 3 and mode == "linear":
        mode = "nearest"
    if opset == 10:
        return one("Resize", [x, weight(scales) if r.random() < 0.7 else fixed(scales)], opset=10, mode=mode)
    attrs: dict[str, Any] = {"mode": mode, "coordinate_transformation_mode": maybe(r, "asymmetric")}
    roi = weight(np.zeros(0, np.float32)) if opset < 13 else None
    if opset >= 18 and r.random() < 0.4:
        attrs["axes"] = pick(r, [rank - 2, rank - 1], [-2, -1], [-1, -2], [rank - 1])
        scales = scales[-len(attrs["axes"]) :]
    if r.random() < 0.5:
        return one("Resize", [x, roi, weight(scales)], opset=opset, **attrs)
    if "axes" in attrs:
        sizes = [int(r.integers(1, 9)) for _ in attrs["axes"]]
        attrs["keep_aspect_ratio_policy"] = maybe(r, pick(r, "not_larger", "not_smaller", "stretch"))
    else:
        sizes = [*x.shape[:-2], int(r.integers(1, 12)), int(r.integers(1, 12))]
    none = None if opset >= 13 else weight(np.zeros(0, np.float32))
    return one("Resize", [x, roi, none, param(*sizes)], opset=opset, **attrs)


def upsample(r: Rng) -> Sample:
    x = floats(r, 1 + extent(r), 1, 2 + extent(r), 5 * extent(r) + 1)
    scales = [1.0, 1.0, *(pick(r, 1.0, 1.3, 2.0, 2.6, 1.7, float(r.uniform(1, 3))) for _ in range(2))]
    mode = pick(r, "nearest", "linear")
    if r.random() < 0.5:
        return one("Upsample", [x], opset=7, scales=scales, mode=mode)
    return one("Upsample", [x, weight(np.asarray(scales, np.float32))], opset=9, mode=mode)


def depth_space(r: Rng) -> Sample:
    block = pick(r, 1, 2, 3)
    n, c, h, w = 1 + extent(r), 1 + extent(r) % 4, 1 + extent(r), 1 + extent(r)
    if r.random() < 0.5:
        x = floats(r, n, c * block * block, h, w)
        return one("DepthToSpace", [x], opset=pick(r, 11, 13), blocksize=block, mode=maybe(r, pick(r, "DCR", "CRD")))
    return one("SpaceToDepth", [floats(r, n, c, h * block, w * block)], blocksize=block)


def center_crop_pad(r: Rng) -> Sample:
    rank = int(r.integers(1, 4))
    axes = maybe(r, [int(a) for a in r.permutation(rank)[: int(r.integers(1, rank + 1))]])
    sizes = [int(r.integers(1, 8)) for _ in (axes or range(rank))]
    if axes is not None and r.random() < 0.5:
        axes = [a - rank for a in axes]
    return one("CenterCropPad", [floats(r, *extents(r, rank)), param(*sizes)], axes=axes)


def grid_sample(r: Rng) -> Sample:
    n, h, w = 1 + extent(r), 1 + extent(r), 1 + extent(r)
    x = floats(r, n, 2, 3, 4)
    return one("GridSample", [x, floats(r, n, h, w, 2)], opset=pick(r, 16, 20), align_corners=maybe(r, 1), empty=False)


def affine_grid(r: Rng) -> Sample:
    spatial, n = pick(r, 2, 3), 1 + extent(r) % 4
    size = [n, 2, *(1 + extent(r) for _ in range(spatial))]
    return one("AffineGrid", [floats(r, n, spatial, spatial + 1), param(*size)], opset=20, align_corners=maybe(r, 1))


def col2im(r: Rng) -> Sample:
    image, block = [int(r.integers(3, 6)) for _ in range(2)], [int(r.integers(1, 4)) for _ in range(2)]
    windows = [i - b + 1 for i, b in zip(image, block, strict=True)]
    x = floats(r, 1 + extent(r), 2 * block[0] * block[1], windows[0] * windows[1])
    return one("Col2Im", [x, param(*image), param(*block)])


def rois(r: Rng) -> Sample:
    x, count = floats(r, 2, 1 + extent(r), 6, 7), 1 + extent(r)
    boxes = np.sort(np.asarray(r.uniform(0, 5, (count, 4)), np.float32), axis=1)
    if r.random() < 0.4:
        with_batch = np.concatenate([np.zeros((count, 1), np.float32), boxes], axis=1)
        return one("MaxRoiPool", [x, with_batch], pooled_shape=[int(r.integers(1, 4)), 2], empty=False)
    return one(
        "RoiAlign",
        [x, boxes, whole(r, 0, 2, count)],
        opset=pick(r, 10, 16),
        output_height=maybe(r, 3),
        output_width=maybe(r, 2),
        sampling_ratio=maybe(r, 2),
        mode=maybe(r, "max"),
        empty=False,
    )


def deform_conv(r: Rng) -> Sample:
    kernel, pads = [int(r.integers(1, 4)) for _ in range(2)], [int(r.integers(0, 2)) for _ in range(4)]
    h, w = 4 + extent(r), 4 + extent(r)
    strides = [int(r.integers(1, 3)) for _ in range(2)]
    out = [
        (e + pads[i] + pads[i + 2] - k) // s + 1
        for i, (e, k, s) in enumerate(zip((h, w), kernel, strides, strict=True))
    ]
    x, weights = floats(r, 2, 2, h, w), floats(r, 3, 2, *kernel)
    offset = floats(r, 2, 2 * kernel[0] * kernel[1], *out)
    return one("DeformConv", [x, weight(weights), offset], opset=19, pads=pads, strides=strides, empty=False)


SAMPLERS: tuple[Sampler, ...] = (
    conv,
    conv_transpose,
    pool,
    pool,
    pool_of_bytes,
    unpool,
    resize,
    resize,
    upsample,
    depth_space,
    center_crop_pad,
    grid_sample,
    affine_grid,
    col2im,
    rois,
    deform_conv,
)
