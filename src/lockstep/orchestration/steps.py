"""The tasks of the pipeline. Each works in the run's folder, which is the current one, and returns little:
what a task returns becomes a parameter of the later ones and stands in Runnable's log."""

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

from lockstep.board import Board
from lockstep.catalog import imports
from lockstep.errors import Interrupted, LockstepError, MissingPackage, RunFailed
from lockstep.files import read_json, write_json
from lockstep.launchers.supervise import Watched, end_group, supervise
from lockstep.orchestration import aggregate, closing, forecast, inputs, plan, prepare, servers
from lockstep.orchestration.session import Session, current
from lockstep.parameters import Parameters, from_value
from lockstep.parameters import read as read_parameters

EVALUATION_LOG, EVALUATION_RESULT = "evaluator.log", "evaluation.json"  # as engine.evaluation writes them
P = ParamSpec("P")
T = TypeVar("T")


def _step(function: Callable[P, T]) -> Callable[P, T]:
    """Keep what a step raises: Runnable only keeps that it failed."""

    @functools.wraps(function)
    def kept(*args: P.args, **kwargs: P.kwargs) -> T:
        try:
            return function(*args, **kwargs)
        except Exception as error:
            current().failure = error
            raise

    return kept


def _parameters(**sections: Any) -> Parameters:
    return from_value(sections, "parameters.yaml")


@_step
def prepare_data(seed: int, data: dict[str, Any]) -> str:
    """Prepare the splits, or link those that stand in the store already."""
    session = current()
    parameters = _parameters(seed=seed, data=data, distributed={"world_size": 1})
    description = _prepared(session, parameters, seed)
    counts = {name: file["samples"] for name, file in description["files"].items()}
    session.display.say(", ".join(f"{count:,} {name}" for name, count in counts.items()))
    return str(description["identity"])


def _prepared(session: Session, parameters: Parameters, seed: int) -> dict[str, Any]:
    """The data, made from what stands here; for a repetition that finds nothing to make them from, as they were."""
    try:
        return prepare.prepare(session.run, parameters.data, seed, session.folder)
    except Exception as error:
        missing = isinstance(error, MissingPackage)
        if missing or session.repeats is None or not (session.repeats.data / "data.json").is_file():
            raise
        description = prepare.as_it_was(session.run, session.repeats)
        session.warn(
            f"the data cannot be prepared from what stands beside the recorded code ({error}): the splits of run "
            f"{session.repeats.shown} are used, as they were recorded"
        )
        return description


@_step
def setup_distributed(
    seed: int,
    data: dict[str, Any],
    model: dict[str, Any],
    training: dict[str, Any],
    distributed: dict[str, Any],
    checkpoint: dict[str, Any],
) -> int:
    """Decide ranks, threads and steps, and refuse what cannot work before anything is started."""
    session = current()
    parameters = _parameters(
        seed=seed, data=data, model=model, training=training, distributed=distributed, checkpoint=checkpoint
    )
    decided = plan.make(session.run, parameters)
    decided["code"] = inputs.own_code(parameters)
    decided["weights"] = inputs.keep_weights(session.run, parameters, session.folder)
    write_json(session.run.plan, decided)
    for warning in decided["warnings"]:
        session.warn(warning)
    session.display.say(plan.in_words(decided))
    memory = forecast.make(session, parameters.distributed)
    decided["model"] = memory.pop("observed", {"absent": memory.get("absent")})
    decided["memory"] = memory
    write_json(session.run.plan, decided)
    if "ranks" in decided["memory"]:
        session.display.say(f"a rank needs {forecast.in_words(decided['memory']['ranks'][0])}")
    return int(decided["steps"])


@_step
def train(distributed: dict[str, Any]) -> int:
    """Start the ranks and watch over them until the last step."""
    session, run = current(), current().run
    prepare.verify(run)
    decided = read_json(run.plan)
    left = decided["strategy"].get("restarts", 0) if decided.get("servers", 0) else 0
    try:
        done = _train_with_restarts(session, decided, distributed, left)
    finally:
        with contextlib.suppress(OSError):  # a full disk must not hide why the ranks ended
            for sentence in imports.gather(run, session.attempt, decided["world_size"]):
                session.warn(sentence)
    if session.stop_signal:
        raise Interrupted(session.stop_signal)
    if done < decided["steps"]:
        raise RunFailed(f"the ranks ended after step {done} of {decided['steps']} without a word")
    closing.write_model(session, read_parameters(run.parameters, []))
    return done


