"""Choices of decoder blocks that property tests draw from: fields of `decoders.Style`."""

from __future__ import annotations

from typing import Any

from hypothesis import strategies as st

CHOICES: dict[str, st.SearchStrategy[Any]] = {
    "heads": st.sampled_from([2, 4, 6]),
    "kv": st.sampled_from([1, 2]),
    "width": st.sampled_from([8, 16, 20]),
    "norm": st.sampled_from(["rms", "rms_reciprocal", "layer", "layer_parts"]),
    "rotary": st.sampled_from(["halves", "interleaved", "partial", "table", "none"]),
    "positions": st.sampled_from(["input", "computed", "learned"]),
    "cache": st.sampled_from(["concat", "stacked", "flat"]),
    "symbols": st.sampled_from(["full", "apart", "unnamed"]),
    "gated": st.booleans(),
    "qk_norm": st.booleans(),
    "tied": st.booleans(),
    "scale_keys": st.booleans(),
    "computed": st.booleans(),
    "seed": st.integers(0, 9),
}
