"""Parameters that are right one by one and do not go together: refused before anything is written or started."""

from typing import Any

from lockstep.collectives.pipeline import FIXED_STAGES
from lockstep.errors import UsageError
from lockstep.parameters import Parameters
from lockstep.transports._network import own_address

VIRTUAL_SHARDS = 8
_KEY = "distributed.strategy"


def check(wanted: Parameters) -> None:
    """Raise UsageError for the first combination that cannot work."""
    options, name = wanted.distributed.strategy.options, wanted.distributed.strategy.name
    if isinstance(transport := options.get("transport"), dict):
        _transport(transport)
    if options.get("reduction") == "invariant":
        _invariant(wanted, options)
    compressor = options.get("compressor")
    # Codes that can be added travel by any algorithm: PowerSGD's factors. All others are decoded where they arrive.
    if compressor and compressor["name"] != "powersgd" and ":" not in compressor["name"]:
        _direct(compressor["name"], options)
    if name == "pipeline":
        _pipeline(wanted, options)
    ranks = wanted.distributed.world_size
    if name == "tensor" and ranks % options["data_parallel"]:
        fitting = ", ".join(str(count) for count in range(1, ranks + 1) if ranks % count == 0)
        raise UsageError(
            f"{_KEY}.data_parallel: found {options['data_parallel']} for {ranks} ranks, allowed: {fitting}, which "
            "divide them equally"
        )
    if name == "tensor" and wanted.training.compile:
        raise UsageError(
            "training.compile: with tensor the layers are cut into tensors that know of the other ranks, which the "
            "compiler does not take; allowed with it: false"
        )
    if name in ("parameter_server", "local_sgd") and wanted.training.precision == "fp16":
        raise UsageError(
            f"training.precision: fp16 needs its loss scaled and {name} does not; allowed with it: fp32, bf16, fp64"
        )
    if name == "parameter_server" and wanted.training.ema_decay is not None:
        raise UsageError(
            "training.ema_decay: with parameter_server the weights are updated by servers, which keep no average; "
            "allowed with it: null"
        )


def _pipeline(wanted: Parameters, options: dict[str, Any]) -> None:
    fixed = FIXED_STAGES.get(options["schedule"])
    if fixed and options["stages_per_rank"] not in (None, fixed):
        raise UsageError(
            f"{_KEY}.stages_per_rank: found {options['stages_per_rank']} with schedule {options['schedule']}, allowed: "
            f"{fixed}, or null; for more, schedule: interleaved or zero_bubble"
        )
    if options["micro_batches"] and wanted.training.micro_batch_size:
        raise UsageError(
            f"training.micro_batch_size: found {wanted.training.micro_batch_size} beside {options['micro_batches']} "
            f"{_KEY}.micro_batches, which say the same; allowed: one of the two, the other null"
        )
    if wanted.training.compile:
        raise UsageError(
            "training.compile: with pipeline the parts of the model are called one by one, and not the whole that "
            "would be compiled; allowed with it: false"
        )


def _transport(transport: dict[str, Any]) -> None:
    if transport["name"] == "queue":
        raise UsageError(
            f"{_KEY}.transport: queue joins threads of one process, for tests; allowed between ranks: gloo, shm, tcp"
        )
    if transport["name"] == "tcp":
        try:
            own_address(transport["network"])
        except UsageError as error:
            raise UsageError(f"{_KEY}.transport.{error}") from None


def _invariant(wanted: Parameters, options: dict[str, Any]) -> None:
    ranks = wanted.distributed.world_size
    if ranks > VIRTUAL_SHARDS:
        raise UsageError(
            f"distributed.world_size: found {ranks}, allowed with reduction: invariant: at most {VIRTUAL_SHARDS}, the "
            "number of virtual shards that the ranks share"
        )
    if options["algorithm"] != "auto":
        raise UsageError(
            f"{_KEY}.algorithm: found {options['algorithm']}, allowed with reduction: invariant: auto. It sums in an "
            "order of its own, which no other algorithm keeps"
        )


def _direct(compressor: str, options: dict[str, Any]) -> None:
    if options["algorithm"] not in ("auto", "direct"):
        raise UsageError(
            f"{_KEY}.algorithm: found {options['algorithm']}, allowed with compressor: {compressor}: auto, direct. Its "
            "codes are exchanged directly, so that they need not be decoded on the way"
        )
