"""From which extent on a region can be cut into pieces that overlap, when the extent is known at run time only."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from memoptc.ir.core import Value
from memoptc.ir.dims import Dim, Sym, free_symbols, substitute
from memoptc.ir.types import TensorType
from memoptc.passes._tile.frame import DoesNotFitError, Dynamic

_TRIED = (*range(1, 385), 1000, 1001, 1023, 1024, 2047, 4093, 4096, 65521, 65536)
"""Extents at which the relation between two axes is looked at: all remainders of any stride a network has."""


def shortest(frame: Dynamic, reference: tuple[Value, int, int], *, rounded_up: bool) -> int:
    """Give the least extent of the reference axis from which on no piece but the last reaches an end it should not.

    With `t` the step, a place `a * t + b` on an axis of extent `n` must be <= n, and every place >= 0. Extents of a
    network's axes are `n >= slope * m - lag` for that of the reference, `m`, with a lag that comes from rounding alone;
    from that the least `m` follows for each place.

    Args:
        frame: The frame, after the spans of all pieces were asked for.
        reference: The value, axis and rate whose extent decides on the step.
        rounded_up: Whether the step is the extent's share rounded up, or down.

    Raises:
        DoesNotFitError: two extents are not known to grow together.
    """
    value, axis, rate = reference
    main = _dim(value, axis)
    share = rate * frame.count
    lags: dict[Dim, Fraction] = {}
    least = share * (frame.reach + (0 if rounded_up else 1))
    for other, place, a, b in frame.slack:
        dim = _dim(other, place)
        # The rate of the other axis follows from the places themselves: the end of piece i is a * t, a = rate * i.
        slope = _slope(main, dim)
        if dim not in lags:
            lags[dim] = _lag(main, dim, slope)
        # t <= (m + share - 1) / share when rounded up, <= m / share when not.
        extra = Fraction(a * (share - 1), share) if rounded_up else Fraction(0)
        room = slope - Fraction(a, share)
        if room <= 0:
            raise DoesNotFitError("pieces that move faster than the axis")
        least = max(least, ceil((b + extra + lags[dim]) / room))
    return max(least, frame.count * rate)


def _dim(value: Value, axis: int) -> Dim:
    if not isinstance(value.type, TensorType) or value.type.shape is None or value.type.shape[axis] is None:
        raise DoesNotFitError("an extent that is not known")
    return value.type.shape[axis]


def _slope(main: Dim, dim: Dim) -> Fraction:
    """How fast an extent grows with the reference's."""
    far = 720_720 * 64
    a, b = _at(main, main, far), _at(dim, main, far)
    c, d = _at(main, main, 2 * far), _at(dim, main, 2 * far)
    if c == a:
        raise DoesNotFitError("an extent that does not grow")
    return Fraction(d - b, c - a)


def _lag(main: Dim, dim: Dim, slope: Fraction) -> Fraction:
    return max(slope * _at(main, main, m) - _at(dim, main, m) for m in _TRIED)


def _at(dim: Dim, main: Dim, extent: int) -> int:
    """An extent when the reference's one symbol has the given one."""
    names = free_symbols(main)
    if dim is None or len(names) != 1 or not free_symbols(dim) <= names:
        raise DoesNotFitError("extents that depend on different symbols")
    if isinstance(dim, Sym):
        found = substitute(dim, {next(iter(names)): extent})
        if not isinstance(found, int):
            raise DoesNotFitError("an extent that is not known")
        return found
    return dim
