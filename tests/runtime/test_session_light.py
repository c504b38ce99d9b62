"""`Session` costs what `InferenceSession` costs: no module of the compiler is loaded to run a model."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from native_models import network, usable

from memoptc.runtime.contract import Contract, contract_path
from memoptc.runtime.native.capi import api

HEAVY = (
    "onnx",
    "onnx_ir",
    "sympy",
    "lark",
    "networkx",
    "rich",
    "click",
    "jinja2",
    "onnx_shape_inference",
    "google",
    "hashlib",
    "random",
    "csv",
    "platform",
    "subprocess",
)

SCRIPT = """
import json, sys
import numpy as np
import onnxruntime
before = set(sys.modules)
import memoptc
from memoptc.runtime import Session
session = Session(sys.argv[1], memory=sys.argv[2])
for _ in range(3):
    outputs = session.run(None, {"x": np.zeros((3, 64), np.float32)})
assert outputs[0].shape == (3, 64)
print(json.dumps(sorted(set(sys.modules) - before)))
try:
    with open("/proc/self/maps") as maps:
        print(json.dumps(sorted({line.split("/")[-1].strip() for line in maps if "onnxruntime" in line})))
except OSError:
    print("[]")
"""


@pytest.mark.parametrize("contract", [False, True])
@pytest.mark.parametrize("tier", ["auto", "stock", "arena", "planned"])
def test_running_a_model_loads_no_module_of_the_compiler(tmp_path: Path, tier: str, contract: bool) -> None:
    if tier == "planned" and not usable():
        pytest.skip("onnxruntime's C interface cannot be used here")
    path = tmp_path / "m.onnx"
    path.write_bytes(network())
    if contract:
        Contract(arena_bytes=1 << 20, inputs={"x": (3, 64)}).save(contract_path(path))
    done = subprocess.run([sys.executable, "-c", SCRIPT, str(path), tier], capture_output=True, text=True, check=True)
    loaded, libraries = (json.loads(line) for line in done.stdout.splitlines())
    assert "memoptc.runtime.session" in loaded
    assert [m for m in loaded if m.split(".")[0] in HEAVY] == []
    ours = [m for m in loaded if m.startswith("memoptc.")]
    light = ["memoptc.ir.deferred", "memoptc.ir.diagnostics"]
    assert [m for m in ours if m.startswith(("memoptc.ir.", "memoptc.passes"))] == light
    if usable() and api().shared:
        assert not [name for name in libraries if name.startswith("libonnxruntime.so")]
    if tier != "planned":
        assert not [m for m in ours if m.startswith(("memoptc.runtime.memory", "memoptc.runtime.native"))]


def test_the_packages_list_their_names_before_they_load_them() -> None:
    import memoptc
    import memoptc.runtime

    for package in (memoptc, memoptc.runtime):
        assert set(package.__all__) <= set(dir(package))
        for name in package.__all__:
            assert getattr(package, name) is not None
        with pytest.raises(AttributeError, match="no attribute"):
            package.no_such_name  # noqa: B018
