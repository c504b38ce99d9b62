"""Small valid models of which compilers get something wrong: `MODELS[name]()` gives a model and feeds for it."""

from __future__ import annotations

from collections.abc import Callable

from odd_models import elements, extents, interfaces, operators, scopes
from odd_models.making import Made

MODELS: dict[str, Callable[[], Made]] = {
    made.__name__: made for group in (scopes, elements, extents, interfaces, operators) for made in group.MODELS
}
MODELS |= {f"opset_{n}": operators.old_opset(n) for n in (7, 8, 9, 10)}
