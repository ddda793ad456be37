"""Running a run again from its record, and saying whether the same came out.

The recorded code is put together in a temporary worktree, and runs there as its own program, with the recorded
parameters; so the code of that time is what runs, not this. What it makes is a new run in the same catalog, whose
parent is the old one, and the two are compared step by step.
"""

import importlib.util
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lockstep import __version__
from lockstep.catalog import compare, git, seal, status, verdicts
from lockstep.catalog.compare import code, inputs
from lockstep.catalog.events import utc_now
from lockstep.catalog.report.values import at, mapping
from lockstep.catalog.run import Run, new_run_id
from lockstep.errors import UsageError
from lockstep.files import read_object
from lockstep.orchestration import surroundings, worktree
from lockstep.orchestration.stopping import Stop, stoppable
from lockstep.orchestration.surroundings import Interpreter
from lockstep.orchestration.worktree import Recreated

OTHERWISE = "ended otherwise"
SAME_ENOUGH = (compare.SAME, compare.WITHIN)
_OWN = re.compile(r"([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)*):[A-Za-z_]\w*")


@dataclass(frozen=True)
class Wish:
    """What the user asked for. ``packages`` is auto, current or uv; ``say`` takes lines for people."""

    run: Run
    folder: Path
    tolerance: float | None
    prove: bool
    packages: str
    say: Callable[[str], None]
    output: Any = None  # where the new run's own output goes; None: where ours does


@dataclass
class Rerun:
    """One repetition and its comparison with the run."""

    run: Run
    exit_status: int
    found: dict[str, Any]
    verdict: str

    def as_dict(self) -> dict[str, Any]:
        """For the verdict's record."""
        training = self.found["training"]
        return {
            **verdicts.bound(self.run),
            "exit_status": self.exit_status,
            "verdict": self.verdict,
            **{
                key: training[key]
                for key in ("steps", "last_step", "compared", "checkpoints", "first", "beyond")
            },
            "cause": self.found["cause"],
        }


@dataclass
class Outcome:
    """The verdict's record, where it stands, and the comparisons behind it."""

    verdict: str
    record: dict[str, Any]
    path: Path
    reruns: list[Rerun] = field(default_factory=list)
    between: dict[str, Any] | None = None


def reproduce(wish: Wish) -> Outcome:
    """Run a run again. Raises UsageError, with nothing run and nothing left, where it cannot be started."""
    run = wish.run
    state = refuse_what_cannot_be_repeated(run)
    differs = surroundings.drift(run)
    folders = list(dict.fromkeys([wish.folder, run.catalog]))
    with stoppable() as stop:
        inside = at(read_object(run.provenance), "git", "folder")
        with worktree.recreated(state, inside if isinstance(inside, str) else None, folders) as place:
            differs += own_code_elsewhere(run, place)
            differs += what_is_brought(run, state, place, wish.folder)
            if worktree.has_submodules(place.root):
                differs.append("the code names other repositories (.gitmodules), which are not checked out")
            recorded = at(read_object(run.provenance), "packages", "lockstep")
            if not (place.root / "src" / "lockstep").is_dir() and recorded not in (None, __version__):
                differs.append(f"lockstep: {recorded} then, {__version__} here")
            chosen = surroundings.interpreter(run, place, wish.packages)
            _announce(wish, state, differs, chosen)
            reruns = [_again(wish, place, chosen, stop) for _ in range(2 if wish.prove else 1)]
    between = None
    if wish.prove:
        between = compare.compare(reruns[0].run, reruns[1].run, folders, wish.tolerance)
    verdict = _together(reruns, between)
    record = {
        "format": 1,
        "time": utc_now(),
        "lockstep": __version__,
        "verdict": verdict,
        "run": verdicts.bound(run),
        "tolerance": wish.tolerance,
        "prove": wish.prove,
        "commit": state.commit,
        "patch_sha256": mapping(at(read_object(run.provenance), "git", "patch")).get("sha256"),
        "packages": {"kind": chosen.kind, "words": chosen.words},
        "drift": differs,
        "reruns": [each.as_dict() for each in reruns],
        "between_reruns": between["training"] if between else None,
    }
    path = verdicts.write(run.catalog, reruns[0].run.run_id, record)
    return Outcome(verdict, record, path, reruns, between)


def refuse_what_cannot_be_repeated(run: Run) -> code.State:
    """The run's code as recorded; UsageError where the record is not enough, or is not what was sealed."""
    if status.of(run).word == "running":
        raise UsageError(f"run {run.shown} is running: it can be repeated when it has ended")
    if not run.parameters.is_file():
        raise UsageError(f"run {run.shown} has no parameters.yaml: it ended before it had begun")
    findings = seal.verify_seal(run) if run.manifest.is_file() else []
    if findings:
        raise UsageError(
            f"run {run.shown} is not what was sealed, so it is not run again: {'; '.join(findings[:5])}"
        )
    state = code.state_of(run)
    if state.commit is None:
        raise UsageError(f"run {run.shown} names no commit to run again: {state.gap}")
    if not state.complete:
        raise UsageError(f"the code of run {run.shown} is not all recorded: {state.gap}")
    for number in range(2, 10_000):
        if not read_object(run.path / f"provenance.attempt-{number}.json"):
            break
        later = code.compare(state, code.state_of(run, number), [Path.cwd(), run.catalog])
        if not later.same and later.computes:
            raise UsageError(
                f"attempt {number} of run {run.shown} went on with other code than the first ({later.words}): no "
                "one state of the code is what made it"
            )
    if _parent_checkpoint(run) and not run.start.is_dir():
        raise UsageError(
            f"run {run.shown} began with a checkpoint of its parent, and its folder start is missing"
        )
    return state


