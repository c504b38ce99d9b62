"""Passes that lose accuracy on purpose, spelled from the options that ask for them."""

from __future__ import annotations

from dataclasses import dataclass

from memoptc.options import CODEBOOKS, Options


@dataclass(frozen=True)
class Lossy:
    """Parts of a pipeline.

    Args:
        first: What raises the opset where a lossy pass needs that.
        tokens: What drops tokens: products over tokens have not become ones over all rows of a batch.
        shrinking: What makes the model compute less; it knows plain operators, before attention and decoders are fused.
        tables: What stores weights as indices; nothing that folds constants may run behind it.
    """

    first: tuple[str, ...] = ()
    tokens: tuple[str, ...] = ()
    shrinking: tuple[str, ...] = ()
    tables: tuple[str, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.tokens or self.shrinking or self.tables)


_AFTER = "(simplify,share-common,drop-dead)*"

NOTHING_LOSSY = Lossy()
"""No such pass."""


def lossy_passes(options: Options) -> Lossy:
    """Give the passes that options ask for."""
    reduces = options.early_exit is not None or options.prune_tokens
    first = ["raise-opset{to=18,below=18}"] if reduces else []
    tokens = (_spelled("prune-tokens", _limits(options)), _AFTER) if options.prune_tokens else ()
    return Lossy(tuple(first), tokens, tuple(_shrinking(options)), tuple(_tables(options)))


def _shrinking(options: Options) -> list[str]:
    limits = _limits(options)
    found = []
    if options.prune is not None:
        found.append(_spelled("prune", [f"most={options.prune!r}", *limits]))
    if options.low_rank:
        found.append(_spelled("factorize", limits))
    if options.early_exit is not None:
        found.append(f"early-exit{{max_disagreement={options.early_exit!r}}}")
    return [*found, _AFTER] if found else []


def _tables(options: Options) -> list[str]:
    if options.cluster is None:
        return []
    bits = "bits=8" if options.cluster == CODEBOOKS[-1] else "bits=4"
    return [_spelled("cluster-weights", [bits, *_limits(options)]), "drop-dead"]


def _limits(options: Options) -> list[str]:
    """The accuracy target of every lossy pass; where none is given, each pass's own default."""
    if options.max_accuracy_loss is None:
        return [] if options.min_sqnr is None else [f"min_sqnr={float(options.min_sqnr)!r}"]
    ratio = "none" if options.min_sqnr is None else repr(float(options.min_sqnr))
    return [f"min_sqnr={ratio}", f"max_loss={float(options.max_accuracy_loss)!r}"]


def _spelled(name: str, options: list[str]) -> str:
    return name + (f"{{{','.join(options)}}}" if options else "")