def _train_with_restarts(
    session: Session, decided: dict[str, Any], distributed: dict[str, Any], left: int
) -> int:
    """Train, starting everything again as often as ``left`` says where a server was killed; the steps done."""
    while True:
        try:
            return _train_once(session, decided, distributed)
        except RunFailed as error:
            if error.server is None or error.cause != "signal" or not left or session.stop_signal:
                raise
            left -= 1
            what = str(error).partition("\n")[0]
            session.warn(f"{what}. It is started again from the last checkpoint, and the ranks go back to it")


def check_ranks(distributed: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks, let them build the model and compare, and end them; what rank 0 compared."""
    session, run = current(), current().run
    decided = read_json(run.plan) | {"check_only": True}
    write_json(run.plan, decided)
    _train_once(session, decided, distributed)
    compared: dict[str, Any] = read_json(run.live / "compared.json")
    return compared


def _train_once(session: Session, decided: dict[str, Any], distributed: dict[str, Any]) -> int:
    """Start all processes of the plan, and return the steps done when they have ended."""
    run, ranks, more = session.run, decided["world_size"], decided.get("servers", 0)
    plan.clear_leftovers(run)
    server = session.ranks_server(distributed["start_method"])
    with Board.create(run.live / "board", ranks, more) as board:
        board.set_header("total_steps", decided["steps"])
        logs = [run.rank_log(rank) for rank in range(ranks)]
        logs += [run.logs / f"server-{number}.log" for number in range(more)]
        watched = Watched(run, server, logs, board, distributed["timeout_seconds"])
        name = decided["strategy"]["name"]
        server.start("lockstep.engine.rank:main", [str(run.path), session.attempt], ranks + more, name)
        with session.display.training(board, decided) as tick:
            _watch(session, watched, board, tick)
        return board.integer(0, "step")


def _watch(session: Session, watched: Watched, board: Board, tick: Callable[[], None]) -> None:
    def stop_wanted() -> bool:
        if session.stop_signal and not board.number(0, "first_step"):
            raise Interrupted(session.stop_signal)  # nothing is done yet that could be saved
        return session.stop_signal is not None

    def look() -> None:
        tick()
        tell_notes(session)

    session.stoppable = True
    try:
        supervise(watched, stop_wanted, look)
    except BaseException:
        with contextlib.suppress(LockstepError, OSError):  # the server may be gone, and its ranks with it
            end_group(watched, 0.0)  # the seal follows: no rank may write after it
        raise
    finally:
        session.stoppable = False
        with contextlib.suppress(OSError):  # a full disk must not hide why the ranks ended
            tell_notes(session)


def tell_notes(session: Session) -> None:
    """What rank 0 has to say, as soon as it has: a checkpoint that it passed over may be gone by the end."""
    for message in plan.notes(session.run):
        if message not in session.told:
            session.told.add(message)
            session.warn(message)


@_step
def aggregate_metrics() -> float:
    """One picture of the ranks' metrics, weighted by samples."""
    session = current()
    results = aggregate.aggregate(session.run)
    if found := servers.summary(session.run):
        results["servers"] = found
        session.display.say(servers.in_words(found))
    write_json(session.run.results, results)
    return float(results["training"]["samples_per_second"] or 0.0)


@_step
def evaluate(distributed: dict[str, Any]) -> tuple[float, float | str]:
    """Judge the final and the best checkpoint, restored from disk in a process of its own."""
    session, run = current(), current().run
    server = session.ranks_server(distributed["start_method"])
    (run.live / EVALUATION_RESULT).unlink(missing_ok=True)
    plan.clear_leftovers(run)
    watched = Watched(run, server, [run.logs / EVALUATION_LOG], None, distributed["timeout_seconds"])
    server.start("lockstep.engine.evaluation:main", [str(run.path)], 1)
    supervise(watched)
    results = read_json(run.results)
    results["evaluation"] = read_json(run.live / EVALUATION_RESULT)
    write_json(run.results, results)
    _warn_of_losses(session, results["evaluation"])
    final = results["evaluation"]["final"]["test"]
    return final["accuracy"], final["loss"]


def _warn_of_losses(session: Session, evaluation: dict[str, Any]) -> None:
    """A loss that is not finite stands in the results by its name, which the user should not find there first."""
    final = evaluation["final"]
    found = [
        f"{split} {final[split]['loss']}"
        for split in ("train", "validation", "test")
        if final[split] and isinstance(final[split]["loss"], str)
    ]
    if found:
        session.warn(f"the final model's loss outside of training is not finite: {', '.join(found)}")


@_step
def report() -> None:
    """Write report.html."""
    from lockstep.catalog import report as report_page  # here, so that the other steps do not wait for it

    report_page.write(current().run)