def _parent_checkpoint(run: Run) -> object:
    return at(read_object(run.provenance), "parent", "checkpoint")


def own_code_elsewhere(run: Run, place: Recreated) -> list[str]:
    """The user's own modules that the parameters name must come with the code; UsageError for one that does not."""
    said = []
    for key, value in inputs.parameters_of(run).items():
        named = _OWN.fullmatch(value) if isinstance(value, str) else None
        if named is None:
            continue
        path = Path(*named[1].split("."))
        roots = (place.folder, place.root, place.root / "src", place.folder / "src")
        if any((root / path).with_suffix(".py").is_file() or (root / path).is_dir() for root in roots):
            continue
        spec = importlib.util.find_spec(path.parts[0])
        if spec is None or spec.origin is None or "site-packages" not in Path(spec.origin).parts:
            raise UsageError(
                f"{key} is {value}, and its module is neither in the recorded commit nor in its patch: code that git "
                "did not know when the run was made cannot be had again"
            )
        said.append(f"{key} is {value}, from a package that is installed here: its code is not in the record")
    return said


def what_is_brought(run: Run, state: code.State, place: Recreated, folder: Path) -> list[str]:
    """Put beside the recorded code what git does not hold: files that the patch leaves out, and the lock file.

    Returns what cannot be had; UsageError where that is code.
    """
    surroundings.bring_lock(run, place)
    try:
        top = git.open_repository(folder).folder
    except git.GitError:
        top = folder
    lacking = worktree.bring(state.missing, top, place.root)
    refused = [each.path for each in lacking if each.is_code and (each.sha256 or each.tracked)]
    if refused:
        raise UsageError(
            f"the code of run {run.shown} is not all recorded: its patch leaves out {', '.join(refused[:5])}, and "
            f"{top} does not hold the bytes of that time any more; put them back there, and it can be repeated"
        )
    some_are_not_named = state.gap is not None and not state.missing
    said = [f"not in the patch, and not here as it was: {each.path}" for each in lacking[:10]]
    if some_are_not_named or len(lacking) > 10:
        said.append(str(state.gap))
    return said + surroundings.other_modules(run, top)


def _announce(wish: Wish, state: code.State, differs: list[str], chosen: Interpreter) -> None:
    """Say what will be run, and name every drift, before anything is run."""
    wish.say(f"repeating {wish.run.shown}: code {state.short}, with {chosen.words}")
    if not wish.run.manifest.is_file():
        differs.append("the run was never sealed: that its record is as it was written cannot be proven")
    for each in differs:
        wish.say(f"  drift: {each}")
    if not differs:
        wish.say("  drift: none found; threads per rank and world size are the recorded ones")


def _again(wish: Wish, place: Recreated, chosen: Interpreter, stop: Stop) -> Rerun:
    """One repetition, as a process of the recorded code, and how it compares."""
    run = wish.run
    new = Run(run.catalog / new_run_id())
    parameters = place.scratch / "parameters.yaml"
    parameters.write_bytes(run.parameters.read_bytes())
    command = [chosen.python, "-m", "lockstep.cli", "run"]
    environment = surroundings.environment(run, place, chosen.kind == "current")
    knows = subprocess.run(
        [*command, "--help"],
        cwd=place.folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        encoding="utf-8",
        errors="replace",
    )
    words = ["--parameters", str(parameters), "--catalog", str(run.catalog), "--run-id", new.run_id]
    if "--reproduces" in knows.stdout:
        words += ["--reproduces", str(run.path)]
    else:
        threads = mapping(read_object(run.plan)).get("threads_per_rank")
        words += [f"distributed.threads_per_rank={threads}"] if isinstance(threads, int) else []
        wish.say(
            "  the recorded code knows no --reproduces: only the verdict tells that the new run repeats the old"
        )
    if wish.prove:
        words.append("training.digest_every=1")
    exit_status = stop.run([*command, *words], place.folder, environment, wish.output)
    if not new.events.is_file():
        raise UsageError(f"the recorded code could not be started (exit status {exit_status}): see above")
    found = compare.compare(run, new, [wish.folder, place.root], wish.tolerance)
    return Rerun(new, exit_status, found, _verdict(run, new, exit_status, found))


def _verdict(run: Run, new: Run, exit_status: int, found: dict[str, Any]) -> str:
    """The comparison's, unless the new run ended short of the old one or in another way than it."""
    before, after = status.of(run), status.of(new)
    training = found["training"]
    short = (training["steps"]["last"] or 0) < training["last_step"]["a"]
    failed = exit_status != 0 and (before.word, before.cause) != (after.word, after.cause)
    too_good = (
        before.word == "failed" and after.word == "succeeded" and before.cause in ("not finite", "diverged")
    )
    if training["verdict"] in SAME_ENOUGH and (short or failed or too_good):
        return OTHERWISE
    return str(training["verdict"])


def _together(reruns: list[Rerun], between: dict[str, Any] | None) -> str:
    """The worst of all comparisons."""
    found = [each.verdict for each in reruns] + ([between["training"]["verdict"]] if between else [])
    order = (compare.PARTED, OTHERWISE, compare.NOTHING, compare.WITHIN, compare.SAME)
    return str(min(found, key=order.index))
