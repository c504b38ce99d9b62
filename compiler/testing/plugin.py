"""The pytest plug-in: `-p memoptc.testing.plugin`, or `pytest_plugins = ["memoptc.testing.plugin"]` in a conftest.py.

It adds the option `--update`, which writes what comes out as what is expected, and the setting `memoptc_numbers`, which
says of passes how exactly they keep numbers:

    [tool.pytest.ini_options]
    addopts = ["-p", "memoptc.testing.plugin"]
    memoptc_numbers = ["exact: drop-double-relu", "sqnr 30: my-codes"]
"""

from __future__ import annotations

import pytest

# Before they are imported, so that their assertions show values.
pytest.register_assert_rewrite("memoptc.testing.cases", "memoptc.testing.numbers", "memoptc.testing.properties")


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the option and the setting."""
    parser.addoption("--update", action="store_true", help="write what comes out of .mir cases as what is expected")
    parser.addini(
        "memoptc_numbers", "how passes keep numbers, one line a kind: `exact: NAMES`, `sqnr 30: NAMES`", "linelist"
    )


@pytest.fixture
def memoptc_update(request: pytest.FixtureRequest) -> bool:
    """True if expectations are written anew (`--update`)."""
    return bool(request.config.getoption("--update"))


@pytest.fixture
def memoptc_numbers(request: pytest.FixtureRequest) -> dict[str, str]:
    """Exactness of passes: pass -> `exact`, `close`, `powers of two` or `sqnr DB`."""
    from memoptc.testing.cases import read_numbers

    return read_numbers(request.config.getini("memoptc_numbers"))
