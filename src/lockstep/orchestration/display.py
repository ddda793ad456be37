"""What a person sees: which step runs, how far training is, a closing table. Plain lines where there is no terminal."""

import contextlib
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any, TextIO, cast

from rich.console import Console
from rich.live import Live
from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

from lockstep.board import Board
from lockstep.catalog.run import Run
from lockstep.files import printable

WIDE = 200  # columns, more than any table of ours has
PLAIN_SECONDS = 2.0  # between two lines of progress where there is no terminal


def duration(seconds: float) -> str:
    """0.42 s, 12.3 s, 4 min 05 s, 3 h 12 min."""
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"


ASCII = {ord("✓"): "+", ord("✗"): "x", ord("■"): "-"}  # for terminals that know no other signs


class _Forgiving:
    """A stream whose reader may leave (`pipeline.py | head`): training goes on, and the rest is not shown."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write, or drop it where nobody reads any more."""
        try:
            self._stream.write(text)
        except UnicodeEncodeError:
            encoding = self._stream.encoding or "ascii"
            plain = text.translate(ASCII).encode(encoding, "backslashreplace").decode(encoding)
            self._stream.write(plain)
        except (OSError, ValueError):
            pass
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
        self.line(f"  warning: {text}", "yellow")

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
                (printable(notes), "dim"),
            )
        )

    @contextlib.contextmanager
    def training(self, board: Board, plan: dict[str, Any]) -> Iterator[Callable[[], None]]:
        """A progress bar (or lines now and then) fed from the board; yields what to call often."""
        meter = _Meter(board, plan)
        if not self.console.is_terminal:
            yield self._plain_ticks(meter)
            self.line(f"    {meter.text()}")
            return
        columns = (SpinnerColumn(), BarColumn(bar_width=30), TextColumn("{task.description}"))
        with Progress(
            *columns, console=self.console, transient=True, redirect_stdout=False, redirect_stderr=False
        ) as progress:
            task = progress.add_task("", total=plan["steps"])
            yield lambda: progress.update(task, completed=meter.step, description=meter.text())

    def _plain_ticks(self, meter: "_Meter") -> Callable[[], None]:
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
            self._table(_quality(results["evaluation"]))
        self._table(_speed(results))
        spent = "  ".join(f"{name} {duration(seconds)}" for name, seconds in steps)
        self.line(f"time    {spent}")
        self.paths(run)

    def _table(self, table: Table) -> None:
        """As wide as it is: a narrow terminal breaks lines, which is read more easily than cells cut short."""
        for segments in self.console.render_lines(table, self.console.options.update(width=WIDE), pad=False):
            line = Text.assemble(*((segment.text, segment.style or "") for segment in segments))
            line.rstrip()
            self.console.print(line)

    def paths(self, run: Run) -> None:
        """Where to look."""
        self.line(f"run     {run.run_id}", "bold")
        for path in (run.report, run.results, run.model, run.logs):
            if path.exists():
                self.line(f"        {path}")


class _Meter:
    """Step, loss, speed and time left, from the board."""

    def __init__(self, board: Board, plan: dict[str, Any]) -> None:
        self._board, self._plan = board, plan

    @property
    def step(self) -> int:
        """Updates that every rank has done."""
        return min(self._board.integer(rank, "step") for rank in range(self._board.world_size))

    def text(self) -> str:
        """One line."""
        started = self._board.number(0, "first_step")
        if not started:
            waited = time.monotonic() - self._board.number(0, "launched")
            return f"starting {self._board.world_size} ranks (importing torch) {waited:.0f} s"
        step, steps = self.step, self._plan["steps"]
        # From what the ranks wrote, not from the first look: all the steps may lie between two looks.
        elapsed, done = time.monotonic() - started, step - self._board.integer(0, "start")
        ranks = range(self._board.world_size)
        losses = [self._board.number(rank, "loss") for rank in ranks]
        losses = [
            loss for loss in losses if not math.isnan(loss)
        ]  # NaN: another rank counts the same samples
        loss = sum(losses) / max(len(losses), 1)
        epoch = min(step // self._plan["steps_per_epoch"] + 1, steps // self._plan["steps_per_epoch"])
        words = [f"epoch {epoch}/{steps // self._plan['steps_per_epoch']}", f"step {step:,}/{steps:,}"]
        if done:
            rate = done / elapsed
            words += [f"loss {loss:.4f}", f"{rate * self._plan['global_batch_size']:,.0f} samples/s"]
            words += [f"{duration((steps - step) / rate)} left"] if step < steps else []
        return "  ".join(words)


def _four(value: float | str) -> str:
    """A number with four decimals; the name of one that is not finite as it stands."""
    return value if isinstance(value, str) else f"{value:.4f}"


def _quality(evaluation: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "step", "train acc", "loss", "validation acc", "loss", "test acc", "loss"):
        table.add_column(name, justify="left" if not name else "right")
    for name in ("final", "best", "ema"):
        judged = evaluation.get(name)
        if judged is None:
            continue
        cells = []
        for split in ("train", "validation", "test"):
            numbers = judged[split]
            cells += [_four(numbers["accuracy"]), _four(numbers["loss"])] if numbers else ["-", "-"]
        table.add_row(name, f"{judged['step']:,}", *cells)
    return table


def _speed(results: dict[str, Any]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("", "samples", "samples/s", "compute", "waiting", "data", "cpu", "peak memory"):
        table.add_column(name, justify="left" if not name else "right")
    for rank in results["ranks"]:
        memory = rank["peak_rss_bytes"]
        table.add_row(
            f"rank {rank['rank']}",
            f"{rank['samples']:,}",
            f"{rank['samples_per_second']:,.0f}" if rank["samples_per_second"] else "-",
            *(
                duration(rank[field])
                for field in ("compute_seconds", "sync_seconds", "data_seconds", "cpu_seconds")
            ),
            f"{memory / 2**20:,.0f} MiB" if memory else "-",
        )
    training = results["training"]
    rate = training["samples_per_second"]
    waiting = training["waiting_share"]
    table.add_row(
        "together",
        f"{training['samples']:,}",
        f"{rate:,.0f}" if rate else "-",
        "",
        f"{waiting:.0%}" if waiting is not None else "-",
        style="bold",
    )
    return table
