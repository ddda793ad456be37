"""A run is a folder: where each of its files stands, and how a run is named, claimed and found."""

import os
import re
import secrets
import shlex
import stat
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from lockstep.catalog.access import check_catalog, keep_out_of_git, unreadable
from lockstep.errors import UsageError
from lockstep.files import one_line, printable

RUN_ID = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}")
CATALOG = ".catalog"
LONGEST_NAME = 255  # bytes, of a file or folder (NAME_MAX)
MOST_CANDIDATES = 20  # of a beginning that fits several runs
_TIME = re.compile(rb'"time":\s*"([^"]+)"')


@dataclass(frozen=True)
class Run:
    """One run's folder, by absolute path. The properties name its files; none of them need exist yet."""

    path: Path

    @property
    def run_id(self) -> str:
        """The folder's name."""
        return self.path.name

    @property
    def shown(self) -> str:
        """The folder's name for a terminal: one that was renamed may hold anything but a slash."""
        return one_line(self.run_id)

    @property
    def typed(self) -> str:
        """The folder's name as one types it in a shell, quoted where that is needed."""
        if self.run_id.isprintable():
            return shlex.quote(self.run_id)
        letters = (
            chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
            for byte in os.fsencode(self.run_id)
        )
        return f"$'{''.join(letters)}'"

    @property
    def catalog(self) -> Path:
        """The folder of runs that this one stands in."""
        return self.path.parent

    @property
    def parameters(self) -> Path:
        """Every parameter, defaults written out: the whole input of the ranks."""
        return self.path / "parameters.yaml"

    @property
    def provenance(self) -> Path:
        """Which code, packages, machine and command made this run."""
        return self.path / "provenance.json"

    @property
    def patch(self) -> Path:
        """Uncommitted and untracked changes, where there were any."""
        return self.path / "source.patch"

    @property
    def events(self) -> Path:
        """Append-only history; each line carries the digest of the line before it."""
        return self.path / "events.jsonl"

    @property
    def plan(self) -> Path:
        """Ranks, threads, strategy and transport, as decided by setup_distributed."""
        return self.path / "distributed.json"

    @property
    def data(self) -> Path:
        """train, validation and test splits and data.json."""
        return self.path / "data"

    @property
    def checkpoints(self) -> Path:
        """One folder a checkpoint, named step-00000120."""
        return self.path / "checkpoints"

    @property
    def start(self) -> Path:
        """The parent's checkpoint that this run started from, where it has a parent."""
        return self.path / "start"

    @property
    def metrics(self) -> Path:
        """One JSON-lines file per rank and attempt."""
        return self.path / "metrics"

    @property
    def logs(self) -> Path:
        """rank-N.log and one log per step of the pipeline."""
        return self.path / "logs"

    @property
    def results(self) -> Path:
        """Aggregated metrics and the evaluation."""
        return self.path / "distributed_training_results.json"

    @property
    def model(self) -> Path:
        """The final model and optimizer for the ecosystem."""
        return self.path / "distributed_model_checkpoint.pt"

    @property
    def report(self) -> Path:
        """One HTML file that opens offline."""
        return self.path / "report.html"

    @property
    def run_log(self) -> Path:
        """Runnable's own log."""
        return self.path / "run_log.json"

    @property
    def manifest(self) -> Path:
        """Digest and size of every other file: the seal."""
        return self.path / "manifest.json"

    @property
    def live(self) -> Path:
        """What exists only while the run does (mode 0700): lock, board, rendezvous, errors of ranks."""
        return self.path / ".live"

    @property
    def lock(self) -> Path:
        """Held by the process that runs the pipeline for as long as it lives."""
        return self.live / "lock"

    def metrics_file(self, rank: int, attempt: int = 1) -> Path:
        """A rank's metrics of one attempt."""
        return self.metrics / (
            f"rank-{rank}.jsonl" if attempt == 1 else f"rank-{rank}.attempt-{attempt}.jsonl"
        )

    def rank_log(self, rank: int) -> Path:
        """All that a rank's process printed, in every attempt."""
        return self.logs / f"rank-{rank}.log"


def new_run_id(now: datetime | None = None) -> str:
    """A name that sorts by time and does not collide: 20261120-115146-3f9a2c (UTC)."""
    return f"{now or datetime.now(UTC):%Y%m%d-%H%M%S}-{secrets.token_hex(3)}"


def check_run_id(run_id: str) -> str:
    """The id itself, or UsageError: an id becomes a folder's name, so nothing else is let through."""
    if not RUN_ID.fullmatch(run_id) or run_id == "latest":
        raise UsageError(
            f"run id {run_id!r} cannot be used: 1 to 64 of a-z, 0-9, '.', '_' and '-', "
            "beginning with a letter or a digit, and not the word latest"
        )
    return run_id


def is_name(name: str) -> bool:
    """Whether a run's folder may be called so: by ``RUN_ID`` when it is made, and by any name afterwards.

    A recorded name that passes can be joined to the catalog's path: it leads to no other folder.
    """
    if not name or name.startswith(".") or "/" in name or "\0" in name:
        return False
    try:
        return len(os.fsencode(name)) <= LONGEST_NAME
    except UnicodeEncodeError:  # a lone surrogate, from a record
        return False


