"""Some of the ranks of a transport, for collectives that the others take no part in."""

from torch import Tensor

from lockstep.transports.base import Group, Label, Pending, Reduce, Transport


class Among(Transport):
    """The first ``group.world_size`` ranks of a transport that more of them share."""

    def __init__(self, group: Group, whole: Transport) -> None:
        super().__init__(group)
        self._whole = whole

    @property
    def label(self) -> Label:
        """The whole transport's."""
        return self._whole.label

    @label.setter
    def label(self, label: Label) -> None:
        self._whole.label = label

    def send(self, tensor: Tensor, to: int, tag: int = 0) -> Pending:
        """To another of them."""
        return self._whole.send(tensor, to, tag)

    def recv(self, into: Tensor, source: int, tag: int = 0) -> Pending:
        """From another of them."""
        return self._whole.recv(into, source, tag)

    def recv_reduce(self, into: Tensor, source: int, tag: int, reduce: Reduce) -> Pending:
        """From another of them, and added."""
        return self._whole.recv_reduce(into, source, tag, reduce)
