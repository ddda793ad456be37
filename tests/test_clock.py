"""A clock that is set while a run goes on changes no length that is measured, and is told of."""

from datetime import datetime, timedelta

import pytest

from compared_runs import build
from lockstep.catalog import events, listing, seal
from lockstep.catalog.export import material
from lockstep.catalog.report.history import told_by
from lockstep.catalog.run import Run
from lockstep.catalog.verification import verify
from training import train


def recorded(tmp_path, monkeypatch, *, set_by: float, other_clock: bool = True) -> Run:
    """A run of 100 seconds in whose middle the clock was set by so many seconds."""
    now = datetime.fromisoformat("2026-11-20T12:00:00+00:00")
    seconds = 0.0

    def tell(run: Run, event: str, after: float, moved: float = 0.0, **fields) -> None:
        nonlocal seconds
        seconds += after + moved
        time = (now + timedelta(seconds=seconds)).isoformat(timespec="microseconds").replace("+00:00", "Z")
        ticks = 5000.0 + seconds - (set_by if seconds_moved(moved) else 0.0)
        monkeypatch.setattr(events, "utc_now", lambda: time)
        monkeypatch.setattr(events, "uptime_us", lambda: int(ticks * 1e6))
        events.append(run, event, **({} if other_clock else {"time": time}), **fields)

    shifted = False

    def seconds_moved(moved: float) -> bool:
        nonlocal shifted
        shifted = shifted or bool(moved)
        return shifted

    run = build(tmp_path, "a")
    run.events.unlink()
    tell(run, "created", 0, run_id="a", tag=None, parent=None, summary={})
    tell(run, "started", 0, attempt=1, process={"boot_id": "b"})
    tell(run, "step_started", 40, step="train")
    tell(run, "step_finished", 50, moved=set_by, step="train", status="succeeded", seconds=50.0)
    tell(run, "finished", 10, status="succeeded", cause=None, message=None, rank=None)
    return run


@pytest.mark.parametrize("set_by", [-3600.0, 3600.0, 0.0])
def test_a_clock_that_is_set_changes_no_length_and_is_told(tmp_path, monkeypatch, set_by):
    run = recorded(tmp_path, monkeypatch, set_by=set_by)
    assert listing.row(run, 0.0)["seconds"] == pytest.approx(100.0)
    assert told_by(events.read(run)).seconds == pytest.approx(100.0)
    found = material.gather(run)
    assert found.ended - found.began == pytest.approx(100.0)
    said = [each for each in verify(run).unproven if "clock" in each]
    assert len(said) == (1 if set_by else 0)
    if set_by:
        assert ("back" if set_by < 0 else "forward") in said[0] and "step_finished" in said[0]


def test_a_record_without_the_other_clock_ends_no_earlier_than_it_began(tmp_path, monkeypatch):
    run = recorded(tmp_path, monkeypatch, set_by=-3600.0, other_clock=False)
    assert "uptime" not in run.events.read_text()
    found = material.gather(run)
    assert found.ended >= found.began
    assert any("set back" in each for each in verify(run).unproven)


def test_a_real_run_records_both_clocks(server, tmp_path):
    run = train(server, tmp_path, "training.epochs=1")
    for event in events.read(run):
        assert 0 <= events.uptime_us() - event["uptime_us"] < 600e6
    seal.seal(run)
    assert seal.verify_seal(run) == []
