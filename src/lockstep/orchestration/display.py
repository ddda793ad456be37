"""What a person sees: which step runs, how far training is, a closing table. Plain lines where there is no terminal."""

import contextlib
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.spinner import Spinner
from rich.table import Column
from rich.text import Text

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.catalog.table_layout import GAP, fit, wrapped
from lockstep.catalog.text import Table, plain
from lockstep.console import forgive
from lockstep.files import printable
from lockstep.orchestration import closing_tables
from lockstep.orchestration.meter import Meter, duration

WIDEST_BAR, NARROWEST_BAR = 30, 6  # columns
SPINNER_COLUMNS = 4  # with the blanks around the bar
STEP_COLUMNS = 29  # of a step's mark, name and time
NO_BREAK = "\u00a0"
PLAIN_SECONDS = 2.0  # between two lines of progress where there is no terminal


class _Forgiving:
    """A stream whose reader may leave (`pipeline.py | head`): training goes on, and the rest is not shown."""

    def __init__(self, stream: TextIO) -> None:
        forgive(stream)
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop it where nobody reads any more."""
        with contextlib.suppress(OSError, ValueError):
            self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush, likewise; what could not be written must not be tried again at exit."""
        try:
            self._stream.flush()
        except (OSError, ValueError):
            with contextlib.suppress(OSError, ValueError):
                os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class Display:
    """Writes to the standard output as it was when the command began: Runnable replaces it within steps."""

    def __init__(self, quiet: bool = False) -> None:
        self.console = Console(
            file=cast("TextIO", _Forgiving(sys.stdout)), highlight=False, quiet=quiet, soft_wrap=True
        )
        self._errors = Console(
            file=cast("TextIO", _Forgiving(sys.stderr)), highlight=False, quiet=quiet, soft_wrap=True
        )
        self._notes: list[str] = []
        self._live: Live | None = None

    def say(self, text: str) -> None:
        """A detail of the running step."""
        self._notes.append(text)

    def line(self, text: str, style: str = "") -> None:
        """A line of recorded or computed text; never read as markup."""
        self.console.print(Text(printable(text), style=style))

    def error(self, text: str) -> None:
        """Why it ended, on the standard error."""
        self._errors.print(Text(printable(text), style="red"))

    def warn(self, text: str) -> None:
        """Something that works, but costs."""
        self.line(self._fitted(f"  warning: {printable(text)}"), "yellow")

    def stopping(self, name: str) -> None:
        """The first Ctrl-C."""
        self.line(
            f"  {name}: stopping after this step and saving a checkpoint; once more ends at once", "yellow"
        )

    def step_started(self, name: str) -> None:
        """A step of the pipeline begins."""
        self._notes.clear()
        if not self.console.is_terminal:
            if name == "train":
                self.line(f"  {name} ...")
            return
        if name != "train":  # which has a bar of its own
            self._live = Live(
                Spinner("dots", text=Text(name, style="bold")),
                redirect_stdout=False,
                redirect_stderr=False,
                console=self.console,
                transient=True,
            )
            self._live.start()

    def step_finished(self, name: str, status: str, seconds: float) -> None:
        """A step of the pipeline has ended."""
        if self._live is not None:
            self._live.stop()
            self._live = None
        mark, style = {"succeeded": ("✓", "green"), "interrupted": ("■", "yellow")}.get(status, ("✗", "red"))
        notes = f"  {'; '.join(self._notes)}" if self._notes else ""
        self.console.print(
            Text.assemble(
                (f"{mark} ", style),
                (f"{name:<18}", "bold"),
                f"{duration(seconds):>9}",
                (self._fitted(printable(notes), STEP_COLUMNS), "dim"),
            )
        )

    def _fitted(self, text: str, begun: int = 0) -> str:
        """The text broken between words where the terminal ends; ``begun`` columns of the first line are taken."""
        if not self.console.is_terminal:
            return text
        lines = wrapped(" " * begun + text, self.console.width, "" if begun else "  ")
        return "\n".join(lines)[begun:]

    @contextlib.contextmanager
    def training(self, board: Board, plan: dict[str, Any]) -> Iterator[Callable[[], None]]:
        """A progress bar (or lines now and then) fed from the board; yields what to call often."""
        meter = Meter(board, plan)
        if not self.console.is_terminal:
            yield self._plain_ticks(meter)
            self.line(f"    {meter.text()}")
            return
        bar = BarColumn(bar_width=WIDEST_BAR)
        columns = (SpinnerColumn(), bar, TextColumn("{task.description}", table_column=Column(no_wrap=True)))
        with Progress(
            *columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task("", total=plan["steps"])

            def tick() -> None:
                room = self.console.width - SPINNER_COLUMNS
                words = meter.text(room - NARROWEST_BAR)
                bar.bar_width = max(min(WIDEST_BAR, room - len(words)), NARROWEST_BAR)
                progress.update(task, completed=meter.step, description=words)

            yield tick

    def _plain_ticks(self, meter: Meter) -> Callable[[], None]:
        shown = time.monotonic()

        def tick() -> None:
            nonlocal shown
            if time.monotonic() - shown >= PLAIN_SECONDS:
                shown = time.monotonic()
                self.line(f"    {meter.text()}")

        return tick

    def closing(self, run: Run, results: dict[str, Any], steps: list[tuple[str, float]]) -> None:
        """The table at the end, the run's id and the paths to look at."""
        self.console.print()
        if "evaluation" in results:
            self._table(closing_tables.quality(results["evaluation"]))
        self._table(closing_tables.speed(results))
        spent = [f"{name} {duration(seconds)}".replace(" ", NO_BREAK) for name, seconds in steps]
        self.line(self._fitted(f"time    {'  '.join(spent)}").replace(NO_BREAK, " "))
        self.paths(run)

    def _table(self, table: Table) -> None:
        """Without the columns of least use, where a narrow terminal has no room for them."""
        if not self.console.is_terminal:
            self.line(plain(table))
            return
        layout = fit(table, self.console.width)
        self.line(GAP.join(layout.heading).rstrip(), "dim")
        for cells in layout.body:
            self.line(GAP.join(cells).rstrip())

    def paths(self, run: Run) -> None:
        """Where to look."""
        self.line(f"run     {run.shown}", "bold")
        for path in (run.report, run.results, run.model, run.logs):
            if path.exists():
                self.line(f"        {path}")
