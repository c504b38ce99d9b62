"""Samples from every kind of source, and every kind of wrong data named."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from memoptc.ir.diagnostics import InputError
from memoptc.ir.dims import Sym
from memoptc.ir.types import DType, OptionalType, SequenceType, TensorType
from memoptc.runtime.data import Data
from memoptc.runtime.npz import load_feed, save_feed

N = Sym("N")
IMAGE = {"x": TensorType(DType.FLOAT, (N, 3))}
TWO = {"ids": TensorType(DType.INT64, (N, Sym("S"))), "mask": TensorType(DType.INT64, (N, Sym("S")))}


def rng_array(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


def save(path: Path, **arrays: Any) -> str:
    np.savez_compressed(path, **arrays)
    return str(path)


def test_stacked_arrays_give_one_feed_each(tmp_path: Path) -> None:
    x = rng_array(5, 2, 3)
    data = Data(save(tmp_path / "d.npz", x=x, labels=np.arange(5)), IMAGE)
    for _ in range(2):
        samples = list(data)
        assert [int(s.label) for s in samples] == [0, 1, 2, 3, 4]
        assert all(np.array_equal(s.feed["x"], x[i]) for i, s in enumerate(samples))


def test_arrays_of_the_models_rank_are_split_by_its_batch(tmp_path: Path) -> None:
    x = rng_array(6, 3)
    path = save(tmp_path / "d.npz", x=x)
    assert [s.feed["x"].shape for s in Data(path, IMAGE)] == [(1, 3)] * 6
    static = {"x": TensorType(DType.FLOAT, (2, 3))}
    pieces = [s.feed["x"] for s in Data(path, static)]
    assert np.array_equal(np.concatenate(pieces), x)
    assert len(pieces) == 3


def test_shared_scalars_and_arrays_that_disagree(tmp_path: Path) -> None:
    inputs = {
        "input": TensorType(DType.FLOAT, (None, None)),
        "state": TensorType(DType.FLOAT, (2, None, 4)),
        "sr": TensorType(DType.INT64, ()),
    }
    whole = save(tmp_path / "a.npz", input=rng_array(3, 8), state=rng_array(2, 3, 4), sr=np.asarray(16000))
    samples = list(Data(whole, inputs))
    assert len(samples) == 1
    assert samples[0].feed["input"].shape == (3, 8)
    stacked = save(tmp_path / "b.npz", input=rng_array(7, 3, 8), state=rng_array(2, 3, 4), sr=np.asarray(16000))
    samples = list(Data(stacked, inputs))
    assert len(samples) == 7
    assert all(s.feed["sr"] == 16000 and s.feed["state"].shape == (2, 3, 4) for s in samples)


def test_npy_folder_and_python_sources(tmp_path: Path) -> None:
    x = rng_array(4, 1, 3)
    np.save(tmp_path / "x.npy", np.asfortranarray(x))
    folder = tmp_path / "folder"
    folder.mkdir()
    for i in range(4):
        save(folder / f"{i}.npz", x=x[i])
    feeds = [{"x": x[i]} for i in range(4)]
    sources: list[Any] = [
        str(tmp_path / "x.npy"), folder, feeds, iter(feeds), lambda: iter(feeds), (f for f in feeds)
    ]  # fmt: skip
    for source in sources:
        data = Data(source, IMAGE)
        for _ in range(2):
            assert np.array_equal(np.stack([s.feed["x"] for s in data]), x), source


def test_one_shot_iterator_is_read_only_as_far_as_needed() -> None:
    seen = []

    def feeds() -> Iterator[dict[str, Any]]:
        for i in range(1000):
            seen.append(i)
            yield {"x": rng_array(1, 3)}

    data = Data(feeds(), IMAGE)
    for _, sample in zip(range(3), data, strict=False):
        assert sample.feed["x"].shape == (1, 3)
    assert len(seen) <= 4


def test_module_function(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "some_feeds.py").write_text(
        "import numpy as np\ndef make():\n    yield {'x': np.ones((1, 3), np.float32), 'label': 4}\n"
    )
    monkeypatch.chdir(tmp_path)
    (sample,) = Data("some_feeds:make", IMAGE)
    assert sample.label == 4
    with pytest.raises(InputError, match="has no function 'other'"):
        Data("some_feeds:other", IMAGE)
    with pytest.raises(InputError, match="no_such_module"):
        Data("no_such_module:make", IMAGE)


def test_faults_of_a_function_that_gives_data_are_told_as_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = "def later():\n    yield {}['x']\ndef at_once():\n    return 1 / 0\n"
    (tmp_path / "faulty_feeds.py").write_text(text)
    (tmp_path / "unreadable_feeds.py").write_text("undefined_name\n")
    monkeypatch.chdir(tmp_path)
    for name, message in {"later": "raised KeyError: 'x'", "at_once": "raised ZeroDivisionError"}.items():
        with pytest.raises(InputError, match=f"faulty_feeds:{name} {message}"):
            list(Data(f"faulty_feeds:{name}", IMAGE))
    with pytest.raises(InputError, match="NameError"):
        Data("unreadable_feeds:make", IMAGE)


@pytest.mark.parametrize(
    ("feed", "message"),
    [
        ({"y2": np.ones((1, 3), np.float32)}, "'y2' is not an input"),
        ({}, "input 'x' is missing"),
        ({"x": np.ones((1, 4), np.float32)}, r"'x' has shape \[1, 4\]; \[N, 3\] was expected"),
        ({"x": np.ones(3, np.float32)}, "2 axes, was expected"),
        ({"x": np.ones((1, 3))}, "'x' is float64; float32 was expected"),
        ({"x": np.ones((1, 3), np.int64)}, "'x' is int64; float32 was expected"),
        ({"x": np.array([["a", "b", "c"]])}, "float32 was expected"),
        ({"x": np.array([[0, np.nan, 1]], np.float32)}, r"'x' holds nan at \[0, 1\]"),
        ({"x": np.array([[0, 1, np.inf]], np.float32)}, r"'x' holds inf at \[0, 2\]"),
        ({"x": [[1, 2], [3]]}, "'x' is not an array"),
        (3, "is a int; a dictionary"),
    ],
)
def test_wrong_samples_are_named(feed: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        list(Data([feed], IMAGE))
    assert "sample 0" in caught.value.message


def test_one_symbol_has_one_extent() -> None:
    feed = {"ids": np.zeros((1, 4), np.int64), "mask": np.zeros((1, 5), np.int64)}
    with pytest.raises(InputError, match="S is 4 in input 'ids' but 5 in input 'mask'"):
        list(Data([feed], TWO))


def test_safe_casts_only() -> None:
    (sample,) = Data([{"x": np.ones((1, 3), np.uint8)}], IMAGE)
    assert sample.feed["x"].dtype == np.float32


def test_sources_that_are_none(tmp_path: Path) -> None:
    (tmp_path / "bad.npz").write_bytes(b"not a zip")
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.txt").write_text("x")
    whole = Path(save(tmp_path / "whole.npz", x=rng_array(50, 1, 3)))
    (tmp_path / "cut.npz").write_bytes(whole.read_bytes()[:300])
    np.savez(tmp_path / "objects.npz", x=np.array([{}], dtype=object))
    for source, message in [
        ("bad.npz", "not a readable"),
        ("cut.npz", "not a readable"),
        ("missing.npz", "no such file"),
        ("nowhere", "no such file or folder"),
        ("empty", "holds no .npz"),
        ("text.txt", "neither"),
        ("objects.npz", "Python objects"),
    ]:
        with pytest.raises(InputError, match=message):
            list(Data(tmp_path / source, IMAGE))
    with pytest.raises(InputError, match="holds no samples"):
        list(Data([], IMAGE))
    with pytest.raises(InputError, match="one dictionary"):
        Data({"x": rng_array(1, 3)}, IMAGE)  # type: ignore[arg-type]


def test_counts_must_agree(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="different numbers of samples: 'ids' 3, 'mask' 2"):
        list(
            Data(
                save(tmp_path / "a.npz", ids=np.zeros((3, 1, 4), np.int64), mask=np.zeros((2, 1, 4), np.int64)),
                TWO,
            )
        )
    with pytest.raises(InputError, match="4 labels for 3 samples"):
        list(Data(save(tmp_path / "b.npz", x=rng_array(3, 1, 3), labels=np.zeros(4)), IMAGE))


def test_optional_and_sequence_inputs_pass() -> None:
    inputs = {"o": OptionalType(TensorType(DType.FLOAT, (N,))), "s": SequenceType(TensorType(DType.FLOAT))}
    (sample,) = Data([{"o": None, "s": [rng_array(2)]}], inputs)
    assert sample.feed["o"] is None
    assert len(sample.feed["s"]) == 1


def test_feeds_of_every_kind_survive_a_file(tmp_path: Path) -> None:
    feed = {
        "file": rng_array(2),
        "a/b:0": np.ones(3).astype(ml_dtypes.bfloat16),
        "q": np.array([-3, 4]).astype(ml_dtypes.int4),
        "text": np.array(["x", "yy"], object),
        "none": None,
        "seq": [rng_array(1), None, [rng_array(2)]],
        "seq/0": rng_array(3),
        "map": {1: 0.5, 7: 2.5},
    }
    save_feed(tmp_path / "f.npz", feed)
    back = load_feed(tmp_path / "f.npz")
    assert list(back) == list(feed)
    assert back["a/b:0"].dtype == ml_dtypes.bfloat16
    assert back["q"].dtype == ml_dtypes.int4
    assert np.array_equal(back["q"].astype(int), [-3, 4])
    assert list(back["text"]) == ["x", "yy"]
    assert back["none"] is None
    assert back["seq"][1] is None
    assert np.array_equal(back["seq"][0], feed["seq"][0])  # type: ignore[index]
    assert np.array_equal(back["seq"][2][0], feed["seq"][2][0])  # type: ignore[index]
    assert back["map"] == {1: 0.5, 7: 2.5}


def test_files_of_values_that_numpy_cannot_store_are_data(tmp_path: Path) -> None:
    types = {"text": TensorType(DType.STRING, (N,)), "b": TensorType(DType.BFLOAT16, (N,))}
    save_feed(tmp_path / "f.npz", {"text": np.array(["x", "yy"], object), "b": np.ones(2, ml_dtypes.bfloat16)})
    (sample,) = Data(str(tmp_path), types)
    assert list(sample.feed["text"]) == ["x", "yy"]
    assert sample.feed["b"].dtype == ml_dtypes.bfloat16
    np.savez(tmp_path / "f.npz", __kinds__=np.frombuffer(b'{"text": ["nothing"]}', np.uint8))
    with pytest.raises(InputError, match="damaged"):
        list(Data(str(tmp_path), types))


@settings(max_examples=30, deadline=None)
@given(count=st.integers(1, 9), batch=st.integers(1, 3), compressed=st.booleans(), fortran=st.booleans())
def test_pieces_put_together_are_the_file(
    tmp_path_factory: pytest.TempPathFactory, count: int, batch: int, compressed: bool, fortran: bool
) -> None:
    x = rng_array(count * batch, 3)
    path = tmp_path_factory.mktemp("data") / "d.npz"
    (np.savez_compressed if compressed else np.savez)(path, x=np.asfortranarray(x) if fortran else x)
    pieces = [s.feed["x"] for s in Data(path, {"x": TensorType(DType.FLOAT, (batch, 3))})]
    assert len(pieces) == count
    assert np.array_equal(np.concatenate(pieces), x)


def test_numbers_of_numpy_and_foreign_byte_orders_come_back_as_they_were(tmp_path: Path) -> None:
    data = Data(iter([{"x": np.float32(3)}]), {"x": TensorType(DType.FLOAT, ())})
    assert [[s.feed["x"].item() for s in data] for _ in range(2)] == [[3.0], [3.0]]
    save_feed(tmp_path / "f.npz", {"x": np.arange(3, dtype=">f4")})
    with np.load(tmp_path / "f.npz") as file:  # as the measuring process reads it
        assert file["x"].dtype.isnative
        assert file["x"].tolist() == [0, 1, 2]
