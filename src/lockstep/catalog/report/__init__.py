"""The report of one run, or of several side by side: one HTML file that opens offline.

It is made from whatever the folders hold. What is missing, torn or hostile there is said on the page, and
never raised.
"""

from collections.abc import Sequence
from pathlib import Path

from lockstep.catalog.run import Run

# What makes the page is imported when one is made: other readers of the catalog use this package's values only.

__all__ = ["render", "render_from_outside", "write"]


def render(run: Run) -> str:
    """The page that a run writes of itself before its end, as text."""
    from lockstep.catalog.report.page import document
    from lockstep.catalog.report.read import load

    return document([load(run)])


def render_from_outside(runs: Sequence[Run]) -> str:
    """The page of one run or of several, each as it stands now, with its end and its seal."""
    from lockstep.catalog import status
    from lockstep.catalog.report.page import document
    from lockstep.catalog.report.read import load

    return document([load(run, status.of(run)) for run in runs])


def write(run: Run) -> Path:
    """Write the run's own page into its folder, atomically, and return its path."""
    from lockstep import files

    files.write_atomically(run.report, render(run))
    return run.report
