"""Sessions under one limit: equal weights once, one block, the ones used longest ago parked; outputs as alone."""

from __future__ import annotations

import copy
import threading
from pathlib import Path

import onnx
import onnx_ir
import pytest
from native_models import usable
from pool_models import LAYERS, WEIGHTS, alone, feed, write

from memoptc.ir.diagnostics import InputError
from memoptc.runtime import MemoryLimit, Pool, Session, Shadow
from memoptc.runtime.external_weights import ExternalWeight, all_external_weights, external_weights
from memoptc.runtime.native import shared
from memoptc.runtime.native.shared import WeightStore

pytestmark = pytest.mark.skipif(not usable(), reason="onnxruntime's C interface cannot be used here")


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Three models with one body, whose bytes lie at other offsets in the last."""
    folder = tmp_path_factory.mktemp("pool")
    return [write(folder, "a", 0), write(folder, "b", 1), write(folder, "c", 2, offset=1000)]


def test_external_weights_are_those_of_the_onnx_package(models: list[Path]) -> None:
    for path in models:
        tensors = [t for t in onnx.load(path, load_external_data=False).graph.initializer if t.external_data]
        found = external_weights(path)
        assert [(w.name, w.element, w.dims) for w in found] == [(t.name, t.data_type, tuple(t.dims)) for t in tensors]
        for weight, tensor in zip(found, tensors, strict=True):
            entries = {e.key: e.value for e in tensor.external_data}
            assert (weight.offset, weight.length) == (int(entries.get("offset", 0)), int(entries["length"]))


def test_bytes_that_a_model_does_not_state_follow_from_type_and_shape(tmp_path: Path) -> None:
    """As onnxruntime has it: the entry `length` may be absent."""
    model = onnx.ModelProto()
    types = {t for t in onnx_ir.DataType if t.name not in ("UNDEFINED", "STRING")}
    for element in types:
        tensor = model.graph.initializer.add(name=element.name, data_type=element, dims=[3, 5], data_location=1)
        tensor.external_data.add(key="location", value="w")
    (tmp_path / "m.onnx").write_bytes(model.SerializeToString())
    found = {w.name: w.length for w in external_weights(tmp_path / "m.onnx")}
    assert found == {t.name: -(-15 * t.bitwidth // 8) for t in types}


def encoded(number: int) -> bytes:
    """A number as protobuf writes it."""
    return bytes([number & 127 | 128]) + encoded(number >> 7) if number > 127 else bytes([number])


def test_what_is_no_model_is_said(tmp_path: Path) -> None:
    """Also numbers without an end, and graphs within graphs without one."""
    deep = b""
    for _ in range(2000):
        for field in (6, 5, 1):  # a graph of an attribute of a node
            deep = bytes([field << 3 | 2]) + encoded(len(deep)) + deep
    for content in (b"\xff" * 40, b"\xff" * (1 << 22), bytes([7 << 3 | 2]) + encoded(len(deep)) + deep):
        (tmp_path / "no.onnx").write_bytes(content)
        with pytest.raises(InputError, match="is no ONNX model"):
            all_external_weights(tmp_path / "no.onnx")
    with Pool() as pool, pytest.raises(InputError, match="no such file"):
        pool.open(tmp_path / "absent.onnx")


@pytest.mark.parametrize("packing", [True, False])
def test_equal_weights_are_stored_once_and_outputs_stay(models: list[Path], packing: bool) -> None:
    with Pool(threads=1, packing=packing) as pool:
        sessions = [pool.open(path) for path in [*models, models[0]]]
        body = [{w for name, w in s.weights.items() if "w6" not in name and name != "unused"} for s in sessions]
        assert body[0] == body[1] == body[2] == body[3]
        assert len(body[0]) == LAYERS
        assert len({s.weights[f"{s.path[-6]}.w6"] for s in sessions}) == 3
        for batch in (3, 64, 3, 64, 3):
            for session in sessions:
                (found,) = session.run(None, feed(batch))
                plain = Session(session.path, memory="planned", threads=1, packing=packing)
                assert found.tobytes() == plain.run(None, feed(batch))[0].tobytes()
        assert all(s.loaded._planned is not None and s.loaded._planned._home is pool._home for s in sessions)


def test_sessions_used_longest_ago_are_parked(models: list[Path]) -> None:
    with Pool(threads=1) as probe:
        probe.open(models[0]).run(None, feed(3))
        one = probe.used_bytes
    with Pool(one + (5 << 20), threads=1) as pool:
        a, b, c = (pool.open(path) for path in models)
        assert [s.is_open for s in (a, b, c)] == [False, True, True]
        for session, path in ((a, models[0]), (b, models[1]), (c, models[2]), (a, models[0])):
            assert session.run(None, feed(3))[0].tobytes() == alone(path, 3)
            assert pool.memory_limit is not None
            assert pool.used_bytes <= pool.memory_limit
        assert pool.parked >= 3


def test_what_does_not_fit_alone_is_refused_and_the_pool_lives_on(models: list[Path]) -> None:
    with Pool(WEIGHTS // 2, threads=1) as pool:
        with pytest.raises(MemoryLimit, match=r"takes \d+ bytes alone; the limit of the pool is"):
            pool.open(models[0])
        assert pool.used_bytes == 0
    with Pool(WEIGHTS + (6 << 20), threads=1) as pool:
        session = pool.open(models[0])
        with pytest.raises(MemoryLimit):
            session.run(None, feed(8192))
        assert session.run(None, feed(3))[0].tobytes() == alone(models[0], 3)


def test_threads_take_turns(models: list[Path]) -> None:
    with Pool(threads=1) as pool:
        sessions = [pool.open(path) for path in models]
        expected = [alone(path, 5) for path in models]
        wrong = []

        def work(index: int) -> None:
            for _ in range(20):
                if sessions[index].run(None, feed(5))[0].tobytes() != expected[index]:
                    wrong.append(index)

        threads = [threading.Thread(target=work, args=(i % 3,)) for i in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not wrong


def test_a_session_closed_while_its_call_waits_says_so(models: list[Path]) -> None:
    found: list[BaseException] = []
    with Pool(threads=1) as pool:
        session = pool.open(models[0])
        asked = threading.Event()

        def call() -> None:
            asked.set()
            with pytest.raises(InputError, match="is closed") as raised:
                session.run(None, feed(3))
            found.append(raised.value)

        thread = threading.Thread(target=call)
        with pool._home.lock:
            thread.start()
            assert asked.wait(20)
            session.close()
        thread.join(20)
    assert len(found) == 1


def test_a_parked_session_loads_again_in_another_folder(models: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(models[0].parent)
    with Pool(threads=1) as pool:
        session = pool.open(models[0].name)
        session.park()
        monkeypatch.chdir("/")
        assert session.run(None, feed(3))[0].tobytes() == alone(models[0], 3)
        assert session.path == models[0].name


def test_after_a_load_that_failed_no_weights_are_held(tmp_path: Path) -> None:
    path = write(tmp_path, "a", 0)
    with Pool(threads=1) as pool:
        session = pool.open(path)
        session.park()
        model = path.read_bytes()
        path.write_bytes(model.replace(b"Tanh", b"Tanx"))
        with pytest.raises(InputError):
            session.run(None, feed(3))
        assert not session.weights
        assert not pool._store._places
        assert not pool._store._alike
        path.write_bytes(model)
        assert session.run(None, feed(3))[0].tobytes() == alone(path, 3)
        for option in ("memory", "shared"):
            with pytest.raises(InputError, match=f"{option}= is no option"):
                pool.open(path, **{option: "planned"})


def test_weights_are_read_at_most_twice_and_single_ones_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    count, size, digested = 40, 512, []
    plain = shared._digest
    monkeypatch.setattr(shared, "_digest", lambda data: digested.append(len(data)) or plain(data))
    values = [i % 30 for i in range(count)]
    (tmp_path / "w").write_bytes(b"".join(bytes([v]) * size for v in values) + b"x" * 8)
    store = WeightStore()
    single = store.get(ExternalWeight("single", 2, (8,), str(tmp_path / "w"), count * size, 8))
    first = store.get(ExternalWeight("w", 2, (size,), str(tmp_path / "w"), 0, size))
    assert digested == []
    held = [store.get(ExternalWeight("w", 2, (size,), str(tmp_path / "w"), i * size, size)) for i in range(count)]
    assert held[0] is first
    assert [int(w.data[0]) for w in held] == values
    assert len(set(held)) == 30
    assert digested == [size] * count
    store.drop({single, held[3]})
    assert store.get(ExternalWeight("w", 2, (size,), str(tmp_path / "w"), 33 * size, size)) is held[3]
    assert sum(map(len, store._alike.values())) == 2


def test_a_closed_session_says_so_and_gives_its_weights_back(models: list[Path]) -> None:
    with Pool(threads=1) as pool:
        first, second = pool.open(models[0]), pool.open(models[1])
        first.close()
        first.close()
        with pytest.raises(InputError, match="is closed"):
            first.run(None, feed())
        held = {w for w in pool._store._places.values()}
        assert held == set(second.weights.values())
        assert second.run(None, feed())[0].tobytes() == alone(models[1], 3)


def test_a_pool_s_session_serves_where_another_one_did(models: list[Path]) -> None:
    with Pool() as pool:
        session = pool.open(models[0])
        shadow = Shadow(session, session, 1.0)
        assert [port.name for port in shadow.get_inputs()] == list(feed())
        assert shadow.run(None, feed())[0].tolist() == session.run(None, feed())[0].tolist()
        assert not shadow.figures.errors
        assert copy.copy(shadow).rate == 1.0
