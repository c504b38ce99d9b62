r"""Partial expectations of a graph: `// CHECK` lines, held in order against the text of the graph.

    // CHECK: %[[c:\w+]] = Conv(%x       a line that contains this, after the line of the check before
    // CHECK-NEXT: Relu(%[[c]])           the very next line
    // CHECK-NOT: Identity                no line between the checks around it contains this
    // CHECK-COUNT-2: Conv                so many lines after the check before contain this
    // CHECK-TOTAL-0: Identity            so many lines of the whole graph contain this

Blanks stand for any number of blanks. `{{...}}` is a regular expression, `[[name:...]]` one whose match is kept, and
`[[name]]` what was kept.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from memoptc.ir.diagnostics import SourceError

_CHECK = re.compile(r"\s*// CHECK(?P<kind>-NEXT|-NOT|-(?:COUNT|TOTAL)-\d+)?: *(?P<text>.*\S)\s*$")
_LIKE_A_CHECK = re.compile(r"\s*//\s*CHECK")
_SPECIAL = re.compile(r"\{\{(?P<regex>.*?)\}\}|\[\[(?P<name>\w+)(?::(?P<kept>.*?))?\]\]|(?P<blanks>\s+)")


@dataclass(frozen=True)
class Check:
    """One line that begins with `// CHECK`.

    Args:
        kind: `""`, `NEXT`, `NOT`, `COUNT` or `TOTAL`.
        text: What is looked for.
        line: Its line in the file, from 1.
        count: For `COUNT` and `TOTAL`: how many lines.
    """

    kind: str
    text: str
    line: int
    count: int = 1

    def pattern(self, kept: dict[str, str]) -> re.Pattern[str]:
        """Give the regular expression that finds it; `kept` holds what `[[name]]` stands for."""
        parts, end, own = [], 0, set[str]()
        for found in _SPECIAL.finditer(self.text):
            parts.append(re.escape(self.text[end : found.start()]))
            end = found.end()
            name = found["name"]
            if found["blanks"]:
                parts.append(r"\s+")
            elif found["regex"] is not None:
                parts.append(f"(?:{found['regex']})")
            elif found["kept"] is not None:
                own.add(name)
                parts.append(f"(?P<{name}>{found['kept']})")
            elif name in own:
                parts.append(f"(?P={name})")
            elif name in kept:
                parts.append(re.escape(kept[name]))
            else:
                raise AssertionError(f"line {self.line}: no check before it keeps [[{name}]]")
        return re.compile("".join([*parts, re.escape(self.text[end:])]))


def read_checks(text: str, file: str = "") -> tuple[Check, ...]:
    """Give the checks of a text, in order.

    Raises:
        SourceError: a line looks like a check and is none.
    """
    checks = []
    for number, line in enumerate(text.split("\n"), 1):
        found = _CHECK.match(line)
        if found:
            kind, _, count = (found["kind"] or "").removeprefix("-").partition("-")
            if kind == "COUNT" and not int(count):
                raise SourceError(
                    "this holds for every graph", text, number, 1, file=file,
                    hint="Write CHECK-NOT: for the lines up to the next check, or CHECK-TOTAL-0: for the whole graph.",
                )  # fmt: skip
            checks.append(Check(kind, found["text"], number, int(count or 1)))
        elif _LIKE_A_CHECK.match(line):
            raise SourceError(
                "this is no check", text, number, 1, file=file,
                hint="Write CHECK:, CHECK-NEXT:, CHECK-NOT:, CHECK-COUNT-2: or CHECK-TOTAL-0:, and text after it.",
            )  # fmt: skip
    return tuple(checks)


def run_checks(checks: Sequence[Check], text: str) -> None:
    """Hold a graph's text against checks.

    Args:
        checks: In order.
        text: The graph as `print_graph` gives it.

    Raises:
        AssertionError: one does not hold; the message has its line, and the graph.
    """
    lines = text.split("\n")
    position, kept = 0, dict[str, str]()
    forbidden: list[Check] = []

    def fail(check: Check, why: str) -> AssertionError:
        kind = f"-{check.kind}" if check.kind else ""
        counted = f"-{check.count}" if check.kind in ("COUNT", "TOTAL") else ""
        return AssertionError(f"line {check.line}: CHECK{kind}{counted}: {check.text}\n{why}\n{text}")

    def none_of_them(until: int) -> None:
        for check in forbidden:
            for line in lines[position:until]:
                if check.pattern(kept).search(line):
                    raise fail(check, f"this line has it: {line.strip()}")
        forbidden.clear()

    for check in checks:
        if check.kind == "NOT":
            forbidden.append(check)
            continue
        pattern = check.pattern(kept)
        if check.kind == "TOTAL":
            if (count := sum(bool(pattern.search(line)) for line in lines)) != check.count:
                raise fail(check, f"{count} lines have it")
            continue
        for n in range(check.count):
            until = min(position + 1, len(lines)) if check.kind == "NEXT" else len(lines)
            at, found = next(
                ((i, m) for i in range(position, until) if (m := pattern.search(lines[i]))), (len(lines), None)
            )
            if found is None:
                times = f", {n} of {check.count} found" if check.kind == "COUNT" else ""
                raise fail(check, f"{'the next line has it not' if check.kind == 'NEXT' else 'no line has it'}{times}")
            none_of_them(at)
            kept |= {k: v for k, v in found.groupdict().items() if v is not None}
            position = at + 1
    none_of_them(len(lines))


__all__ = ["Check", "read_checks", "run_checks"]
