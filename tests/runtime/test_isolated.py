"""Work in processes of their own gives what it gives in the caller's; a measurement ends once it cannot win."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import onnx
import pytest
from runtime_models import mlp, normal

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.measure import measure_need, measure_need_up_to
from memoptc.runtime.measured_contract import make_contract
from memoptc.runtime.spool import _Garbage


def saved(folder: Path) -> Path:
    path = folder / "mlp.onnx"
    onnx.save(mlp(), path)
    return path


def test_a_contract_is_the_same_from_a_process_of_its_own(tmp_path: Path) -> None:
    path, feed = saved(tmp_path), {"x": normal(64, 16)}
    assert make_contract(path, feed, isolate=True) == make_contract(path, feed)


def test_errors_come_back_from_a_process_of_its_own(tmp_path: Path) -> None:
    with pytest.raises(InputError) as here:
        make_contract(saved(tmp_path), {"x": normal(64, 17)})
    with pytest.raises(InputError) as there:
        make_contract(saved(tmp_path), {"x": normal(64, 17)}, isolate=True)
    assert there.value.message == here.value.message


def test_what_only_refers_to_itself_is_gone_before_another_process_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Both processes count for the peak of a compile; Python may look for such garbage much later."""

    class Graph:
        def __init__(self) -> None:
            self.itself = self

    gc.disable()
    try:
        graph = weakref.ref(Graph())
        assert graph() is not None
        monkeypatch.setattr("memoptc.runtime.spool._garbage", _Garbage())
        make_contract(saved(tmp_path), {"x": normal(64, 16)}, isolate=True)
        assert graph() is None
    finally:
        gc.enable()


def test_measuring_ends_once_more_is_needed_than_asked_about(tmp_path: Path) -> None:
    path, feed = saved(tmp_path), {"x": normal(200_000, 16)}
    need = measure_need(path, feed).need_bytes
    assert measure_need_up_to(path, feed, need // 4) is None
    found = measure_need_up_to(path, feed, 2 * need)
    assert found is not None
    assert found.need_bytes <= 2 * need
