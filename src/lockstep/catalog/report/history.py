"""The run's history as its events tell it: attempts, the pipeline's steps in each, and how it stands."""

from dataclasses import dataclass, field
from typing import Any

from lockstep.catalog.report.values import moment, number, show_scalar

ENDINGS = ("succeeded", "failed", "interrupted")
LIVED = ("started", "step_started", "step_finished", "finished")  # others may be written long after its end


@dataclass
class Step:
    """One step of the pipeline in one attempt; ``status`` is "open" while it has no end."""

    name: str
    started: float | None
    status: str = "open"
    seconds: float | None = None


@dataclass
class Attempt:
    """From one start of the pipeline to its end, or to the last thing that it wrote."""

    number: int
    started: float | None
    last: float | None
    steps: list[Step] = field(default_factory=list)

    @property
    def seconds(self) -> float | None:
        """How long the attempt is known to have lasted."""
        return None if self.started is None or self.last is None else max(0.0, self.last - self.started)


@dataclass(frozen=True)
class History:
    """``outcome`` is one of succeeded, failed, interrupted; evaluated or open where no end is
    recorded; unknown. ``words`` is what to show."""

    created: float | None
    attempts: list[Attempt]
    warnings: list[str]
    outcome: str
    words: str
    message: str

    @property
    def seconds(self) -> float | None:
        """Time spent in all attempts, without the pauses between them."""
        known = [attempt.seconds for attempt in self.attempts if attempt.seconds is not None]
        return sum(known) if known else None


def told_by(events: list[dict[str, Any]]) -> History:
    """Fold the events, in the order of the file, into a history."""
    attempts: list[Attempt] = []
    warnings: list[str] = []
    finished: dict[str, Any] | None = None
    first: dict[str, Any] = {}  # of the attempt
    for event in events:
        name, time = event.get("event"), moment(event.get("time"))
        if name == "started" or (not attempts and name in ("step_started", "step_finished")):
            attempts.append(Attempt(len(attempts) + 1, time, time))
            finished = None
            first = event
        if attempts and name in LIVED:
            time = _since(first, event)
        if attempts and time is not None and finished is None and name in LIVED:
            attempts[-1].last = time
        if name in ("step_started", "step_finished"):
            _note_step(attempts[-1], event, time)
        elif name == "warning":
            warnings.append(show_scalar(event.get("message")))
        elif name == "finished":
            finished = event
    created = moment(events[0].get("time")) if events else None
    outcome, words, message = _outcome(attempts, finished)
    return History(created, attempts, list(dict.fromkeys(warnings)), outcome, words, message)


def seconds_in(events: list[dict[str, Any]]) -> float | None:
    """``told_by(events).seconds``, from the first and the last time of each attempt: lists ask it of every run."""
    attempts: list[list[dict[str, Any]]] = []  # what was written while it lived
    ended = False
    for event in events:
        name = event.get("event")
        if name == "started" or (not attempts and name in ("step_started", "step_finished")):
            attempts.append([event])
            ended = False
        elif attempts and not ended and name in LIVED:
            attempts[-1].append(event)
        ended = ended or name == "finished"
    known = [spent for each in attempts if (spent := _span(each)) is not None]
    return sum(known) if known else None


def _span(events: list[dict[str, Any]]) -> float | None:
    started = moment(events[0].get("time"))
    last = next((time for each in reversed(events) if (time := _since(events[0], each)) is not None), None)
    return None if started is None or last is None else max(0.0, last - started)


def _since(first: dict[str, Any], event: dict[str, Any]) -> float | None:
    """When an event of an attempt was, by the clock at its start and the seconds since: nobody set those meanwhile.

    By its own time in records of versions that kept no other clock.
    """
    began, then, now = (
        moment(first.get("time")),
        number(first.get("uptime_us")),
        number(event.get("uptime_us")),
    )
    if began is None or then is None or now is None or now < then:
        return moment(event.get("time"))
    return began + (now - then) / 1e6


def _note_step(attempt: Attempt, event: dict[str, Any], time: float | None) -> None:
    name = show_scalar(event.get("step"))
    if event.get("event") == "step_started":
        attempt.steps.append(Step(name, time))
        return
    step = next((step for step in attempt.steps if step.name == name and step.status == "open"), None)
    seconds = number(event.get("seconds"))
    if step is None:  # a skipped step has an end only
        started = None if time is None else time - (seconds or 0.0)
        step = Step(name, started)
        attempt.steps.append(step)
    step.status = show_scalar(event.get("status"))
    step.seconds = seconds


def _outcome(attempts: list[Attempt], finished: dict[str, Any] | None) -> tuple[str, str, str]:
    """The recorded end where there is one; else how far the run had come when this page was written."""
    if finished is not None:
        status = show_scalar(finished.get("status"))
        cause, rank = finished.get("cause"), finished.get("rank")
        words = status + (f": {show_scalar(cause)}" if cause else "")
        words += "" if rank is None else f", rank {show_scalar(rank)}"
        message = finished.get("message")
        return (status if status in ENDINGS else "unknown"), words, show_scalar(message) if message else ""
    if not attempts:
        return "unknown", "not known", ""
    last = {step.name: step.status for attempt in attempts for step in attempt.steps}
    failed = [name for name, status in last.items() if status == "failed"]
    if failed:
        return "failed", f"failed in {failed[0]}", ""
    done = {name for name, status in last.items() if status in ("succeeded", "skipped")}
    if {"train", "evaluate"} <= done:
        return "evaluated", "trained and evaluated", ""
    return "open", "trained" if "train" in done else "no end recorded", ""
