"""The memory that the ranks will need, asked for before they are started; what cannot fit is refused."""

from typing import Any

from lockstep.catalog.report.values import show_bytes
from lockstep.errors import LockstepError, RunFailed
from lockstep.launchers.gather import gather
from lockstep.orchestration.free_memory import available_bytes
from lockstep.orchestration.session import Session
from lockstep.sections import Distributed

LIMIT_SECONDS = 120.0
KINDS = ("parameters", "gradients", "optimizer", "gathered", "activations")
_ADVICE = (
    "Try fewer ranks, training.micro_batch_size, training.activation_checkpointing=true, a smaller model, or a "
    "strategy that shares the weights out (distributed.strategy=fsdp)"
)
_WORDS = {"parameters": "weights", "optimizer": "optimizer state", "gathered": "gathered of other ranks"}


def make(session: Session, distributed: Distributed) -> dict[str, Any]:
    """The ``memory`` part of the plan; RunFailed where all ranks together need more than there is."""
    if distributed.start_method == "spawn":
        # Every process of this method imports torch anew, and the forecast would cost as much as a rank's start.
        return {"absent": "start_method is spawn"}
    server = session.ranks_server(distributed.start_method)
    order = {"run": str(session.run.path)}
    try:
        found: dict[str, Any] = gather("lockstep.engine.forecast:main", order, 1, LIMIT_SECONDS, server)[0]
    except LockstepError as error:
        if server.failure is not None:  # nor will it start any rank
            raise
        # its process was killed, perhaps for want of memory: the ranks will tell
        return {"absent": str(error)}
    if "ranks" in found:
        found["available_bytes"] = available_bytes()
        refuse_what_cannot_fit(found, bool(distributed.strategy.options.get("cpu_offload")))
    return found


def refuse_what_cannot_fit(found: dict[str, Any], offloaded: bool = False) -> None:
    """Each rank on its GPU where it has one, and all ranks together in the memory of this machine.

    ``offloaded``: weights, gradients and optimizer state stand in the host's memory, and only the passes on the GPU.
    """
    ranks, on_device = found["ranks"], found.get("device_free_bytes") or []
    there = {"activations", "gathered"} if offloaded else set(KINDS)
    for number, free in enumerate(on_device):
        needed = sum(ranks[number][kind] for kind in there)
        if needed > free:
            raise RunFailed(
                f"rank {number} needs about {show_bytes(needed)} and {show_bytes(free)} are free on GPU {number}: "
                f"{in_words(ranks[number])}. {_ADVICE}",
                "out of memory",
            )
    here = [
        sum(count for kind, count in rank.items() if not on_device or kind not in there) for rank in ranks
    ]
    available = found["available_bytes"]
    if available is None or sum(here) <= available:
        return
    largest = max(ranks, key=lambda rank: sum(rank.values()))
    raise RunFailed(
        f"the {len(ranks)} ranks need about {show_bytes(sum(here))} and {show_bytes(available)} are free: "
        f"{in_words(largest)} for one of them. {_ADVICE}",
        "out of memory",
    )


def in_words(rank: dict[str, int]) -> str:
    """One rank's parts, the largest first."""
    parts = sorted(KINDS, key=lambda kind: -rank[kind])
    return ", ".join(f"{_WORDS.get(kind, kind)} {show_bytes(rank[kind])}" for kind in parts if rank[kind])
