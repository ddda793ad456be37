"""One synchronous step with parameter servers, as a schedule: gradients go to the servers, weights come back.

Not an all-reduce of its members, so ``make`` does not offer it: the workers 0 to N - 1 contribute, the servers
N to N + S - 1 begin at zero, hold a chunk each, and put their update between the two rounds. Li et al., OSDI 2014.

Rounds: 2. Sent by a worker: the buffer once; by a server: N / S of it (N buffers in all, whatever S is).
"""

from lockstep.collectives.schedule import Kind, Rounds, Schedule, Transfer
from lockstep.errors import UsageError


def schedule(rank: int, workers: int, servers: int) -> Schedule:
    """What one process does: ``rank`` counts the servers after the workers. Raises UsageError."""
    if workers < 1 or servers < 1:
        raise UsageError(f"{workers} workers and {servers} servers: at least one of each is needed")

    def compute(number: int) -> tuple[Transfer, ...]:
        """Round 0 pushes gradients, round 1 pulls weights."""
        if rank < workers:
            kind: Kind = "send" if number == 0 else "receive"
            return tuple(Transfer(workers + chunk, range(chunk, chunk + 1), kind) for chunk in range(servers))
        own = range(rank - workers, rank - workers + 1)
        return tuple(
            Transfer(worker, own, "receive_reduce" if number == 0 else "send") for worker in range(workers)
        )

    return Schedule(
        "step", "parameter_server", workers + servers, rank, servers, Rounds(2, compute), servers=servers
    )
