"""fuse-activations: cases in text, random instances of its pattern, onnxruntime before and after."""

from __future__ import annotations

from memoptc.testing import CaseTests, PassTests, RuleTests


class TestCases(CaseTests):
    folder = "cases"


class TestRules(RuleTests):
    passes = ("fuse-activations",)


class TestPasses(PassTests):
    pipelines = ("fuse-activations",)
