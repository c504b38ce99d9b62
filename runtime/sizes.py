"""Sizes as people write them."""

from __future__ import annotations

import re

from memoptc.ir.diagnostics import InputError

_UNITS = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
_UNITS |= {f"{k}IB": v for k, v in list(_UNITS.items()) if k in ("K", "M", "G", "T")}
_UNITS |= {"KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}


def parse_bytes(text: str) -> int:
    """Read a size such as `64MiB`, `1.5GB` or `4096`; K, M, G and T alone are binary.

    Raises:
        ValueError: it is none.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([a-zA-Z]*)\s*", text)
    if match is None or match[2].upper() not in _UNITS:
        if text.strip().endswith("%"):
            raise ValueError(
                f"{text!r} is a share, and no size; `memoptc fits MODEL` says what it is a share of. "
                "Write a size like 64MiB, 1.5GB or 4096"
            )
        raise ValueError(f"{text!r} is no size; write one like 64MiB, 1.5GB or 4096")
    if "." in match[1] and match[2].upper() in ("", "B"):
        raise ValueError(f"{text!r} is no whole number of bytes; write a size with its unit, like {match[1]}GB")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def as_bytes(size: int | str) -> int:
    """Give the bytes that a caller wrote as a number, or as text such as `64MiB`.

    Raises:
        InputError: the text is no size.
    """
    try:
        return parse_bytes(size) if isinstance(size, str) else size
    except ValueError as error:
        raise InputError(f"{error}.") from None


GROWTH = 1.02
"""A ratio of needs up to which they count as equal."""

RESOLUTION = 256 << 10
"""Bytes below which a difference of need says nothing.

The same model in fresh processes differs by up to 250 kB (stacks and heaps of onnxruntime's threads, which pages of its
library are touched): the largest spread of five processes over small models, 10 to 24 MB of need.
"""


PREDICTED = 1 << 20
"""Bytes below which a difference of predicted needs says nothing: pages of code that a kernel touches, for one."""


def grown(before: float, after: float, resolution: int = RESOLUTION) -> bool:
    """True if a need is above another by more than `GROWTH`, and by more than measuring, or predicting, can tell."""
    return after > before + max((GROWTH - 1) * before, resolution)
