"""Promises hold in every way to run the result: a tier of `Session` that breaks one is taken back, or named."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
from decoders import Style, decoder
from runtime_models import parse

import memoptc
from memoptc.api import compile_file
from memoptc.gate import broken_latency
from memoptc.measuring import Bench, Needs, Times, measured_json
from memoptc.report import Report, Side
from memoptc.runtime.contract import Contract, contract_path, load_contract
from memoptc.runtime.measure import Measured
from memoptc.takeback import Keeper

MB = 1 << 20
TURNS = (100.0, 101.0, 99.0, 100.0, 102.0)


def measured(slowdown: float, tier: str = "", need: int = 50 * MB) -> Measured:
    """A process that takes so many times 100 ms in every turn."""
    turns = tuple(t * slowdown for t in TURNS)
    fields: dict[str, Any] = dict.fromkeys(
        ("anonymous_bytes", "load_peak_bytes", "loaded_bytes", "run_peak_bytes", "ours_bytes", "run_mapped_bytes"), 0
    )
    times = {key: 100.0 * slowdown for key in ("p50", "p95", "p99")}
    return Measured(need, **fields, load_seconds=0, memory_runs=4, method="", tier=tier, latency_ms=times,
                    throughput_per_s=10, runs=5, turns_ms=turns)  # fmt: skip


def test_latency_in_session_is_held_to_the_promise_too() -> None:
    (broken,) = broken_latency(Times(measured(1), measured(1.02), measured(1.17, "planned")), 1.05)
    assert broken.in_session
    assert "latency in Session" in broken.clause()
    assert not broken_latency(Times(measured(1), measured(1.02), measured(1.04, "planned")), 1.05)
    assert [b.in_session for b in broken_latency(Times(measured(1), measured(2), measured(2)), 1.05)] == [False, True]


def test_calling_session_costs_something_with_the_original_too() -> None:
    tiny, slower = measured(0.0003), measured(0.0009, "arena")
    (broken,) = broken_latency(Times(tiny, tiny, slower), 1.05)
    assert broken.in_session
    assert not broken_latency(Times(tiny, tiny, slower, calling_ms=0.05), 1.05)
    both = Times(tiny, measured(0.0009), slower, calling_ms=0.05)
    assert [b.in_session for b in broken_latency(both, 1.05)] == [False]  # stock onnxruntime is granted nothing


def test_nothing_is_taken_back_of_a_tiny_model_for_calling_session(tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    onnx.save(parse("g (float[64] x) => (float[64] y) { a = Sin (x) b = Sin (x) c = Add (a, b) y = Relu (c) }"), path)
    result = memoptc.compile(str(path), 1, measure=True)
    assert [n.op_type for n in result.model.graph.node].count("Sin") == 1
    assert not [d for d in result.report.decisions if "latency in Session" in d.why]


def test_latency_of_a_decoding_step_is_held_to_the_promise_too() -> None:
    step = Times(measured(1), measured(1.3), None)
    (broken,) = broken_latency(Times(measured(1), measured(1), measured(1), step=step), 1.05)
    assert "latency of a decoding step" in broken.clause()
    assert not broken.in_session


@pytest.mark.nightly  # seconds of timing by the clock
def test_a_decoding_step_is_timed_and_named(tmp_path: Path) -> None:
    path = tmp_path / "decoder.onnx"
    onnx.save(decoder(Style(width=32)), path)
    report = compile_file(path, tmp_path / "after.onnx", level=1, verify="off", measure=True).report
    found = report.to_json()
    assert found["control"]["measured"]["step_ms"] > 0
    assert found["candidate"]["measured"]["step_slowdown"]["promised"] == 1.05
    assert "at a decoding step" in report.verdict


class TierBench(Bench):
    """A bench whose figures in `Session` depend on the tier in the contract beside the model."""

    def __init__(self, slowdowns: dict[str, float], needs: dict[str, int]) -> None:
        super().__init__(Path("original"), {}, 0, 1.05)
        self.slowdowns, self.of = slowdowns, needs
        self.whole: list[str] = []
        """What was measured of stock onnxruntime, too."""
        self.before = Needs(measured(1), measured(1, "arena"))

    def _session(self, path: Path) -> Measured:
        contract = load_contract(contract_path(path))
        assert contract is not None
        return measured(self.slowdowns[contract.tier], contract.tier, self.of.get(contract.tier, 50 * MB))

    def needs(self, path: Path, feed: Any) -> Needs:
        self.whole.append("needs")
        return Needs(measured(1), self._session(path))

    def times(self, path: Path, feed: Any, needs: Needs) -> Times:
        self.whole.append("times")
        return Times(measured(1), measured(1), self._session(path))

    def needs_in_session(self, path: Path, feed: Any, needs: Needs) -> Needs:
        return Needs(needs.stock, self._session(path))

    def times_in_session(self, path: Path, feed: Any, needs: Needs, times: Times) -> Times:
        """In turns with an original that is twice as slow now, as the machine is."""
        session = measured(2 * self._session(path).latency_ms["p50"] / 100)
        return replace(times, session=session, beside=measured(2))


def attempt_at(folder: Path) -> Any:
    path = folder / "m.onnx"
    contract = Contract(tier="planned")
    contract.save(contract_path(path))
    interface = SimpleNamespace(encode=lambda feed: feed)
    return SimpleNamespace(path=path, contract=contract, needs=None, times=None, decisions=[], warnings=[],
                           compiled=SimpleNamespace(interface=interface), edit=None)  # fmt: skip


@pytest.mark.parametrize(
    ("slowdowns", "needs", "tiers"),
    [
        ({"planned": 1.17, "arena": 1.0}, {}, ["planned"]),
        ({"planned": 1.17, "arena": 1.2, "stock": 1.0}, {}, ["planned", "arena"]),
        ({"planned": 1.0, "arena": 1.0}, {"planned": 80 * MB}, ["planned"]),
        ({"planned": 1.0, "arena": 1.0, "stock": 1.0}, {"planned": 53 * MB, "arena": 52 * MB}, ["planned", "arena"]),
        ({"planned": 1.04}, {"planned": 51 * MB}, []),
    ],
)
def test_a_tier_that_breaks_a_promise_gives_way_to_the_next_simpler_one(
    tmp_path: Path, slowdowns: dict[str, float], needs: dict[str, int], tiers: Sequence[str]
) -> None:
    options = SimpleNamespace(level=2, force=False)
    attempts: Any = SimpleNamespace(compilation=SimpleNamespace(options=options), record=lambda attempt: None)
    attempt = attempt_at(tmp_path)
    bench = TierBench(slowdowns, needs)
    assert Keeper(attempts, bench).hold_times(attempt) is attempt
    assert bench.whole == ["needs", "times"]  # another tier of Session changes nothing of that
    assert [d.what for d in attempt.decisions] == [f"the tier {tier} of Session" for tier in tiers]
    assert len(attempt.warnings) == len(tiers)
    written = load_contract(contract_path(attempt.path))
    assert written == attempt.contract
    assert attempt.needs.session.tier == attempt.contract.tier == list(slowdowns)[len(tiers)]


@pytest.mark.parametrize(("low", "noise"), [(1.10, False), (0.95, True)])
def test_every_row_above_the_promise_is_named(low: float, noise: bool) -> None:
    def figures(slowdown: float, tier: str) -> dict[str, Any]:
        of = Side()
        compared = {
            "ratio": slowdown,
            "low": low,
            "high": 1.3,
            "control_ms": 98.0 if tier == "planned" else 100.0,
            "promised": 1.05,
        }
        return measured_json(measured(slowdown, tier), of) | {"slowdown": compared}

    def both(found: dict[str, Any]) -> dict[str, Any]:
        return found | {key: {"stock": found[key], "session": found[key]} for key in ("need_bytes", "anonymous_bytes")}

    before, after = both(figures(1, "")), both(figures(1, ""))
    session = {"arena": figures(1, "arena"), "planned": figures(1.17, "planned")}
    report = Report({}, {}, Side(measured=before), Side(measured=after, session=session))
    assert [w.what for w in report.worse] == ["latency in Session with memory='planned'"]
    assert report.worse[0].before == "98 ms"  # the original in the same turns, not in those of another comparison
    assert ("noise may explain it" in report.worse[0].why) == noise


@pytest.mark.parametrize(
    ("size", "weights", "nodes", "why"),
    [
        (400, 200, 900, "900 nodes instead of 100"),
        (450, 320, 900, "weights take 120.00 kB more"),
        (400, 320, 900, "900 nodes instead of 100"),  # two branches have weights that the file holds once
        (400, 200, 50, "what the writer adds: names, types, whole pages for weights that are mapped"),
        (310, 200, 900, ""),
    ],
)
def test_a_file_that_grew_is_named(size: int, weights: int, nodes: int, why: str) -> None:
    before = Side(file_bytes=300_000, weight_bytes=200_000, nodes=100)
    after = Side(file_bytes=1000 * size, weight_bytes=1000 * weights, nodes=nodes)
    assert [(w.what, w.why) for w in Report({}, {}, before, after).worse] == ([("file", why)] if why else [])
