"""Which address of this machine peers may reach. No torch: the pipeline asks before it starts anything."""

import ipaddress
import socket

from lockstep.errors import UsageError


def own_address(network: str) -> str:
    """This machine's address in a network. Raises UsageError where it has none."""
    try:
        allowed = ipaddress.ip_network(network)
    except ValueError as error:
        raise UsageError(
            f"network: {error}; 127.0.0.0/8 is this machine alone, 10.0.0.0/24 a private one"
        ) from None
    kind = socket.AF_INET if allowed.version == 4 else socket.AF_INET6
    with socket.socket(kind, socket.SOCK_DGRAM) as probe:
        try:
            probe.connect(
                (str(allowed[min(1, allowed.num_addresses - 1)]), 9)
            )  # sends nothing: it asks for a route
            found = str(probe.getsockname()[0])
        except OSError as error:
            raise UsageError(f"network: no route to {network}: {error}") from None
    if ipaddress.ip_address(found) not in allowed:
        raise UsageError(f"network: this machine's address is {found}, which is not in {network}")
    return found
