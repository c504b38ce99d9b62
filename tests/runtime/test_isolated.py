"""Work in processes of their own gives what it gives in the caller's; a measurement ends once it cannot win."""

from __future__ import annotations

from pathlib import Path

import onnx
import pytest
from runtime_models import mlp, normal

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.measure import measure_need, measure_need_up_to
from memoptc.runtime.measured_contract import make_contract


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


def test_measuring_ends_once_more_is_needed_than_asked_about(tmp_path: Path) -> None:
    path, feed = saved(tmp_path), {"x": normal(200_000, 16)}
    need = measure_need(path, feed).need_bytes
    assert measure_need_up_to(path, feed, need // 4) is None
    found = measure_need_up_to(path, feed, 2 * need)
    assert found is not None
    assert found.need_bytes <= 2 * need
