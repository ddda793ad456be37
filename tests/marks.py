"""Which cases of a matrix the quick suite runs; `pytest -m slow` runs the others."""

from collections.abc import Iterable
from typing import Any

import pytest


def slow(*values: Any) -> Any:
    """One case for `pytest -m slow`."""
    return pytest.param(*values, marks=pytest.mark.slow)


def quick_are(quick: Iterable[Any], cases: Iterable[Any]) -> list[Any]:
    """All the cases; slow are those that are not among the ``quick`` ones. A tuple is the values of one case."""
    known, cases = [*quick], [*cases]
    assert all(case in cases for case in known), "a quick case that is none of the cases"
    return [
        case if case in known else slow(*(case if isinstance(case, tuple) else (case,))) for case in cases
    ]
