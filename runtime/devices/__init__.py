"""Facts about devices as data: which operators run on integers and on half floats, and what 8-bit products do.

A profile is a TOML file beside this one, or a user's own. `base = "NAME"` takes over another profile's entries.
"""

from __future__ import annotations

import platform
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.kernels import saturates

USUAL = "x86-vnni"
"""The profile that passes take when nobody names one."""

_FLAGS = ("saturates", "signed", "plain")
_INTEGER = ("heavy", "light", "absorbed", "same_scale")
_HALF = ("float16", "bfloat16")
_ENDING = ".toml"


@dataclass(frozen=True)
class Device:
    """A device: the formats and kernels it computes with.

    Args:
        name: Of a built-in profile, or a path.
        description: One line.
        saturates: Whether sums of uint8 * int8 products overflow in 16 bits; weights of 7 bits then avoid that.
        signed: Whether integer kernels take int8 activations, not only uint8.
        heavy: Products and convolutions with integer kernels.
        light: Other operators with integer kernels that rescale.
        absorbed: Operators that vanish into the range of what they follow.
        same_scale: Operators that only move or choose elements -> first opset with 8-bit types.
        plain: Whether models are written as plain graphs, without anything laid out for this machine's processor: its
            runtime does not find weights in files of their own from inside a subgraph.
        half: "float16" or "bfloat16" -> operator -> first opset of a kernel.
    """

    name: str
    description: str
    saturates: bool
    signed: bool
    plain: bool
    heavy: frozenset[str]
    light: frozenset[str]
    absorbed: frozenset[str]
    same_scale: Mapping[str, int]
    half: Mapping[str, Mapping[str, int]]

    def weight_bits(self, dtype: str) -> int:
        """Bits of weight codes that are multiplied without overflow: 7 for int8 where sums saturate, else 8."""
        return 7 if self.saturates and dtype == "int8" else 8


def names() -> list[str]:
    """Names of the built-in profiles, sorted."""
    files = (f.name for f in resources.files(__package__).iterdir())
    return sorted(f.removesuffix(_ENDING) for f in files if f.endswith(_ENDING))


def load_device(name: str) -> Device:
    """Read a profile.

    Args:
        name: A built-in profile's name, or the path of a `.toml` file.

    Raises:
        InputError: there is none, or it says what no profile can.
    """
    return _device(name, _entries(name, ()))


@cache
def detect() -> str:
    """Name the built-in profile of this machine: by its architecture, and by what its products do."""
    if platform.machine().lower() in ("arm64", "aarch64"):
        return "arm64"
    return "x86-avx2" if saturates() else USUAL


def _entries(name: str, within: tuple[str, ...]) -> dict[str, Any]:
    if name in within:
        raise InputError(f"Device profile {name} is its own base.")
    try:
        if name.endswith(_ENDING):
            text = Path(name).read_text(encoding="utf-8")
        elif name in names():
            text = resources.files(__package__).joinpath(name + _ENDING).read_text(encoding="utf-8")
        else:
            hint = f"There are: {', '.join(names())}; or give a .toml file."
            raise InputError(f"There is no device {name!r}.", hint=hint)
        own = tomllib.loads(text)
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as e:
        raise InputError(f"Device profile {name} cannot be read: {e}.", hint="Check the path and the file.") from e
    base = own.pop("base", None)
    if base is None:
        return own
    below = _entries(str(base), (*within, name))
    return below | own | {k: below[k] | v for k, v in own.items() if isinstance(v, dict) and k in below}


def _device(name: str, found: dict[str, Any]) -> Device:
    integer = found.get("integer", {})
    try:
        if not isinstance(integer, dict):
            raise TypeError("integer is a table")
        unknown = (set(found) - {"description", *_FLAGS, "integer", *_HALF}) | (set(integer) - set(_INTEGER))
        if unknown:
            raise TypeError(f"{min(unknown)} is no entry of one")
        wrong = [key for key in _FLAGS if not isinstance(found.get(key, False), bool)]
        if wrong:
            raise TypeError(f"{wrong[0]} is true or false")
        return Device(
            name=name,
            description=str(found.get("description", "")),
            saturates=found.get("saturates", False),
            signed=found.get("signed", False),
            plain=found.get("plain", False),
            heavy=_operators(integer, "heavy"),
            light=_operators(integer, "light"),
            absorbed=_operators(integer, "absorbed"),
            same_scale=_opsets(integer.get("same_scale", {}), "same_scale"),
            half={key: _opsets(found.get(key, {}), key) for key in _HALF},
        )
    except TypeError as e:
        raise InputError(f"Device profile {name}: {e}.", hint="Take a built-in profile as an example.") from e


def _operators(integer: Mapping[str, Any], key: str) -> frozenset[str]:
    found = integer.get(key, [])
    if not isinstance(found, list) or not all(isinstance(v, str) for v in found):
        raise TypeError(f"{key} is a list of operators")
    return frozenset(found)


def _opsets(found: Any, key: str) -> dict[str, int]:
    if not isinstance(found, dict) or not all(isinstance(v, int) for v in found.values()):
        raise TypeError(f"{key} gives an opset for each operator")
    return dict(found)
