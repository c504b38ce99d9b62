"""Every file in tests/cases, by `memoptc.testing`: a pipeline, a graph, `// ---- expect`, and what must come out.

`pytest tests/test_cases.py --update` writes what comes out as the expectation. How exactly passes keep numbers stands
in pyproject.toml, `memoptc_numbers`.
"""

from __future__ import annotations

from memoptc.testing import CaseTests


class TestCases(CaseTests):
    folder = "cases"
