"""The report of a run: one HTML file that opens offline, from whatever the run's folder holds."""

from pathlib import Path

from lockstep import files
from lockstep.catalog.run import Run

__all__ = ["render", "write"]


def render(run: Run) -> str:
    """The page as text. What is missing, torn or hostile in the folder is said on the page, never raised."""
    from lockstep.catalog.report.page import document  # drawing is large; other readers need only the values
    from lockstep.catalog.report.read import load

    return document(load(run))


def write(run: Run) -> Path:
    """Write the page into the run's folder, atomically, and return its path."""
    files.write_atomically(run.report, render(run))
    return run.report
