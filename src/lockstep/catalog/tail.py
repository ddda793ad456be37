"""The end of logs and metrics, and what is added to them while a run goes on."""

import os
import re
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep.catalog import status
from lockstep.catalog.report.values import number, show_count, show_decimal, show_seconds, whole
from lockstep.catalog.run import Run
from lockstep.files import open_plain, parse_json, printable

WINDOW_BYTES = 1 << 18  # the most that is looked at for the last lines, and read at one time
LONGEST_LINE = 2000
IN_A_FOLDER = 2  # logs/rank-0.log: neither name may be a link
MOST_STEP_LINES = 3  # of one look; steps can be faster than reading


def clean(line: bytes) -> str:
    """A line of a log made printable; of a line that overwrites itself, what it showed last."""
    shown = [part for part in line.rstrip(b"\r").split(b"\r") if part.strip()]
    text = printable((shown[-1] if shown else b"")[: 4 * LONGEST_LINE].decode(errors="replace"))
    return text if len(text) <= LONGEST_LINE else text[:LONGEST_LINE] + "…"


def last_lines(path: Path, count: int, end: int | None = None) -> list[str]:
    """The last lines of a log (of its first ``end`` bytes), printable; none where it is missing."""
    content, whole_file = _end_of(path, end)
    lines = content.split(b"\n")
    if lines[-1] == b"":
        lines.pop()
    if not whole_file and len(lines) > 1:
        lines = lines[1:]  # it begins in the middle of a line
    return [clean(line) for line in lines[-count:]] if count > 0 else []


def metrics_file(run: Run, rank: int) -> Path:
    """A rank's metrics of the last attempt that wrote any."""
    newest, found = 1, run.metrics_file(rank)
    try:
        names = os.listdir(run.metrics)  # noqa: PTH208 - names are all that is needed
    except OSError:
        return found
    for name in names:
        attempt = re.fullmatch(rf"rank-{rank}\.attempt-(\d{{1,6}})\.jsonl", name)
        if attempt and int(attempt.group(1)) > newest:
            newest, found = int(attempt.group(1)), run.metrics / name
    return found


def latest(path: Path) -> dict[str, dict[str, Any]]:
    """The last line of each kind (start, step, epoch, end) near the end of a metrics file."""
    found: dict[str, dict[str, Any]] = {}
    for line in _end_of(path)[0].split(b"\n"):
        value = _object(line) if b'"kind"' in line else {}
        if isinstance(value.get("kind"), str):
            found[value["kind"]] = value
    return found


def show_step(step: dict[str, Any]) -> str:
    """A step line in words."""
    seconds, samples = number(step.get("step_seconds")), number(step.get("samples"))
    speed = samples / seconds if samples is not None and seconds else None
    parts = [
        f"step {show_count(step.get('step'))}",
        f"epoch {show_count(step.get('epoch'))}",
        f"loss {show_decimal(step.get('loss'))}",
        f"{show_count(speed)} samples/s",
        f"{show_seconds(seconds)} a step",
    ]
    shares = [
        f"{word} {share / seconds:.0%}"
        for word, key in (
            ("computing", "compute_seconds"),
            ("waiting", "sync_seconds"),
            ("data", "data_seconds"),
        )
        if seconds and (share := number(step.get(key))) is not None
    ]
    return ", ".join(parts) + (f" ({', '.join(shares)})" if shares else "")


def follow(run: Run, rank: int, count: int, pause_seconds: float = 0.1) -> Iterator[str]:
    """The last lines of a rank's log, then each line and step as it comes, until the run has ended."""
    log, steps = _Growing(run.rank_log(rank)), _Growing(metrics_file(run, rank))
    log.skip()
    steps.skip()
    yield from last_lines(log.path, count, log.position)
    while True:
        ended = status.of(run).word != "running"  # asked before reading: what came before the end is shown
        if (current := metrics_file(run, rank)) != steps.path:
            steps = _Growing(current)
        yield from map(clean, log.lines(ended))
        lines = [value for value in map(_object, steps.lines(ended)) if value.get("kind") == "step"]
        if len(lines) > MOST_STEP_LINES:
            yield f"({len(lines) - 1} steps)"
            lines = lines[-1:]
        yield from map(show_step, lines)
        if ended and not log.more() and not steps.more():
            return
        if not ended:
            time.sleep(pause_seconds)


@dataclass
class _Growing:
    """A file that others append to, by whole lines."""

    path: Path
    position: int = 0
    rest: bytes = b""

    def skip(self) -> None:
        """Go on after what stands there already."""
        self.position = self._size()

    def more(self) -> bool:
        """Whether there is something that has not been read."""
        return self._size() > self.position

    def lines(self, all_of_it: bool) -> list[bytes]:
        """New whole lines; also an unfinished last one, where nothing more will come."""
        if self._size() < self.position:
            self.position, self.rest = 0, b""  # it was written anew
        try:
            with open_plain(self.path, IN_A_FOLDER) as file:
                file.seek(self.position)
                content = file.read(WINDOW_BYTES)
        except OSError:
            content = b""
        self.position += len(content)
        *lines, self.rest = (self.rest + content).split(b"\n")
        if self.rest and (len(self.rest) > WINDOW_BYTES or (all_of_it and not self.more())):
            lines, self.rest = [*lines, self.rest], b""
        return lines

    def _size(self) -> int:
        try:
            return self.path.lstat().st_size
        except OSError:
            return 0


def ranks_known(run: Run, plan: dict[str, Any]) -> int | None:
    """How many ranks the run has: as planned, else as its files show."""
    planned = whole(plan.get("world_size"))
    if planned:
        return planned
    found = [re.fullmatch(r"rank-(\d{1,6})\.(?:log|jsonl)", path.name) for path in _entries(run)]
    return max((int(match.group(1)) + 1 for match in found if match), default=None)


def _entries(run: Run) -> list[Path]:
    folders = [folder for folder in (run.logs, run.metrics) if folder.is_dir() and not folder.is_symlink()]
    return [path for folder in folders for path in folder.iterdir()]


def _end_of(path: Path, end: int | None = None) -> tuple[bytes, bool]:
    """The end of a plain file (of its first ``end`` bytes), and whether that is all there is before it."""
    try:
        with open_plain(path, IN_A_FOLDER) as file:
            end = os.fstat(file.fileno()).st_size if end is None else end
            start = max(0, end - WINDOW_BYTES)
            file.seek(start)
            return file.read(end - start), start == 0
    except OSError:
        return b"", True


def _object(line: bytes) -> dict[str, Any]:
    try:
        value = parse_json(line)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}
