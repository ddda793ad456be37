"""How many bytes this process has sent, asked of the kernel: for libraries that do not count, such as gloo."""

import contextlib
import os
import socket
import stat
import struct

_TCP_INFO = getattr(socket, "TCP_INFO", 11)
_SIZE = 216
_BYTES_SENT = (
    200  # tcpi_bytes_sent and tcpi_bytes_retrans in struct tcp_info of linux/tcp.h, since Linux 4.19
)


class SentBytes:
    """The payload sent on the TCP connections that the process has when this is made. ``close`` lets go of them."""

    def __init__(self) -> None:
        self._sockets: list[socket.socket] = []
        found = []
        for name in os.listdir("/proc/self/fd"):  # noqa: PTH208 - names only
            with contextlib.suppress(OSError):  # that of the listing itself is closed by now
                if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                    found.append(int(name))
        for descriptor in found:
            self._take(descriptor)

    def _take(self, descriptor: int) -> None:
        twin = socket.socket(fileno=os.dup(descriptor))
        inet = twin.family in (socket.AF_INET, socket.AF_INET6) and twin.type == socket.SOCK_STREAM
        if inet and not twin.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
            self._sockets.append(twin)
        else:
            twin.close()

    def read(self) -> int:
        """All bytes so far, without TCP's headers and what had to be sent again."""
        total = 0
        for each in self._sockets:
            information = each.getsockopt(socket.IPPROTO_TCP, _TCP_INFO, _SIZE)
            if len(information) == _SIZE:
                sent, again = struct.unpack_from("QQ", information, _BYTES_SENT)
                total += sent - again
        return total

    def close(self) -> None:
        """Let go of the connections."""
        for each in self._sockets:
            each.close()
        self._sockets = []
