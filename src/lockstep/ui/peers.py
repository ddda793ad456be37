"""Who is at the other end of a connection on this machine: the kernel tells the user that owns its socket."""

import os
import socket
import struct
from pathlib import Path

TABLE = Path("/proc/net/tcp")


def is_own(connection: socket.socket) -> bool:
    """Whether the other end belongs to this user, or to root, who may read everything anyway.

    A port on the loopback address is open to every user of the machine; a run's record need not be. Where the
    system has no such table (it is Linux's), everybody on the machine is let in.
    """
    try:
        rows = TABLE.read_text(encoding="utf-8").splitlines()[1:]
        here, there = _written(connection.getsockname()), _written(connection.getpeername())
    except OSError:
        return not TABLE.exists()
    for row in rows:
        fields = row.split()
        if fields[1:3] == [there, here]:
            return int(fields[7]) in (os.getuid(), 0)
    return False


def _written(address: tuple[str, int]) -> str:
    """An address as the kernel writes it: the four bytes in the machine's order, then the port."""
    (number,) = struct.unpack("=I", socket.inet_aton(address[0]))
    return f"{number:08X}:{address[1]:04X}"
