"""What holds for all tests: how much hypothesis tries, and `--update`."""

from __future__ import annotations

import os

import pytest
from hypothesis import settings

settings.register_profile("ci", deadline=None, derandomize=True)
settings.register_profile("nightly", deadline=None, max_examples=2000, print_blob=True)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def pytest_addoption(parser: pytest.Parser) -> None:
    """`--update` writes what comes out of tests/cases, and the names of operators that are left, as expectations."""
    parser.addoption(
        "--update", action="store_true", help="rewrite the expectations of tests/cases and tests/operator_names.toml"
    )
