"""Tables of the reference that are made from the code: passes, pipelines, rules' predicates, operators, the report."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields
from typing import Any

import onnxruntime as ort
from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from memoptc import levels, registry
from memoptc.ir.ops import TABLE
from memoptc.pass_base import spell
from memoptc.report.write import schema
from memoptc.rewrite import RulePass
from memoptc.rewrite.predicates import PREDICATES
from memoptc.runtime.session import Session
from memoptc.runtime.session_methods import FORWARDED
from memoptc.targets import TARGETS


def _row(*cells: str) -> str:
    return "| " + " | ".join(" ".join(cell.replace("|", "\\|").split()) for cell in cells) + " |"


def _table(*heading: str) -> list[str]:
    return [_row(*heading), "|" + " --- |" * len(heading)]


def _markdown(docstring: str) -> str:
    """Give a docstring's `Args:` as a list."""
    text, section, args = docstring.partition("Args:\n")
    listed = re.sub(r"^ {4}(\w+): ", r"* `\1`: ", args, flags=re.MULTILINE)
    return f"{text}{listed}" if section else text


def passes() -> Iterator[str]:
    """Every pass: its docstring, its options, its rules."""
    for name in registry.names():
        cls = registry.find(name)
        yield from (f"## {name}", "", _markdown(inspect.cleandoc(cls.__doc__ or "")), "")
        options = [f for f in fields(cls) if f.init]  # type: ignore[arg-type]
        if options:
            yield "Options: " + ", ".join(
                f"`{f.name}`" if f.default is MISSING else f"`{f.name}={spell(f.default)}`" for f in options
            )
            yield ""
        rules = cls.rules if issubclass(cls, RulePass) else ()
        if rules:
            yield from _table("rule", "replaces")
            yield from (_row(f"`{rule.name}`", " and ".join(f"`{root}`" for root in rule.roots)) for rule in rules)
            yield ""


def pipelines() -> Iterator[str]:
    """The pipeline of each level and target."""
    yield from _table("level", "target", "pipeline")
    for level in range(4):
        for target in TARGETS:
            yield _row(f"`-O{level}`", f"`{target}`", f"`{levels.pipeline_text(level, target, calibrated=True)}`")


def predicates() -> Iterator[str]:
    """What conditions of rules may ask."""
    yield from _table("predicate", "what it says")
    for name, found in sorted(PREDICATES.items()):
        signature = ", ".join(inspect.signature(found.function).parameters)
        yield _row(f"`{name}({signature})`", inspect.getdoc(found.function) or "")


def operators() -> Iterator[str]:
    """What is known of each operator."""
    yield from _table("operator", "family", "tiled along axes", "view", "in place", "integer kernel", "weights packed")
    for key, op in sorted(TABLE.items()):
        yield _row(
            f"`{key}`",
            op.family.name.lower() if op.family else op.arity.name.lower() if op.arity else "",
            "yes" if op.space else "",
            "yes" if op.view is not None else "",
            "yes" if op.in_place else "",
            op.integer.value if op.integer else "",
            "yes" if op.packs_weights else "",
        )


def report() -> Iterator[str]:
    """The fields of the JSON report."""
    yield from _table("field", "type", "what it is")
    yield from _fields("", schema())


def _fields(prefix: str, part: dict[str, Any]) -> Iterator[str]:
    for name, found in part.get("properties", {}).items():
        if "$ref" in found:
            found = schema()["$defs"][found["$ref"].rpartition("/")[2]]
        kind = found.get("type", "")
        kind = " or ".join(kind) if isinstance(kind, list) else kind or " or ".join(map(str, found.get("enum", ())))
        yield _row(f"`{prefix}{name}`", kind, found.get("description", ""))
        yield from _fields(f"{prefix}{name}.", found)
        yield from _fields(f"{prefix}{name}[].", found.get("items", {}))


DIFFERS = {
    "run": "also takes `into=`, arrays to write outputs into; splits a batch that does not fit `memory_limit`",
    "set_providers": "loads the model anew, in the tier of the new providers; not for a model given as bytes",
}
"""What memoptc's own methods do differently from those of onnxruntime that they stand for."""


def session() -> Iterator[str]:
    """Every public name of onnxruntime's InferenceSession, and whose it is in Session."""
    own, theirs = vars(Session), set(FORWARDED)
    yield from _table("name", "in `Session`", 'with `memory="planned"`')
    for name in sorted(n for n in dir(ort.InferenceSession) if not n.startswith("_")):
        if name in theirs:
            yield _row(f"`{name}`", "onnxruntime's, its errors also `InputError`", "refused; `auto` goes on in `arena`")
        elif name in own:
            yield _row(f"`{name}`", f"memoptc's: {DIFFERS[name]}", "yes")
        else:
            yield _row(f"`{name}`", "onnxruntime's", "yes")
    for name in sorted(n for n in own if not n.startswith("_") and not hasattr(ort.InferenceSession, n)):
        yield _row(f"`{name}`", f"only here: {(inspect.getdoc(own[name]) or '').partition(chr(10))[0]}", "yes")


TABLES = {f.__name__: f for f in (passes, pipelines, predicates, operators, report, session)}


class ReferenceTable(SphinxDirective):
    """Put one of the tables here: `{reference-table} passes`."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        """Give the parsed Markdown of the table."""
        text = "\n".join(TABLES[self.arguments[0]]())
        return self.parse_text_to_nodes(text, offset=self.content_offset, allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, Any]:
    """Register the directive."""
    app.add_directive("reference-table", ReferenceTable)
    return {"parallel_read_safe": True}
