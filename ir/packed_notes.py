"""Notes of what onnxruntime's kernels packed of a weight ahead, as entries of its external data have them."""

from __future__ import annotations

import re

PACKED_NOTE = "prepacked_"
"""Entries of external data so called, `prepacked_N`, say what onnxruntime's kernels packed of a weight ahead."""
PACKED_PART = re.compile(r"\|(\d+);(\d+);")
"""Where a packed part lies, in the value of such an entry: `OPERATOR+HASH|offset;bytes;checksum|offset;bytes;...`."""
