"""The session contract: what a user of stock onnxruntime sets to get what memoptc planned and measured.

It lies beside the model as `MODEL.session.json`. Every entry is an attribute of onnxruntime's public Python
interface, so that it can be applied by hand:

    `session`    attributes of `SessionOptions`, enumerations by name
    `config`     entries for `SessionOptions.add_session_config_entry`
    `disabled_optimizers`    argument of `InferenceSession`
    `arena`      entries of `OrtArenaCfg` for `create_and_register_allocator`; sized for `inputs`
    `tier`       the way of `memoptc.runtime.Session` that needs least memory
    `run_bytes`  bytes of activations, outputs and scratch of a run: the largest of some expressions over extents, and
                 where those are read off (symbol: input, axis)
    `batch`      axes of inputs and outputs along which samples lie that give the same bits in any number of calls
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.options import FRUGAL, RunOptions

if TYPE_CHECKING:
    from pathlib import Path

    from memoptc.runtime.admission import Admission, BatchAxis, RunBytes

Tier: TypeAlias = Literal["arena", "planned", "stock"]
"""How `memoptc.runtime.Session` runs a model: in a sized arena, at planned offsets, or as stock onnxruntime does."""

VERSION = 1
SUFFIX = ".session.json"


@dataclass(frozen=True)
class Contract:
    """Settings to run a model with.

    Args:
        options: What the session gets.
        arena_bytes: Capacity of an arena that suffices for `inputs`, pre-packed weights included; 0 when not known.
        inputs: Shapes that `arena_bytes` and `measured` are for.
        measured: Recorded peak of a run and bytes allocated while loading, as onnxruntime's allocator saw them.
        onnxruntime: Version that was measured.
        peaks: Peak of activations in bytes by configuration (`memoptc.runtime.configuration`), for `inputs`.
        tier: Which of `Session`'s tiers needs least memory, its own libraries included.
        run_bytes: What a run allocates, by the shapes of the inputs; `None` where that is not known.
        batch: Samples that may be computed in several calls; `None` where that is not proven.
    """

    options: RunOptions = FRUGAL
    arena_bytes: int = 0
    inputs: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    measured: Mapping[str, int] = field(default_factory=dict)
    onnxruntime: str = ort.__version__
    tier: Tier = "arena"
    peaks: Mapping[str, int] = field(default_factory=dict)
    run_bytes: RunBytes | None = None
    batch: BatchAxis | None = None

    def to_json(self) -> dict[str, Any]:
        """Give the file's content."""
        native = self.options.native()
        native.pop("log_severity_level")
        return {
            "version": VERSION,
            "onnxruntime": self.onnxruntime,
            "session": native,
            "config": dict(self.options.config),
            "disabled_optimizers": list(self.options.disabled_optimizers),
            "arena": arena_entries(self.arena_bytes) if self.arena_bytes else None,
            "inputs": {name: list(shape) for name, shape in self.inputs.items()},
            "measured": dict(self.measured),
            "peaks": dict(self.peaks),
            "tier": self.tier,
            "run_bytes": self.run_bytes and self.run_bytes.to_json(),
            "batch": self.batch and self.batch.to_json(),
        }

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Contract:
        """Read a file's content.

        Raises:
            InputError: it is no contract, or one of a later version.
        """
        if data.get("version") != VERSION or not isinstance(data.get("session"), dict):
            raise InputError(
                f"It is no session contract of version {VERSION}.", hint="Compile the model again, or delete the file."
            )
        session = data["session"]
        _check(data)
        options = RunOptions(
            optimize=session.get("graph_optimization_level") != "ORT_DISABLE_ALL",
            threads=int(session.get("intra_op_num_threads", 0)),
            mem_pattern=bool(session.get("enable_mem_pattern", True)),
            mem_reuse=bool(session.get("enable_mem_reuse", True)),
            arena=bool(session.get("enable_cpu_mem_arena", True)),
            file_order=session.get("execution_order") == "PRIORITY_BASED",
            disabled_optimizers=tuple(data.get("disabled_optimizers", ())),
            config=dict(data.get("config", {})),
        )
        arena = data.get("arena") or {}
        return Contract(
            options,
            int(arena.get("initial_chunk_size_bytes", 0)),
            {name: tuple(shape) for name, shape in data.get("inputs", {}).items()},
            {name: int(n) for name, n in data.get("measured", {}).items()},
            str(data.get("onnxruntime", "")),
            tier if (tier := data.get("tier")) in ("planned", "stock") else "arena",
            {name: int(n) for name, n in data.get("peaks", {}).items()},
            *_run_parts(data),
        )

    def admission(self, limit: int, fixed: int, tier: str) -> Admission | None:
        """Decide about calls in a session with a limit; `None` where what they take is not known.

        Args:
            limit: Most bytes that onnxruntime may allocate.
            fixed: Bytes that stay allocated, such as weights in the kernels' layout.
            tier: Of the session: what an arena holds unused counts there.
        """
        if self.run_bytes is None:
            return None
        factor, offset = self._recorded_over(self.run_bytes)
        peak = self.measured.get("run_peak_bytes", 0)
        if tier == "arena" and peak:
            unused = max(1.0, (self.arena_bytes - self.measured.get("loaded_bytes", 0)) / peak)
            factor, offset = factor * unused, offset * unused
        from memoptc.runtime.admission import Admission

        return Admission(limit, fixed + int(offset), self.run_bytes, factor, self.batch)

    def _recorded_over(self, paper: RunBytes) -> tuple[float, float]:
        """The line, factor and offset, from what runs take on paper to what was recorded."""
        at, peak = paper.of(self.inputs) if self.inputs else None, self.measured.get("run_peak_bytes", 0)
        if not at or not peak:
            return 1.0, 0.0
        if self.batch is not None and "samples" in self.measured:
            beyond = paper.of(self.batch.with_samples(self.inputs, self.measured["samples"]))
            if beyond is not None and beyond > at:
                factor = (self.measured.get("samples_peak_bytes", 0) - peak) / (beyond - at)
                if factor > 0:
                    return factor, peak - factor * at
        return max(peak / at, 1.0), 0.0

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the contract to a file, whole or not at all."""
        import json
        from pathlib import Path

        from memoptc.ir.files import atomic_write

        atomic_write(Path(path), (json.dumps(self.to_json(), indent=2) + "\n").encode())


def _run_parts(data: Mapping[str, Any]) -> tuple[RunBytes | None, BatchAxis | None]:
    """Read how many bytes a run takes, and along which axis it may be split; only files that say so pay for it."""
    run_bytes, batch = data.get("run_bytes"), data.get("batch")
    if not run_bytes and not batch:
        return None, None
    from memoptc.runtime.admission import BatchAxis, RunBytes

    return RunBytes.from_json(run_bytes) if run_bytes else None, BatchAxis.from_json(batch) if batch else None


MOST_BYTES = 1 << 46
"""Largest arena that is asked for."""
MOST_THREADS = 4096
_LONGEST = 1024


def _check(data: Mapping[str, Any]) -> None:
    """Refuse what ends onnxruntime's process, or lets it read files elsewhere.

    Raises:
        InputError: there is such an entry.
    """
    arena = data.get("arena") or {}
    config = dict(data.get("config", {}))
    names = data.get("disabled_optimizers", [])
    threads = int(data["session"].get("intra_op_num_threads", 0))
    capacity = int(arena.get("initial_chunk_size_bytes", 0))
    texts = (*config, *config.values())
    faults = {
        "config": not all(isinstance(t, str) and len(t) < _LONGEST for t in texts) or not all(config),
        "disabled_optimizers": not isinstance(names, list) or not all(isinstance(n, str) for n in names),
        "intra_op_num_threads": not 0 <= threads <= MOST_THREADS,
        "initial_chunk_size_bytes": not 0 <= capacity <= MOST_BYTES,
    }
    found = [name for name, wrong in faults.items() if wrong]
    found += [key for key in config if "path" in key or "file" in key]
    if found:
        raise InputError(
            f"The session contract has an entry that cannot be used: {found[0]:.80}.",
            hint="Compile the model again, or delete the file.",
        )


def arena_entries(capacity: int, limit: int = 0) -> dict[str, int]:
    """Give the entries of `OrtArenaCfg`: one chunk of the capacity, nothing beyond `limit` (0: no limit)."""
    return {
        "max_mem": limit,
        "initial_chunk_size_bytes": capacity,
        # What must be added is as large as asked for (1) unless all is there from the start (0).
        "arena_extend_strategy": 0 if capacity else 1,
        "max_dead_bytes_per_chunk": 1,
    }


def contract_path(model: str | os.PathLike[str]) -> Path:
    """Path of a model's contract: beside it."""
    from pathlib import Path

    return Path(beside(model))


def beside(model: str | os.PathLike[str]) -> str:
    """Give the same as text."""
    return os.path.splitext(os.fspath(model))[0] + SUFFIX


def load_contract(file: str | os.PathLike[str]) -> Contract | None:
    """Read a contract; `None` when there is no such file.

    Raises:
        InputError: the file cannot be read, or is no contract.
    """
    path = os.fspath(file)
    try:
        with open(path, encoding="utf-8") as opened:
            text = opened.read()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no session contract: {error}.", hint="Delete it to run without.") from None
    import json  # only models with a contract pay for it

    try:
        return Contract.from_json(json.loads(text))
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError) as error:
        raise InputError(f"{path} is no session contract: {error}.", hint="Delete it to run without.") from None
