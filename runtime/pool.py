"""Several models in one process under one memory limit.

Weights are stored once where their bytes are equal, whichever models they belong to; the kernels' own layouts of equal
weights, too. Runs take turns in one block. What does not fit the limit beside the others is parked: the sessions used
longest ago give their memory back, and load again when they are called.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.admission import BatchAxis
from memoptc.runtime.batching import Batched
from memoptc.runtime.errors import MemoryLimit, no_such_file
from memoptc.runtime.external_weights import ExternalWeight, external_weights
from memoptc.runtime.native.shared import BlockHome, PackedWeights, Shared, StoredWeight, WeightStore
from memoptc.runtime.options import Feed
from memoptc.runtime.session import Packing, Session
from memoptc.runtime.sizes import as_bytes

if TYPE_CHECKING:
    import numpy.typing as npt

SESSION_BYTES = 3 << 20
"""What an open session takes besides weights and runs: its graph, its kernels, its plans."""


class Pool:
    """Sessions that share what they can, under one limit.

    Calls of its sessions wait for each other: they run in the same memory. Sessions are those of the tier `"planned"`.
    Only weights that lie in files of their own are shared (`memoptc --external always`, `memoptc merge`).

    Args:
        memory_limit: Most bytes for weights, activations, outputs and scratch of all sessions together. Each weight
            counts once, mapped or in the kernels' own layout. No limit when not given.
        threads: Intra-op threads of each session; onnxruntime's choice when not given.
        packing: As for `Session`.

    Raises:
        InputError: the limit is no size.
    """

    def __init__(
        self, memory_limit: int | str | None = None, *, threads: int | None = None, packing: Packing = "auto"
    ) -> None:
        self.memory_limit = None if memory_limit is None else as_bytes(memory_limit)
        self.parked = 0
        """How often a session was parked."""
        self._options: dict[str, Any] = {"threads": threads, "packing": packing}
        self._home = BlockHome()
        self._store = WeightStore()
        self._packed: PackedWeights | None = None
        self._sessions: list[PoolSession] = []
        """Those used longest ago first."""

    def open(self, path: str | os.PathLike[str], **options: Any) -> PoolSession:
        """Add a model; it is loaded at once, as far as it fits.

        Args:
            path: The model.
            options: Arguments of `Session`, such as `contract`.

        Raises:
            InputError: it cannot be loaded, or an option is not for a pool (`memory`, `shared`, `weights`).
            MemoryLimit: it does not fit, not even alone.
        """
        if not os.path.isfile(path):
            raise no_such_file(path)
        fixed = sorted({"memory", "shared", "weights", "weight_limit"} & set(options))
        if fixed:
            raise InputError(
                f"{fixed[0]}= is no option of a pool's session: the pool itself says so.",
                hint="Leave it out, or open the model with memoptc.runtime.Session.",
            )
        session = PoolSession(self, os.fspath(path), self._options | options)
        with self._home.lock:
            self._sessions.append(session)
            try:
                self._ready(session)
            except BaseException:
                self._sessions.remove(session)
                raise
        return session

    def batched(
        self,
        session: PoolSession,
        *,
        max_wait_ms: float = 2.0,
        max_samples: int = 32,
        batch: BatchAxis | None = None,
    ) -> Batched:
        """Let requests that arrive together run as one batch; one that does not fit the limit is split.

        Args:
            session: Runs them.
            max_wait_ms: How long the first request waits for others.
            max_samples: Most samples in one run.
            batch: Axes of samples; the contract's when not given.

        Raises:
            InputError: the contract does not say that samples do not depend on each other.
        """
        batch = batch or session.loaded.contract.batch
        if batch is None:
            raise InputError(
                f"It is not known that the samples of {session.path} do not depend on each other.",
                hint="Compile it with --measure, which looks, or say where samples lie: batch=BatchAxis(...).",
            )
        return Batched(session, batch, max_wait_ms, max_samples)

    @property
    def used_bytes(self) -> int:
        """Bytes that open sessions take between runs, as the limit counts them."""
        with self._home.lock:
            block = 0 if self._home.block is None else self._home.block.size
            return self._fixed([s for s in self._sessions if s.is_open]) + block

    def close(self) -> None:
        """Close all sessions."""
        with self._home.lock:
            for session in list(self._sessions):
                session.close()

    def __enter__(self) -> Pool:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _fixed(self, sessions: Sequence[PoolSession]) -> int:
        """Bytes that stay between runs: each weight once, packed or mapped, and the sessions themselves."""
        weights = {w for s in sessions for w in s.weights.values()}
        return sum(w.data.nbytes for w in weights) + sum(SESSION_BYTES + s.own_bytes for s in sessions)

    def _ready(self, session: PoolSession) -> Session:
        """Load a session that is parked, and park others where the limit asks for it."""
        session.check()
        self._sessions.remove(session)
        self._sessions.append(session)
        try:
            session.read_weights()
            while self.memory_limit is not None and self._left() < 0:
                if not self._park_one(session):
                    need = self._fixed([session])
                    raise MemoryLimit(
                        f"{session.path} takes {need} bytes alone; the limit of the pool is {self.memory_limit}.",
                        hint="Raise the limit, or compile the model for less.",
                    )
            return session.load()
        except BaseException:
            session.park()  # weights that no session runs on are given back
            raise

    def _left(self) -> int:
        """Bytes of the limit that runs may take."""
        assert self.memory_limit is not None
        taking = [s for s in self._sessions if s.is_open or s is self._sessions[-1]]
        return self.memory_limit - self._fixed(taking)

    def _park_one(self, but: PoolSession) -> bool:
        """Park the open session that was used longest ago."""
        for session in self._sessions:
            if session is not but and session.is_open:
                session.park()
                self.parked += 1
                return True
        return False

    def _run(self, session: PoolSession, *arguments: Any, **named: Any) -> list[Any]:
        with self._home.lock:
            ready = self._ready(session)
            while True:
                if self.memory_limit is not None:
                    left = self._left() + session.own_bytes  # the session's own limit counts these
                    if self._home.block is not None and self._home.block.size > left:
                        self._home.block = None
                    ready.set_limit(left)
                try:
                    return ready.run(*arguments, **named)
                except MemoryLimit:
                    if not self._park_one(session):
                        raise

    def _shared(self, session: PoolSession) -> Shared:
        if self._packed is None:
            self._packed = PackedWeights()
        return Shared(session.weights, self._packed, self._home)

    def _forget(self) -> None:
        """Give back weights that no session holds any more; packed ones once no session is open."""
        self._store.drop({w for s in self._sessions for w in s.weights.values()})
        if not any(s.is_open for s in self._sessions):
            self._packed = None
            self._home.block = None
        gc.collect(0)


class PoolSession:
    """A model of a pool. Made by `Pool.open`; runs as `Session` does.

    Args:
        pool: The pool.
        path: The model.
        options: Arguments of `Session`.
    """

    def __init__(self, pool: Pool, path: str, options: Mapping[str, Any]) -> None:
        self.path = path
        self.weights: dict[str, StoredWeight] = {}
        """Shared weights by name; none while parked."""
        self.own_bytes = 0
        """Bytes that it allocates for weights that are not shared."""
        self._pool, self._options = pool, dict(options)
        self._file = os.path.abspath(path)  # loaded again later, wherever the process is then
        self._listed: list[ExternalWeight] = external_weights(self._file)
        self._session: Session | None = None
        self._closed = False

    @property
    def is_open(self) -> bool:
        """True if it is loaded."""
        return self._session is not None

    @property
    def loaded(self) -> Session:
        """The session, loaded now if it was parked: for what is asked of it besides running."""
        with self._pool._home.lock:
            return self._pool._ready(self)

    def get_inputs(self) -> list[Any]:
        """Give the model's inputs, as `Session.get_inputs` does."""
        return list(self.loaded.get_inputs())

    def get_outputs(self) -> list[Any]:
        """Give the model's outputs, as `Session.get_outputs` does."""
        return list(self.loaded.get_outputs())

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Feed,
        *,
        into: Mapping[str, npt.NDArray[Any]] | None = None,
    ) -> list[Any]:
        """Run once, as `Session.run` does; waits for runs of the pool's other sessions.

        Raises:
            InputError: onnxruntime refuses the run, or the session is closed.
            MemoryLimit: it does not fit, not even with all others parked.
        """
        return self._pool._run(self, output_names, input_feed, into=into)

    def park(self) -> None:
        """Give back all memory until the next call."""
        with self._pool._home.lock:
            if self._session is not None:
                self._session.close()
                self._session = None
            self.weights = {}
            self._pool._forget()

    def close(self) -> None:
        """Leave the pool."""
        with self._pool._home.lock:
            if not self._closed:
                self._closed = True
                self._pool._sessions.remove(self)
                self.park()

    def read_weights(self) -> None:
        """Map its weights."""
        if not self.weights:
            self.weights = {w.name: self._pool._store.get(w) for w in self._listed}

    def load(self) -> Session:
        """Load it, if it is not loaded."""
        if self._session is None:
            self._session = Session(self._file, memory="planned", shared=self._pool._shared(self), **self._options)
            assert self._session._planned is not None
            self.own_bytes = self._session._planned.loaded_bytes
            self._pool._store.give_back()
        return self._session

    def check(self) -> None:
        """Raise if it is closed, which another thread may have done; asked where the pool is locked."""
        if self._closed:
            raise InputError(f"The session of {self.path} is closed.", hint="Open it again.")


__all__ = ["Pool", "PoolSession"]