def project_root(start: Path) -> Path:
    """The nearest folder at or above ``start`` that holds pyproject.toml or .git; else ``start`` itself."""
    for folder in (start, *start.parents):
        if (folder / "pyproject.toml").is_file() or (folder / ".git").exists():
            return folder
    return start


def claim(catalog: Path, run_id: str | None) -> Run:
    """Make the folder of a new run. ``mkdir`` decides between two starters: one wins, the other is refused."""
    check_catalog(catalog)
    try:
        catalog.mkdir(parents=True, exist_ok=True)
        keep_out_of_git(catalog)
    except (FileExistsError, NotADirectoryError):
        raise UsageError(
            f"--catalog: found {catalog}, which is or lies in a file; allowed: a folder"
        ) from None
    for _ in range(20):
        folder = catalog / check_run_id(run_id or new_run_id())
        try:
            folder.mkdir()
        except FileExistsError:
            if run_id:
                raise UsageError(
                    f"run id {run_id!r} exists already in {catalog}: choose another, "
                    f"or continue it: uv run lockstep resume {run_id}"
                ) from None
            continue
        for name in ("data", "checkpoints", "metrics", "logs"):
            (folder / name).mkdir()
        return Run(folder.resolve())
    raise UsageError(f"no free run id was found in {catalog} in 20 tries")


def find(catalog: Path, name: str) -> Run:
    """A run by its id, a unique prefix of it, ``latest``, or the path of a run's folder elsewhere."""
    if not name:
        raise UsageError(
            "found no name of a run (''), allowed: an id, the beginning of one, latest, or a folder"
        )
    if os.sep in name or name in (".", ".."):
        folder = Path(name).resolve()
        if _is_run(str(folder)):
            return _readable(Run(folder))
        raise UsageError(f"{printable(name)} is not a run's folder: it has no events.jsonl")
    catalog = check_catalog(catalog).resolve()
    if is_name(name) and name != "latest" and _is_own_run(f"{catalog}/{name}"):
        return _readable(Run(catalog / name))
    if name == "latest" and (runs := all_runs(catalog)):
        return runs[0]
    ids = sorted(run_ids(catalog), reverse=True)
    if not ids:
        raise UsageError(f"no runs in {catalog} yet: uv run pipeline.py, or uv run lockstep run, makes one")
    matches = [run_id for run_id in ids if run_id.startswith(name)]
    if len(matches) == 1:
        return _readable(Run(catalog / matches[0]))
    if matches:
        shown = "\n".join(f"  {one_line(run_id)}" for run_id in matches[:MOST_CANDIDATES])
        rest = len(matches) - MOST_CANDIDATES
        more = f"\n  and {rest} more" if rest > 0 else ""
        raise UsageError(f"{name!r} fits {len(matches)} runs: give more of the id\n{shown}{more}")
    import difflib  # only for a name that is wrong

    near = difflib.get_close_matches(name[:64], ids[:1000], n=1)
    meant = f"; did you mean {one_line(near[0])}?" if near else ""
    newest = ", ".join(run.shown for run in all_runs(catalog)[:5])
    raise UsageError(f"no run {name!r} in {catalog}; the newest are {newest}{meant}")


def run_ids(catalog: Path) -> list[str]:
    """The names of all folders in a catalog that hold a run's history, in no order, also of those that cannot be read.

    Links are no runs. Raises UsageError where the catalog cannot be read.
    """
    check_catalog(catalog)
    try:
        with os.scandir(catalog) as entries:
            names = [entry.name for entry in entries if is_name(entry.name) and _is_folder(entry)]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return [name for name in names if _is_run(f"{catalog}/{name}")]


def all_runs(catalog: Path) -> list[Run]:
    """Every run of a catalog, newest first (by the time its folder was claimed, as its history tells)."""
    catalog = catalog.resolve()
    found = sorted(((_created(f"{catalog}/{name}"), name) for name in run_ids(catalog)), reverse=True)
    return [Run(catalog / name) for _, name in found]


def _readable(run: Run) -> Run:
    if why := unreadable(run):
        raise UsageError(why)
    return run


def _is_folder(entry: os.DirEntry[str]) -> bool:
    return entry.is_dir(follow_symlinks=False)


def _is_own_run(folder: str) -> bool:
    """Whether a run stands there itself, rather than a link to one elsewhere."""
    return _is_run(folder) and not Path(folder).is_symlink()


def _is_run(folder: str) -> bool:
    try:
        return stat.S_ISREG(os.lstat(f"{folder}/events.jsonl").st_mode)
    except PermissionError:
        return True  # a folder that another user keeps closed: ``unreadable`` tells
    except (OSError, ValueError):
        return False


def _created(folder: str) -> str:
    """The time of the first event; empty where it cannot be read."""
    try:
        descriptor = os.open(
            f"{folder}/events.jsonl", os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        )
    except OSError:
        return ""
    try:
        head = os.read(descriptor, 4096).split(b"\n", 1)[0]
    except OSError:
        return ""
    finally:
        os.close(descriptor)
    found = _TIME.search(head)
    return found.group(1).decode(errors="replace") if found else ""
