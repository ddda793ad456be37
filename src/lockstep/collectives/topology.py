"""Where ranks stand, and what their links cost: the alpha-beta-gamma model of a cluster.

A message of n bytes takes ``alpha + n * beta`` seconds on its link; adding n received bytes into a buffer
takes ``n * gamma`` seconds (Hockney 1994; Thakur, Rabenseifner and Gropp 2005).
"""

from collections.abc import Iterator
from dataclasses import dataclass

from lockstep.errors import UsageError


@dataclass(frozen=True)
class Link:
    """What one message costs between two ranks."""

    alpha_seconds: float
    beta_seconds_per_byte: float

    def seconds(self, payload_bytes: float) -> float:
        """The time that one message of so many bytes takes."""
        return self.alpha_seconds + payload_bytes * self.beta_seconds_per_byte


INSIDE = Link(alpha_seconds=2e-6, beta_seconds_per_byte=1 / 50e9)
"""Inside one machine: 2 µs, 50 GB/s. An assumption to compare algorithms by; measure your own."""

BETWEEN = Link(alpha_seconds=10e-6, beta_seconds_per_byte=1 / 12.5e9)
"""Between machines: 10 µs, 12.5 GB/s (100 Gbit/s) for each rank. An assumption, as above."""

GAMMA_SECONDS_PER_BYTE = 1 / 50e9


@dataclass(frozen=True)
class Topology:
    """``world_size`` ranks on machines of ``ranks_per_machine`` consecutive ranks; the last may hold fewer."""

    world_size: int
    ranks_per_machine: int
    inside: Link = INSIDE
    between: Link = BETWEEN
    gamma_seconds_per_byte: float = GAMMA_SECONDS_PER_BYTE

    def __post_init__(self) -> None:
        if self.world_size < 1 or self.ranks_per_machine < 1:
            raise UsageError(
                f"a topology of {self.world_size} ranks, {self.ranks_per_machine} on each machine: both must be "
                "at least 1"
            )

    @classmethod
    def one_machine(cls, world_size: int) -> "Topology":
        """All ranks on one machine."""
        return cls(world_size, world_size)

    @classmethod
    def of(
        cls,
        world_size: int,
        ranks_per_machine: int | None,
        inside: tuple[float, float],
        between: tuple[float, float],
        add_gb_per_second: float,
    ) -> "Topology":
        """From what people write down: links as (alpha in µs, GB/s); None puts all ranks on one machine."""
        near, far = (Link(alpha_us * 1e-6, 1e-9 / rate) for alpha_us, rate in (inside, between))
        return cls(world_size, ranks_per_machine or world_size, near, far, 1e-9 / add_gb_per_second)

    @property
    def machines(self) -> int:
        """How many machines there are."""
        return -(-self.world_size // self.ranks_per_machine)

    def machine_of(self, rank: int) -> int:
        """The number of the machine that a rank stands on."""
        return rank // self.ranks_per_machine

    def ranks_of(self, machine: int) -> range:
        """The ranks on a machine."""
        first = machine * self.ranks_per_machine
        return range(first, min(first + self.ranks_per_machine, self.world_size))

    def groups(self) -> Iterator[range]:
        """The ranks of each machine in turn."""
        return (self.ranks_of(machine) for machine in range(self.machines))

    def link(self, rank: int, peer: int) -> Link:
        """The link between two ranks."""
        return self.inside if self.machine_of(rank) == self.machine_of(peer) else self.between
