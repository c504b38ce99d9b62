"""A session under load: every call ends in its own numbers or its own error, nothing grows, and exit is clean."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from native_models import usable

SOAK = Path(__file__).resolve().parent.parent.parent / "benchmarks" / "soak.py"
MOST_GROWTH = 4 << 20
"""Bytes of resident memory from the second thousand calls to the last."""

pytestmark = pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")


def soak(tier: str, calls: int) -> dict[str, Any]:
    command = [sys.executable, SOAK, "--tier", tier, "--calls", str(calls), "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["faults"] == []
    assert sum(found["outcomes"].values()) == calls
    assert all(code == 0 for code in found["forks"])
    assert found["exit"] == 0
    return found


@pytest.mark.parametrize("tier", ["arena", "planned"])
def test_every_call_ends_as_it_should(tier: str) -> None:
    assert {"right: numbers", "refused: raised", "over the limit: raised"} <= soak(tier, 300)["outcomes"].keys()


@pytest.mark.nightly
@pytest.mark.parametrize("tier", ["stock", "arena", "planned"])
def test_ten_thousand_calls_leave_memory_as_it_is(tier: str) -> None:
    before, after = soak(tier, 10_000)["resident_bytes"]
    assert after - before < MOST_GROWTH
