"""The smallest extent at which a dynamic grid of overlapping tiles is valid."""

from __future__ import annotations

from fractions import Fraction
from math import ceil

from memoptc.ir.core import Value
from memoptc.ir.dims import Dim, Sym, free_symbols, substitute
from memoptc.passes.memory._tile.grid import DynamicGrid, NotTileableError

_TRIED = (*range(1, 385), 1000, 1001, 1023, 1024, 2047, 4093, 4096, 65521, 65536)
"""Extents at which the relation between two axes is looked at: all remainders of any stride a network has."""


def smallest_extent(grid: DynamicGrid, reference: tuple[Value, int, int]) -> int:
    """Give the least extent of the reference axis from which on no tile but the last reaches an end it should not.

    A place `a * t[i] + b` on an axis of extent `n` must be <= n, and >= 0. With `m` the reference's extent and `r` its
    rate, t[i] = i * (m // r) // count. Extents of a network's axes are n >= slope * m - lag, with a lag that comes from
    rounding alone, and a = slope * r; from that the least `m` follows for each place.

    Args:
        grid: The grid, after the work of all tiles was asked for.
        reference: The value, axis and rate whose extent decides on the shares.

    Raises:
        NotTileableError: two extents are not known to grow together.
    """
    value, axis, rate = reference
    main = _dim(value, axis)
    lags: dict[Dim, tuple[Fraction, Fraction]] = {}
    least = grid.count * rate * max(grid.smallest_tile, 1)
    for other, place, step in grid.upper_bounds:
        dim = _dim(other, place)
        if dim not in lags:
            slope = _slope(main, dim)
            lags[dim] = slope, _lag(main, dim, slope)
        slope, lag = lags[dim]
        room = slope - Fraction(step.a * step.i, rate * grid.count)
        if room <= 0:
            raise NotTileableError("tiles that move faster than the axis")
        least = max(least, ceil((step.b + lag) / room))
    return least


def _dim(value: Value, axis: int) -> Dim:
    if value.shape is None or value.shape[axis] is None:
        raise NotTileableError("an extent that is not known")
    return value.shape[axis]


def _slope(main: Dim, dim: Dim) -> Fraction:
    """Growth of an extent per element of the reference."""
    far = 720_720 * 64
    a, b = _at(main, main, far), _at(dim, main, far)
    c, d = _at(main, main, 2 * far), _at(dim, main, 2 * far)
    if c == a:
        raise NotTileableError("an extent that does not grow")
    return Fraction(d - b, c - a)


def _lag(main: Dim, dim: Dim, slope: Fraction) -> Fraction:
    return max(slope * _at(main, main, m) - _at(dim, main, m) for m in _TRIED)


def _at(dim: Dim, main: Dim, extent: int) -> int:
    """An extent when the reference's one symbol has the given one."""
    names = free_symbols(main)
    if dim is None or len(names) != 1 or not free_symbols(dim) <= names:
        raise NotTileableError("extents that depend on different symbols")
    if isinstance(dim, Sym):
        found = substitute(dim, {next(iter(names)): extent})
        if not isinstance(found, int):
            raise NotTileableError("an extent that is not known")
        return found
    return dim
