"""The names of the forms in which a program can be written; `memoptc.ir.forms` says what each is."""

from __future__ import annotations

from typing import Literal

FormName = Literal["plain", "branch", "captured", "shapeless"]
FORMS: tuple[FormName, ...] = ("plain", "branch", "captured", "shapeless")
