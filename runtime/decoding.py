"""Run a decoder: ids in, scores or tokens out; its cache is kept between calls."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnxruntime as ort

from memoptc.ir.decoder_facts import DecoderFacts
from memoptc.ir.diagnostics import InputError
from memoptc.runtime.cache_rings import CacheRings
from memoptc.runtime.decoder_feeds import (
    Ids,
    check_context,
    counted_feed,
    empty_cache,
    padded_ids,
    refuse_padding,
)
from memoptc.runtime.errors import MemoryLimit
from memoptc.runtime.sampling import Sampler
from memoptc.runtime.session import Session
from memoptc.runtime.session_facts import facts_of_session

if TYPE_CHECKING:
    Array: TypeAlias = npt.NDArray[Any]

_SMALLEST_CHUNK = 1


class Decoder:
    """A language model ready to generate, as `memoptc` compiled it or as an exporter wrote it.

    Which input is which stands in the metadata of a compiled model; any other is analysed when it is loaded. The cache
    is updated in place where the graph's attention allows that and `max_length` says how much room it takes; elsewhere
    the graph itself writes it anew in each step, each layer's, where the graph's order allows that, over the past of
    the layer before, so that one layer's cache exists twice and not all. `notes` says which, and what else a caller
    should know.

    One sequence (or batch) is kept by the decoder itself; `sequence()` makes others over the same weights, which may
    run in threads of their own.

    Args:
        path: The model.
        max_length: Most tokens of a sequence, prompt included; what the model's tables hold if not given.
        memory_limit: Most bytes that onnxruntime may allocate, as for `Session`. A prompt that takes more is computed
            in chunks. Caches that the decoder itself keeps come on top: those that are updated in place, and those
            whose presents are written over the pasts of other layers.
        chunk: Most tokens of a prompt that are computed at once; all, as far as the limit allows, if not given.
        options: `Session`'s other arguments, such as `threads` and `packing`.

    Raises:
        InputError: the model is no decoder that is recognised; the message names what is missing.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        max_length: int | None = None,
        memory_limit: int | str | None = None,
        chunk: int | None = None,
        **options: Any,
    ) -> None:
        options.setdefault("memory", "arena")
        session = Session(path, memory_limit=memory_limit, **options)
        self._open(session, facts_of_session(session, path), max_length, chunk)

    @classmethod
    def over(cls, session: ort.InferenceSession, facts: DecoderFacts, max_length: int | None = None) -> Decoder:
        """Run a session that exists, of a model of which `facts` hold, though they may be those of its original."""
        made = cls.__new__(cls)
        apart = tuple(replace(c, reuses="") for c in facts.caches)  # another graph may read its pasts in another order
        made._open(session, replace(facts, caches=apart), max_length, None)
        return made

    def _open(
        self, session: ort.InferenceSession, facts: DecoderFacts, max_length: int | None, chunk: int | None
    ) -> None:
        self.session, self.facts = session, facts
        self.notes: list[str] = []
        self.chunk = chunk
        held = [c.shape[c.axis] for c in self.facts.own if c.form == "fixed" and c.shape[c.axis] > 0]
        limits = [n for n in (max_length, self.facts.max_length, *held) if n]
        self.max_length: int | None = min(limits) if limits else None
        self.in_place = self.facts.shared and self.max_length is not None
        if self.facts.steps:
            self.chunk = self.facts.steps
        self._shapes = {port.name: port.shape for port in self.session.get_inputs()}
        self._own = self.sequence()
        if self.in_place:
            size = self.max_length * self.facts.bytes_per_token  # type: ignore[operator]
            self.note(f"caches of {self.max_length} tokens are updated in place ({size / 1e6:.1f} MB a sequence)")
        elif any(c.reuses for c in self.facts.own):
            self.note("the graph writes its caches anew in each step, each where the past of the layer before was")
        else:
            self.note("the graph writes its caches anew in each step: the past and the present exist side by side")

    def note(self, text: str) -> None:
        """Add to `notes`, once."""
        if text not in self.notes:
            self.notes.append(text)

    def sequence(self) -> Tokens:
        """Start another sequence, or batch of them, over the same weights."""
        return Tokens(self)

    def prefill(self, ids: Ids, *, context: Mapping[str, Array] | None = None) -> Array:
        """Start anew with a prompt, as `Tokens.prefill`."""
        return self._own.prefill(ids, context=context)

    def score(self, ids: Ids, *, context: Mapping[str, Array] | None = None) -> Array:
        """Start anew, and give scores for the token after each but the last, as `Tokens.score`."""
        return self._own.score(ids, context=context)

    def step(self, ids: int | Sequence[int] | Array) -> Array:
        """Add one token to each sequence, as `Tokens.step`."""
        return self._own.step(ids)

    def generate(self, ids: Ids, **options: Any) -> Iterator[Any]:
        """Give tokens that continue a prompt, as `Tokens.generate`; each call has a cache of its own."""
        return self.sequence().generate(ids, **options)

    def close(self) -> None:
        """Release the model's memory."""
        if isinstance(self.session, Session):
            self.session.close()

    def __enter__(self) -> Decoder:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Tokens:
    """A sequence, or a batch of them, with its cache; made by `Decoder.sequence`.

    One thread at a time may use it; several of one decoder may run at once.
    """

    def __init__(self, decoder: Decoder) -> None:
        self._decoder, self._facts = decoder, decoder.facts
        self.length = 0
        """Tokens so far, padding included."""
        self.batch = 0
        self._caches: dict[str, ort.OrtValue] = {}
        self._mask: Array = np.ones((0, 0), np.int64)
        self._context: dict[str, Array] = {}
        self._rows: Array = np.zeros((0, 0), np.int64)
        self._given: Mapping[str, Array] = {}
        self._rings = CacheRings((), 0, None)
        self._all: list[Array] | None = None  # collects the scores of all steps

    def prefill(self, ids: Ids, *, context: Mapping[str, Array] | None = None) -> Array:
        """Start anew with a prompt.

        Args:
            ids: Token numbers of one sequence, or of several, which need not be equally long where the model can tell
                padding: shorter ones are padded at the left, and the padding masked.
            context: Other inputs by name, such as the states of an encoder, kept for later steps; states of recurrent
                layers to begin with, in place of those that the record names.

        Returns:
            Scores of the vocabulary for the token after the last, `[batch, vocabulary]`.

        Raises:
            InputError: the ids do not suit the model, or are more than it holds.
            MemoryLimit: even one token at a time takes more than the limit.
        """
        rows, shown = padded_ids(ids)
        if not shown.all():
            refuse_padding(self._facts)
        self._start(len(rows), context or {})
        return self._extend(rows, shown)

    def score(self, ids: Ids, *, context: Mapping[str, Array] | None = None) -> Array:
        """Start anew with one sequence, and say how likely each token behind the first was.

        Returns:
            Scores of the vocabulary after each token but the last, `[tokens - 1, vocabulary]`. A model that scores the
            last step only gets its tokens one by one.
        """
        rows, _ = padded_ids(ids)
        if len(rows) != 1 or rows.shape[1] < 2:
            raise InputError("Scores are of one sequence of two tokens or more.")
        self._start(1, context or {})
        size = 1 if self._facts.last_only else rows.shape[1]
        found: list[Array] = []
        self._all = found if size > 1 else None
        try:
            for at in range(0, rows.shape[1] - 1, size):
                part = rows[:, at : min(at + size, rows.shape[1] - 1)]
                scores = self._extend(part, np.ones_like(part))
                if size == 1:
                    found.append(scores)
        finally:
            self._all = None
        scores = np.concatenate(found)
        if len(scores) != rows.shape[1] - 1:
            raise InputError(
                f"The model gives {len(scores)} rows of scores for {rows.shape[1] - 1} tokens.",
                hint="Scores of each token need a model that gives all, or whose outputs state [batch, 1, vocabulary].",
            )
        return scores

    def step(self, ids: int | Sequence[int] | Array) -> Array:
        """Add one token to each sequence.

        Returns:
            Scores of the vocabulary for the token after it, `[batch, vocabulary]`.
        """
        column = np.atleast_1d(np.asarray(ids, np.int64)).reshape(-1, 1)
        if not self.batch:
            raise InputError("There is no sequence to add a token to.", hint="Call prefill first.")
        if len(column) != self.batch:
            raise InputError(f"{len(column)} tokens for {self.batch} sequences.", hint="Give one token for each.")
        return self._extend(column, np.ones_like(column))

    def extend(self, ids: Ids) -> Array:
        """Add several tokens to each sequence, as many to each; gives what `step` gives."""
        rows, shown = padded_ids(ids)
        if not self.batch or len(rows) != self.batch or not shown.all():
            raise InputError(f"{self.batch} sequences take as many rows of equally many tokens.")
        return self._extend(rows, shown)

    def generate(
        self,
        ids: Ids,
        *,
        max_new_tokens: int = 128,
        temperature: float | None = None,
        top_k: int = 0,
        top_p: float = 1.0,
        seed: int | None = None,
        stop: int | Collection[int] = (),
        context: Mapping[str, Array] | None = None,
    ) -> Iterator[Any]:
        """Give tokens that continue a prompt, one by one, as they are computed.

        Args:
            ids: As for `prefill`.
            max_new_tokens: How many at most; fewer where `max_length` is reached.
            temperature: As `Sampler`; so are `top_k` and `top_p`. Without any of them the best token is taken.
            top_k: Choose among so many.
            top_p: Choose among those that have this probability together.
            seed: Of random choices; the same seed gives the same tokens.
            stop: Tokens that end a sequence; they are not given.
            context: As for `prefill`.

        Returns:
            Iterator over tokens: a number each for one sequence; for several a list each, with `None` for those that
            have ended.

        Raises:
            InputError: as `prefill`, at once; or an option is out of its range.
        """
        sampler = Sampler(temperature, top_k, top_p)
        if max_new_tokens < 0:
            raise InputError(f"max_new_tokens is {max_new_tokens}.", hint="It has to be 0 or more.")
        ends = {stop} if isinstance(stop, int) else set(stop)
        alone = bool(len(ids)) and np.ndim(ids[0]) == 0
        scores = self.prefill(ids, context=context)
        return self._tokens(scores, sampler, np.random.default_rng(seed), max_new_tokens, ends, alone)

    def _tokens(
        self, scores: Array, sampler: Sampler, rng: np.random.Generator, count: int, ends: set[int], alone: bool
    ) -> Iterator[Any]:
        ended = np.zeros(self.batch, bool)
        longest = self._decoder.max_length
        for number in range(count):
            chosen = sampler.choose(scores, rng)
            ended |= np.isin(chosen, list(ends))
            if ended.all():
                return
            yield int(chosen[0]) if alone else [None if e else int(t) for t, e in zip(chosen, ended, strict=True)]
            if number + 1 == count or self.length == longest:
                return
            scores = self.step(chosen)

    # -- running -------------------------------------------------------------------------------------

    def _start(self, batch: int, context: Mapping[str, Array]) -> None:
        facts, decoder = self._facts, self._decoder
        check_context(facts, context)
        self.length, self.batch = 0, batch
        self._mask, self._rows, self._given = np.ones((batch, 0), np.int64), np.ones((batch, 0), np.int64), context
        self._context = {name: np.asarray(value) for name, value in context.items() if name in facts.context_inputs}
        if facts.encoder_mask and facts.encoder_mask not in self._context:
            self._context[facts.encoder_mask] = np.ones((batch, self._source_length()), np.int64)
        room = decoder.max_length if decoder.in_place else 0
        self._caches = {}
        self._rings = CacheRings(() if decoder.in_place else facts.own, batch, decoder.max_length)
        ringed = self._rings.pasts
        for cache in facts.caches:
            if cache.past not in ringed and cache.past not in self._context:
                held = context.get(cache.past)
                start = empty_cache(cache, batch, room or 0) if held is None else np.ascontiguousarray(held)
                self._caches[cache.past] = ort.OrtValue.ortvalue_from_numpy(start)

    def _source_length(self) -> int:
        """Number of steps that the encoder computed."""
        axes = {c.past: c.axis for c in self._facts.caches}
        return next((v.shape[axes.get(n, 1)] for n, v in self._context.items() if v.ndim >= 3), 0)

    def _extend(self, rows: Array, shown: Array) -> Array:
        """Add tokens, as many at once as limits allow."""
        decoder, facts = self._decoder, self._facts
        total = self.length + rows.shape[1]
        if decoder.max_length is not None and total > decoder.max_length:
            raise InputError(
                f"{total} tokens are more than the {decoder.max_length} that there is room for.",
                hint="Give a shorter prompt, or a larger max_length where the model's tables allow it.",
            )
        low, high = int(rows.min(initial=0)), int(rows.max(initial=0))
        if low < 0 or high >= facts.vocabulary:
            raise InputError(f"{low if low < 0 else high} is no token: there are {facts.vocabulary}.")
        whole = facts.grouped and self.batch > 1  # its kernel takes several steps after a past for one sequence only
        if whole and self.length and rows.shape[1] > 1:
            for at in range(rows.shape[1]):
                scores = self._run(rows[:, at : at + 1], shown[:, at : at + 1])
            return scores
        if rows.shape[1] % max(1, facts.steps):
            raise InputError(
                f"The model takes {facts.steps} tokens at a time, and there are {rows.shape[1]}.",
                hint="Export it with an open number of steps, or with one.",
            )
        done = 0
        while done < rows.shape[1]:
            room = rows.shape[1] - done
            count = room if decoder.chunk is None or whole else min(room, decoder.chunk)
            try:
                scores = self._run(rows[:, done : done + count], shown[:, done : done + count])
            except MemoryLimit:
                if count <= max(_SMALLEST_CHUNK, facts.steps) or whole:
                    raise
                decoder.chunk = max(_SMALLEST_CHUNK, count // 2)
                if not self.batch:  # what the run has overwritten is computed again
                    rows = np.concatenate([self._rows, rows[:, done:]], axis=1)
                    shown = np.concatenate([self._mask, shown[:, done:]], axis=1)
                    self._start(len(rows), self._given)
                    done = 0
                    if self._all is not None:
                        self._all.clear()
                continue
            done += count
            if done < rows.shape[1]:
                decoder.note(f"prompts are computed {decoder.chunk} token{'s' * (decoder.chunk != 1)} at a time")
        return scores

    def _run(self, rows: Array, shown: Array) -> Array:
        """Run the model once, and take over the caches that it gives."""
        facts, decoder = self._facts, self._decoder
        mask = np.concatenate([self._mask, shown], axis=1)
        binding = decoder.session.io_binding()
        for name, value in self._feed(rows, mask).items():
            binding.bind_ortvalue_input(name, ort.OrtValue.ortvalue_from_numpy(np.ascontiguousarray(value)))
        for name, held in self._caches.items():
            binding.bind_ortvalue_input(name, held)
        binding.bind_output(facts.logits, "cpu")
        kept = [c for c in facts.caches if c.present and (c.form != "read" or (facts.switch and not self.length))]
        kept = [c for c in kept if c.past in self._caches or c.form == "read"]
        in_place = {c.past for c in facts.own if decoder.in_place}
        for cache in kept:
            if cache.past in in_place:
                binding.bind_ortvalue_output(cache.present, self._caches[cache.past])
            else:
                binding.bind_output(cache.present, "cpu")
        try:
            self._rings.run(decoder.session, binding, self.length, mask.shape[1])
        except BaseException:
            if self._rings and self.length:  # presents lie over pasts that another try would need
                self.batch = 0
            raise
        logits, *presents = binding.get_outputs()[: 1 + len(kept)]
        self._caches.update({c.past: v for c, v in zip(kept, presents, strict=True) if c.past not in in_place})
        self._mask, self.length = mask, mask.shape[1]
        self._rows = np.concatenate([self._rows, rows], axis=1)
        scores = logits.numpy()
        if self._all is not None:
            self._all.append(scores[0])
        return np.asarray(scores if scores.ndim == 2 else scores[:, -1])

    def _feed(self, rows: Array, mask: Array) -> dict[str, Array]:
        facts = self._facts
        feed: dict[str, Array] = {facts.ids: rows, **self._context, **counted_feed(facts, mask, rows.shape[1])}
        if facts.total:
            feed[facts.total] = np.full(self._extents(facts.total, 1), mask.shape[1])
        if facts.switch:
            feed[facts.switch] = np.full(self._extents(facts.switch, 1), self.length > 0)
        return {name: value.astype(facts.dtypes.get(name, value.dtype), copy=False) for name, value in feed.items()}

    def _extents(self, name: str, default: int) -> tuple[int, ...]:
        return tuple(d if isinstance(d, int) else default for d in self._decoder._shapes[name])
