"""Dictionaries that say which method changes them."""

from __future__ import annotations

from typing import Any, NoReturn, TypeVar

K = TypeVar("K")
V = TypeVar("V")


class ReadOnlyDict(dict[K, V]):
    """A dictionary whose owner alone changes it, by `dict.__setitem__(held, key, value)` and `dict.pop(held, key)`.

    Subclasses say in `advice` what everybody else should call.
    """

    advice = "it is read-only"

    def _refuse(self, *_: Any, **__: Any) -> NoReturn:
        raise TypeError(self.advice)

    __setitem__ = __delitem__ = __ior__ = _refuse
    clear = pop = popitem = setdefault = update = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), (dict(self),)


class Attributes(ReadOnlyDict[str, Any]):
    """An op's attributes."""

    advice = "op.attrs cannot be changed: use op.set_attr(name, value), with None to remove one"


class Regions(ReadOnlyDict[str, V]):
    """An op's subgraphs."""

    advice = "op.regions cannot be changed: use op.set_region(name, graph), with None to drop one"
