"""Executes the schedules of all ranks on plain Python numbers: what the executors on tensors must agree with."""

from collections.abc import Sequence
from fractions import Fraction

from lockstep.collectives.schedule import Schedule, chunk_bounds

Number = float | Fraction


def run_all(schedules: Sequence[Schedule], buffers: list[list[Number]]) -> None:
    """Execute all ranks in step, in place; ``buffers[rank]`` is that rank's, all of one length.

    With Fractions the sums are exact; with floats they are added in the order that the schedules give.
    """
    bounds = chunk_bounds(len(buffers[0]), schedules[0].chunks)
    for number in range(len(schedules[0].rounds)):
        before = [list(buffer) for buffer in buffers]  # what is sent is what stood there when the round began
        for schedule, buffer in zip(schedules, buffers, strict=True):
            for each in schedule.rounds[number]:
                if each.kind == "send":
                    continue
                for index in range(bounds[each.chunks.start][0], bounds[each.chunks.stop - 1][1]):
                    arriving = before[each.peer][index]
                    buffer[index] = arriving if each.kind == "receive" else buffer[index] + arriving
