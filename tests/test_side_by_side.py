"""What several processes work out is what one would have, whatever becomes of them."""

import os
import threading

import pytest

from lockstep.catalog import side_by_side
from lockstep.catalog.side_by_side import each


@pytest.fixture
def three(monkeypatch):
    """Three cores; and the thread that watches the time of this test does not count."""
    monkeypatch.setattr(side_by_side, "_alone", lambda: True)
    monkeypatch.setattr(side_by_side, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(side_by_side, "cores", lambda: 3)


def doubled(number):
    return [number * 2, os.getpid()]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 7, 100])
def test_the_order_is_kept_and_the_work_is_shared(three, count):
    found = each(doubled, range(count))
    assert [value for value, _ in found] == [2 * number for number in range(count)]
    assert len({pid for _, pid in found}) == min(count, 3)


@pytest.mark.parametrize("fate", ["killed", "failed", "silent"])
def test_what_a_process_does_not_bring_home_is_worked_out_here(three, monkeypatch, fate):
    here, forks, fork = os.getpid(), [], os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(fork()) or forks[-1])

    def work(number):
        if os.getpid() != here and number == 8:
            if fate == "killed":
                os.kill(os.getpid(), 9)
            if fate == "failed":
                raise ValueError(number)
            os._exit(0)
        return number

    assert each(work, range(9)) == [*range(9)]
    assert len(forks) == 2
    for pid in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)  # none of them is left


@pytest.mark.parametrize("call", ["fork", "pipe"])
def test_where_no_process_can_be_started_all_is_worked_out_here(three, monkeypatch, call):
    monkeypatch.setattr(os, call, lambda: (_ for _ in ()).throw(BlockingIOError(11, "no more")))
    before = os.listdir("/proc/self/fd")
    assert each(doubled, range(9)) == [doubled(number) for number in range(9)]
    assert os.listdir("/proc/self/fd") == before


@pytest.mark.parametrize("where", [0, 4, 8])
def test_an_error_is_raised_here_and_ends_the_others(three, monkeypatch, where):
    forks, fork = [], os.fork
    monkeypatch.setattr(os, "fork", lambda: forks.append(fork()) or forks[-1])

    def work(number):
        if number == where:
            raise ValueError("that one")
        return number

    before = os.listdir("/proc/self/fd")
    with pytest.raises(ValueError, match="that one"):
        each(work, range(9))
    assert os.listdir("/proc/self/fd") == before and len(forks) == 2
    for pid in forks:
        with pytest.raises(ChildProcessError):
            os.waitpid(pid, os.WNOHANG)


def test_a_process_with_a_second_thread_is_not_forked(three, monkeypatch):
    monkeypatch.undo()
    monkeypatch.setattr(side_by_side, "WORTH_A_PROCESS", 1)
    monkeypatch.setattr(side_by_side, "cores", lambda: 3)
    go_on = threading.Event()
    thread = threading.Thread(target=go_on.wait)
    thread.start()
    try:
        assert {pid for _, pid in each(doubled, range(9))} == {os.getpid()}
    finally:
        go_on.set()
        thread.join()
