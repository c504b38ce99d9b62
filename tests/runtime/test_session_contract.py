"""`Session` and the contract beside a model: what it says is applied, and what it says holds."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from native_models import feed, network, same, usable

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import measured_contract
from memoptc.runtime.contract import Contract, arena_entries, contract_path, load_contract
from memoptc.runtime.measured_contract import make_contract, tier_of
from memoptc.runtime.options import FRUGAL, PACKING_KEY
from memoptc.runtime.session import MemoryLimit, Session

pytestmark = pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")


def test_a_contract_is_found_beside_the_model_and_applied(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(network())
    made = make_contract(path, feed(32), threads=1)
    assert made.measured["run_peak_bytes"] == 3 * 32 * 64 * 4
    assert made.arena_bytes >= made.measured["run_peak_bytes"] + made.measured["loaded_bytes"]
    made.save(contract_path(path))
    assert contract_path(path).name == "net.session.json"
    assert load_contract(contract_path(path)) == made
    for tier in ("arena", "planned"):
        session = Session(path, memory=tier)  # type: ignore[arg-type]
        assert session.contract == made
        assert same(session.run(None, feed(32)), Session(path, memory="stock", threads=1).run(None, feed(32)))
    assert Session(path, contract=False).contract == Contract()


def test_sess_options_that_stand_against_the_contract_are_named(
    tmp_path: Path, recwarn: pytest.WarningsRecorder
) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(network())
    made = make_contract(path, feed(32), threads=1)
    made = replace(made, options=replace(made.options, config={**made.options.config, PACKING_KEY: "1"}))
    made.save(contract_path(path))
    options = ort.SessionOptions()
    Session(path, options, memory="arena").run(None, feed(32))
    Session(path, options, memory="stock").run(None, feed(32))
    assert not recwarn.list
    options = ort.SessionOptions()
    options.add_session_config_entry(PACKING_KEY, "0")
    Session(path, options, memory="arena", contract=False)
    assert not recwarn.list
    with pytest.warns(UserWarning, match=rf"session contract: {PACKING_KEY}\. It is done"):
        Session(path, options, memory="arena").run(None, feed(32))


def test_the_contracts_arena_suffices_and_a_smaller_one_does_not(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(network(256))
    made = make_contract(path, feed(64, 256), threads=1)
    arguments: dict[str, Any] = {"contract": made, "memory_limit": made.arena_bytes}
    expected = Session(path, memory="stock", threads=1).run(None, feed(64, 256))
    session = Session(path, **arguments)
    held = None
    for _ in range(4):  # while the outputs of the run before are still there
        held = session.run(None, feed(64, 256))
        assert same(held, expected)
    with pytest.raises(MemoryLimit):
        Session(path, contract=made, memory_limit=made.arena_bytes - held[0].nbytes - 32768).run(None, feed(64, 256))


def test_a_contract_can_be_applied_by_hand(tmp_path: Path) -> None:
    """Every name in the file is one of onnxruntime's public Python interface."""

    data = Contract(FRUGAL, 1 << 20).to_json()
    options = ort.SessionOptions()
    for name, value in data["session"].items():
        enum = {"execution_order": "ExecutionOrder", "graph_optimization_level": "GraphOptimizationLevel"}.get(name)
        assert hasattr(options, name)
        setattr(options, name, getattr(getattr(ort, enum), value) if enum else value)
    ort.OrtArenaCfg(data["arena"])
    assert data["arena"] == arena_entries(1 << 20)


def test_a_file_that_is_no_contract_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "net.onnx"
    path.write_bytes(network())
    for text in ("nonsense", '{"version": 99}', "[]"):
        contract_path(path).write_text(text)
        with pytest.raises(InputError, match="contract"):
            Session(path)


def external(folder: Path, width: int = 768, depth: int = 3) -> Path:
    """`network` with its weights in a file beside it."""
    path = folder / "m.onnx"
    proto = onnx.load_from_string(network(width, depth))
    onnx.save(proto, path, save_as_external_data=True, location="m.onnx.data", size_threshold=1024)
    return path


def test_a_contract_names_the_tier_that_needs_less() -> None:
    assert tier_of(200 << 20, 170 << 20) == "planned"
    assert tier_of(200 << 20, 200 << 20, ours=4 << 20) == "planned"  # an arena has a book of its pieces, 1/32 of it
    assert tier_of(200 << 20, 203 << 20, ours=4 << 20) == "arena"  # less is gained than it takes itself
    assert tier_of(200 << 20, 186 << 20, ours=24 << 20) == "arena"  # or than a second library takes
    assert Contract.from_json(Contract(tier="planned").to_json()).tier == "planned"


def test_a_contract_says_whether_packing_pays(tmp_path: Path) -> None:
    path = external(tmp_path)
    weights = 3 * 768 * 768 * 4
    kept = make_contract(path, feed(1, 768), threads=1, slowdown=1e-9)
    assert PACKING_KEY not in kept.options.config
    assert kept.measured["packed_bytes"] == pytest.approx(weights, rel=0.05)
    dropped = make_contract(path, feed(1, 768), threads=1, slowdown=1e9, timed=lambda: [feed(1, 768), feed(9, 768)])
    assert dropped.options.config[PACKING_KEY] == "1"
    assert dropped.measured["loaded_bytes"] < weights / 10
    assert dropped.arena_bytes < kept.arena_bytes - weights / 2
    inline = tmp_path / "inline.onnx"
    inline.write_bytes(network(768, 3))
    assert "packed_bytes" not in make_contract(inline, feed(1, 768), threads=1, slowdown=1e9).measured


def test_larger_feeds_are_timed_only_where_the_first_leaves_it_open(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, rows = external(tmp_path), []
    timed = measured_contract._shortest

    def counted(session: Any, one: Any) -> float | None:
        rows.append(len(one["x"]))
        return timed(session, one)

    monkeypatch.setattr(measured_contract, "_shortest", counted)
    for slowdown, wanted in ((1e-9, [1, 1]), (1e9, [1, 1, 9, 9])):
        rows.clear()
        make_contract(path, feed(1, 768), threads=1, slowdown=slowdown, timed=lambda: [feed(1, 768), feed(9, 768)])
        assert rows == wanted


@pytest.mark.parametrize("tier", ["arena", "planned"])
def test_packing_follows_the_contract_unless_it_is_said(tier: Any, tmp_path: Path) -> None:
    path = external(tmp_path)
    expected = Session(path, memory="stock", threads=1).run(None, feed(2, 768))[0]
    Contract(replace(FRUGAL, config={PACKING_KEY: "1"})).save(contract_path(path))
    for packing, off in (("auto", "1"), (True, None), (False, "1")):
        session = Session(path, memory=tier, threads=1, packing=packing)  # type: ignore[arg-type]
        assert session._run_options.config.get(PACKING_KEY) == off
        found = session.run(None, feed(2, 768))[0]
        # unpacked products add up in another order: the noise of float32 over the output's scale, three layers deep
        assert same([found], [expected]) or off
        assert np.abs(found - expected).max() <= 1e-5 * np.abs(expected).max()
    with pytest.raises(InputError, match="packing"):
        Session(path, packing="maybe")  # type: ignore[arg-type]
