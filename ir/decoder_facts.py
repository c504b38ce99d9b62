"""The record of a decoder that models carry in their metadata, so that running one needs no analysis.

Light on purpose: nothing of memoptc's form of a graph is imported, so that a process which only runs models pays
nothing for it. `memoptc.ir.decoder` reads the record off a graph.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

KEY = "memoptc.decoder"
"""Entry of a model's metadata that holds the record as JSON."""

Part = Literal["key", "value", "both", "latent", "state"]
Form = Literal["grown", "fixed", "read", "state"]

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2, "float64": 8, "int8": 1, "uint8": 1}


@dataclass(frozen=True)
class Cache:
    """One input that holds keys or values of earlier steps, and the output that gives them back.

    Args:
        past: Name of the input.
        present: Name of the output, `""` where the input is only read.
        part: Whether it holds keys, values, both, stacked, what keys and values are computed from (`latent`), or what
            a recurrent layer carries on (`state`).
        form: `grown`: the output is the input with the new steps behind it; `fixed`: new steps are written into a
            buffer of constant length; `read`: keys and values of an encoder, that no step changes; `state`: of constant
            size, and computed anew in each run, from `start` at the beginning.
        dtype: Element type, as numpy spells it.
        shape: Extents of the input, -1 where open.
        batch: The axis of sequences.
        axis: The axis of steps; that of sequences for a state, which has none.
        heads: Key/value heads.
        width: Width of a head.
        reuses: Name of the past over which the present may be written, `""` for none: every read of it comes before.
        start: What a state holds before the first step.
    """

    past: str
    present: str
    part: Part
    form: Form
    dtype: str
    shape: tuple[int, ...]
    batch: int
    axis: int
    heads: int
    width: int
    reuses: str = ""
    start: float = 0.0

    @property
    def layers(self) -> int:
        """Number of layers whose keys (or values, or both) it holds."""
        return max(1, self._rest // max(1, self.heads * self.width * (2 if self.part == "both" else 1)))

    @property
    def bytes_per_step(self) -> int:
        """Bytes that one step of one sequence takes; of a state, all its bytes."""
        return self._rest * _BYTES.get(self.dtype, 4)

    @property
    def _rest(self) -> int:
        count = 1
        for at, extent in enumerate(self.shape):
            count *= extent if at not in (self.batch, self.axis) else 1
        return count


@dataclass(frozen=True)
class DecoderFacts:
    """Inputs, outputs and structure of a decoder.

    Args:
        ids: The input of token numbers, `[batch, steps]`.
        logits: The output that scores the vocabulary, `[batch, steps, vocabulary]`.
        vocabulary: Tokens that have an embedding.
        caches: Keys and values, in the order of the inputs.
        layers: Layers that keep keys and values.
        heads: Query heads of each.
        shared_positions: Whether positions that all sequences have in common are added to embeddings, so that padding
            cannot lie at the left.
        rotary: Whether queries and keys are turned by their positions.
        last_only: Whether the logits are those of the last step only.
        mask: The input that says which keys count, `""` for none: `[batch, past + steps]`, or as long as the buffer.
        positions: The input that numbers the steps, `""` for none.
        positions_rank: 2 for `[batch, steps]`, 1 for `[steps]`.
        encoder_mask: The input that says which keys of the encoder count, `""` for none.
        switch: The input that says whether there is a past, `""` for none; true where there is one.
        lengths: The input with each sequence's number of keys less one, `""` for none.
        total: The input with the number of keys, `""` for none.
        context: Other inputs, such as the states of an encoder, which the caller gives.
        dtypes: Element types of all inputs but the caches, as numpy spells them.
        shared: Whether past and present may be the same buffer.
        counted: Whether the mask's ones are added up to a number of keys, so that padding cannot lie at the left.
        grouped: Whether attention takes several steps after a past for one sequence only (GroupQueryAttention).
        max_length: Steps that the model's tables of positions hold, 0 where nothing bounds them.
        steps: How many steps one run takes, 0 for any number.
    """

    ids: str
    logits: str
    vocabulary: int
    caches: tuple[Cache, ...]
    layers: int
    heads: int
    shared_positions: bool
    rotary: bool = False
    last_only: bool = False
    mask: str = ""
    positions: str = ""
    positions_rank: int = 2
    encoder_mask: str = ""
    switch: str = ""
    lengths: str = ""
    total: str = ""
    context: tuple[str, ...] = ()
    dtypes: dict[str, str] = field(default_factory=dict)
    shared: bool = False
    counted: bool = False
    grouped: bool = False
    max_length: int = 0
    steps: int = 0

    @property
    def own(self) -> tuple[Cache, ...]:
        """The caches that steps are added to."""
        return tuple(c for c in self.caches if c.form in ("grown", "fixed"))

    @property
    def states(self) -> tuple[Cache, ...]:
        """States of recurrent layers, which each run computes anew."""
        return tuple(c for c in self.caches if c.form == "state")

    @property
    def encoder(self) -> tuple[Cache, ...]:
        """Keys and values of an encoder, which steps only read."""
        return tuple(c for c in self.caches if c.form == "read")

    @property
    def context_inputs(self) -> set[str]:
        """Names of inputs that do not follow from ids and steps: an encoder's states, its mask, keys and values."""
        return {*self.context, self.encoder_mask, *(c.past for c in self.encoder)} - {""}

    @property
    def bytes_per_token(self) -> int:
        """Bytes of all caches that one token of one sequence takes."""
        return sum(c.bytes_per_step for c in self.own)

    def __str__(self) -> str:
        parts = []
        if self.own:
            cache = self.own[0]
            groups = f" over {cache.heads} key/value heads" if cache.heads != self.heads else ""
            parts = [f"{self.layers} layer{'s' * (self.layers != 1)}", f"{self.heads} heads{groups} of {cache.width}"]
        if self.states:
            size = _size(sum(c.bytes_per_step for c in self.states))
            parts.append(f"{len(self.states)} recurrent state{'s' * (len(self.states) != 1)} ({size} a sequence)")
        parts += ["rotary"] if self.rotary else []
        parts += ["cross attention"] if self.encoder else []
        parts.append(f"vocabulary {self.vocabulary}")
        parts += [f"cache {_size(self.bytes_per_token)} a token"] if self.own else []
        return ", ".join(parts)

    def to_json(self) -> str:
        """Give the record as text; `from_json` reads it."""
        return json.dumps(asdict(self), separators=(",", ":"))

    @staticmethod
    def from_json(text: str) -> DecoderFacts:
        """Read what `to_json` gave.

        Raises:
            ValueError: it is no such text.
        """
        plain: Mapping[str, Any] = json.loads(text)
        try:
            caches = tuple(Cache(**{**c, "shape": tuple(c["shape"])}) for c in plain["caches"])
            return DecoderFacts(**{**plain, "caches": caches, "context": tuple(plain["context"])})
        except (TypeError, KeyError) as error:
            raise ValueError(f"no record of a decoder: {error}") from error


def _size(count: int) -> str:
    return f"{count / 1e3:.0f} kB" if count >= 10_000 else f"{count} bytes"
