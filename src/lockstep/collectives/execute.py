"""Runs a schedule on real tensors: the same rounds that are proven, drawn and costed, over any transport."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING

from lockstep.collectives.schedule import Round, Schedule, Transfer, chunk_bounds

if TYPE_CHECKING:  # the room's other files are read where torch cannot be imported
    from torch import Tensor

    from lockstep.transports.base import Pending, Reduce, Transport


def add(accumulator: Tensor, incoming: Tensor) -> None:
    """The sum, in place, in the tensors' own precision."""
    accumulator.add_(incoming)


def run(schedule: Schedule, transport: Transport, buffer: Tensor, reduce: Reduce = add) -> None:
    """Carry out this rank's part of a collective, in place on a flat buffer of shape (elements,).

    A round's receives are taken in in the order that the schedule lists, so the result does not depend on
    timing. Empty chunks are not sent: both sides know which they are.
    Raises TransportError. Where the transport has an all-reduce of its own, the ``direct`` algorithm is that.
    A buffer of a GPU is reduced in the host's memory, which is all that a transport reaches, and copied back.
    """
    if buffer.device.type != "cpu":
        here = buffer.cpu()
        run(schedule, transport, here, reduce)
        buffer.copy_(here)
        return
    assert buffer.dim() == 1 and buffer.is_contiguous(), "a flat, contiguous buffer"
    assert (schedule.rank, schedule.world_size) == (transport.rank, transport.size), "another rank's schedule"
    operation = f"{schedule.collective} {schedule.algorithm}"
    if transport.label.operation != operation:
        transport.label = replace(transport.label, operation=operation)
    if (
        transport.all_reduce is not None
        and reduce is add
        and schedule.collective == "all_reduce"
        and schedule.algorithm == "direct"
    ):
        transport.all_reduce(buffer)
        return
    bounds = chunk_bounds(buffer.numel(), schedule.chunks)
    for number, transfers in enumerate(schedule.rounds):
        _round(number, transfers, bounds, transport, buffer, reduce)


def _round(
    number: int,
    transfers: Round,
    bounds: list[tuple[int, int]],
    transport: Transport,
    buffer: Tensor,
    reduce: Reduce,
) -> None:
    pending: list[Pending] = []
    sends: list[Pending] = []
    for transfer in transfers:
        piece = _piece(transfer, bounds, buffer)
        if not piece.numel():
            continue
        if transfer.kind == "send":
            sends.append(transport.send(piece, transfer.peer, number))
        elif transfer.kind == "receive_reduce":
            pending.append(transport.recv_reduce(piece, transfer.peer, number, reduce))
        else:
            pending.append(transport.recv(piece, transfer.peer, number))
    for message in (*pending, *sends):
        message.wait()


def _piece(transfer: Transfer, bounds: list[tuple[int, int]], buffer: Tensor) -> Tensor:
    """The part of the buffer that a transfer is about: its chunks lie side by side."""
    chunks = transfer.chunks
    if not len(chunks):
        return buffer[:0]
    return buffer[bounds[chunks[0]][0] : bounds[chunks[-1]][1]]
