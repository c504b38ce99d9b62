"""Tests for passes and rules of anybody's package: cases in `.mir`, comparison with onnxruntime, random graphs.

Load the plug-in (`addopts = ["-p", "memoptc.testing.plugin"]` in the settings of pytest), and write a module of tests:

    from memoptc.testing import CaseTests, PassTests, RuleTests

    class TestCases(CaseTests):
        folder = "cases"                     # every .mir file below this folder, beside the module

    class TestRules(RuleTests):
        passes = ("fuse-conv-relu",)         # 200 random instances of the pattern of each rule of these passes

    class TestPasses(PassTests):
        pipelines = ("drop-double-relu",)    # 25 random graphs

Names are loaded when first used: this module imports neither pytest nor onnxruntime.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

_LAZY = {
    "Case": "cases",
    "CaseTests": "cases",
    "PassTests": "properties",
    "RuleTests": "properties",
    "check_pass": "properties",
    "check_example": "rule_check",
    "check_rule": "rule_check",
    "compare": "numbers",
    "compare_numbers": "cases",
    "hard_feeds": "numbers",
    "instances": "instances",
    "random_graph": "graphs",
    "read_case": "cases",
    "run_pass": "passes",
}

__all__ = [
    "Case", "CaseTests", "PassTests", "RuleTests", "check_example", "check_pass", "check_rule", "compare",
    "compare_numbers", "hard_feeds", "instances", "random_graph", "read_case", "run_pass",
]  # fmt: skip

if TYPE_CHECKING:
    from memoptc.testing.cases import Case, CaseTests, compare_numbers, read_case
    from memoptc.testing.graphs import random_graph
    from memoptc.testing.instances import instances
    from memoptc.testing.numbers import compare, hard_feeds
    from memoptc.testing.passes import run_pass
    from memoptc.testing.properties import PassTests, RuleTests, check_pass
    from memoptc.testing.rule_check import check_example, check_rule


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(f"memoptc.testing.{_LAZY[name]}"), name)
    raise AttributeError(f"module 'memoptc.testing' has no attribute {name!r}")
