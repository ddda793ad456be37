"""Messages through shared memory: a ring of slots for each ordered pair of ranks, cut into pieces that fit one."""

from collections import deque
from threading import Lock

from torch import Tensor

from lockstep.transports._frames import HEADER_BYTES, TOKEN_BYTES, BadHeader, Frame, pack, unpack
from lockstep.transports._segment import Segment
from lockstep.transports._waiting import Waiting
from lockstep.transports.base import Label, Reduce, Transport, bytes_of

HEAD = 128  # bytes of a slot before its data: the header, in whole cache lines
_TOKEN = bytes(TOKEN_BYTES)  # nobody but this run's ranks can reach the memory, so it needs no proof


class Slots:
    """One rank's end of all pairs. Sends go on whenever this rank waits for anything, so none can block another."""

    def __init__(self, transport: Transport, segment: Segment, waiting: Waiting) -> None:
        self.transport, self.segment, self.waiting = transport, segment, waiting
        self._under_way: list[deque[Send]] = [deque() for _ in range(transport.size)]
        self._sent = [0] * transport.size
        self._received = [0] * transport.size
        self._lock = Lock()
        self._wanted = False  # that somebody goes through the sends

    def send(self, tensor: Tensor, to: int, tag: int) -> "Send":
        """Put as much of it as there is room for."""
        transport = self.transport
        frame = Frame.of(transport.rank, self._sent[to], transport.label, tag, tensor)
        send = Send(self, bytes_of(tensor), pack(frame, _TOKEN), to, transport.label)
        self._sent[to] += 1
        with self._lock:
            transport.wire_bytes += len(send.data) + HEADER_BYTES
            self._under_way[to].append(send)
        self.push()
        return send

    def receive(self, into: Tensor, source: int, tag: int, reduce: Reduce | None) -> "Receive":
        """What is next from that rank; nothing is read before it is waited for."""
        frame = Frame.of(source, self._received[source], self.transport.label, tag, into)
        self._received[source] += 1
        return Receive(self, into, source, frame, reduce, self.transport.label)

    def push(self) -> bool:
        """Go on with everything that is being sent; whether any of it went on."""
        moved = False
        self._wanted = True
        # Where another thread of this rank is at it, that one goes round once more when it is through.
        while self._wanted and self._lock.acquire(blocking=False):
            try:
                self._wanted = False
                for sends in self._under_way:
                    while sends and sends[0].push():
                        moved = True
                        if sends[0].finished:
                            sends.popleft()
            finally:
                self._lock.release()
        if moved:
            self.waiting.ring(self.transport.rank)  # another thread may wait for its send to end
        return moved


class Send:
    """A message on its way into the slots of one pair."""

    def __init__(self, slots: Slots, data: memoryview, header: bytes, to: int, label: Label) -> None:
        self.data, self.finished = data, False
        self._slots, self._header, self._to, self._label = slots, header, to, label
        self._offset = 0
        self._put, self._taken = slots.segment.layout.pair_words(slots.transport.rank, to)

    def push(self) -> bool:
        """Put one piece, where a slot is free."""
        segment = self._slots.segment
        layout, words = segment.layout, segment.words
        number = words[self._put]
        if number - words[self._taken] >= layout.slots:
            return False
        start = layout.slot(self._slots.transport.rank, self._to, number)
        if self._offset == 0:
            segment.memory[start : start + HEADER_BYTES] = self._header
        piece = self.data[self._offset : self._offset + layout.slot_bytes - HEAD]
        segment.bytes[start + HEAD : start + HEAD + len(piece)] = piece
        words[self._put] = number + 1
        self._slots.waiting.ring(self._to)
        self._offset += len(piece)
        self.finished = self._offset == len(self.data)
        return True

    def wait(self) -> None:
        """Until the last piece is in a slot."""
        while not self.finished:
            self._slots.waiting.until(self._moved, self._to, self._label)

    def _moved(self) -> bool:
        return self._slots.push() or self.finished


class Receive:
    """A message that is taken out of the slots of one pair, or reduced from where it lies."""

    def __init__(
        self, slots: Slots, into: Tensor, source: int, frame: Frame, reduce: Reduce | None, label: Label
    ) -> None:
        assert into.is_contiguous()
        self._slots, self._source, self._expected = slots, source, frame
        self._into, self._reduce, self._label = into.detach().reshape(-1), reduce, label
        self._put, self._taken = slots.segment.layout.pair_words(source, slots.transport.rank)
        self._number = 0

    def wait(self) -> None:
        """Take piece after piece, as they come."""
        layout, words = self._slots.segment.layout, self._slots.segment.words
        elements = (layout.slot_bytes - HEAD) // self._into.element_size()
        offset = 0
        while True:
            self._number = words[self._taken]
            if words[self._put] <= self._number:
                self._slots.waiting.until(self._arrived, self._source, self._label)
            start = layout.slot(self._source, self._slots.transport.rank, self._number)
            if offset == 0:
                self._check(start)
            part = self._into[offset : offset + elements]
            if part.numel():
                self._take(part, self._slots.segment.tensor(start + HEAD, part.numel(), part.dtype))
            words[self._taken] = self._number + 1
            self._slots.waiting.ring(self._source)
            offset += elements
            if offset >= self._into.numel():
                return

    def _arrived(self) -> bool:
        if self._slots.segment.words[self._put] > self._number:
            return True
        self._slots.push()
        return False

    def _check(self, start: int) -> None:
        transport, memory = self._slots.transport, self._slots.segment.memory
        try:
            found, _, _ = unpack(memory[start : start + HEADER_BYTES], _TOKEN)
        except BadHeader as error:
            raise transport.mismatch(
                self._source, self._label, error.field, error.found, error.expected
            ) from None
        if difference := found.difference(self._expected):
            raise transport.mismatch(self._source, self._label, *difference)

    def _take(self, part: Tensor, piece: Tensor) -> None:
        if self._reduce is None:
            part.copy_(piece)
        else:
            self._reduce(part, piece)
