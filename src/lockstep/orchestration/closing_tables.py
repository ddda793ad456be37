"""The tables that a run ends with: how well its models do, and what each rank spent its time on."""

from typing import Any

from lockstep.catalog.report.values import show_bytes
from lockstep.catalog.text import Table
from lockstep.orchestration.meter import duration

QUALITY = ("", "step", "train acc", "loss", "validation acc", "loss", "test acc", "loss")
QUALITY_DROPPABLE = (3, 2, 1, 7, 6)  # validation is what models are compared by
SPEED = ("", "samples", "samples/s", "compute", "waiting", "data", "cpu", "peak memory")
SPEED_DROPPABLE = (6, 5, 7, 1)


def quality(evaluation: dict[str, Any]) -> Table:
    """Accuracy and loss of the judged models, by split."""
    rows = []
    for name in ("final", "best", "ema"):
        judged = evaluation.get(name)
        if judged is None:
            continue
        cells = []
        for split in ("train", "validation", "test"):
            numbers = judged[split]
            cells += [_four(numbers["accuracy"]), _four(numbers["loss"])] if numbers else ["-", "-"]
        rows.append((name, f"{judged['step']:,}", *cells))
    return Table(rows, QUALITY, frozenset(range(1, len(QUALITY))), QUALITY_DROPPABLE)


def speed(results: dict[str, Any]) -> Table:
    """Samples, times and memory of each rank, and of all together."""
    rows = []
    for rank in results["ranks"]:
        memory = rank["peak_rss_bytes"]
        rows.append(
            (
                f"rank {rank['rank']}",
                f"{rank['samples']:,}",
                f"{rank['samples_per_second']:,.0f}" if rank["samples_per_second"] else "-",
                *(
                    duration(rank[field])
                    for field in ("compute_seconds", "sync_seconds", "data_seconds", "cpu_seconds")
                ),
                show_bytes(memory) if memory else "-",
            )
        )
    training = results["training"]
    rate, waiting = training["samples_per_second"], training["waiting_share"]
    together = (f"{rate:,.0f}" if rate else "-", "", f"{waiting:.0%}" if waiting is not None else "-")
    rows.append(("together", f"{training['samples']:,}", *together, "", "", ""))
    return Table(rows, SPEED, frozenset(range(1, len(SPEED))), SPEED_DROPPABLE)


def _four(value: float | str) -> str:
    """A number with four decimals; the name of one that is not finite as it stands."""
    return value if isinstance(value, str) else f"{value:.4f}"
