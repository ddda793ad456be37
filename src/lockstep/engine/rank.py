"""One launched process: `main(index, run folder, attempt)` is all that crosses the boundary."""

import contextlib
import faulthandler
import json
import os
import shutil
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from lockstep import full_disk, plugins
from lockstep.board import Board
from lockstep.catalog import imports
from lockstep.catalog.run import Run
from lockstep.engine import caveats, lazy_dynamo, refusals, rehearsal
from lockstep.engine.activations import drop_activations
from lockstep.engine.advice import errors_in_words
from lockstep.engine.batches import Batches
from lockstep.engine.device import HOST, OnDevice, choose, peak_bytes, placed
from lockstep.engine.divergence import Watch
from lockstep.engine.features import open_splits
from lockstep.engine.fitting import check_model, load_weights
from lockstep.engine.job import Job
from lockstep.engine.log import say, say_start
from lockstep.engine.loop import train
from lockstep.engine.metrics import Metrics, fingerprints, peak_rss_bytes
from lockstep.engine.optimizers import make_optimizer
from lockstep.engine.precision import PRECISIONS, take_in
from lockstep.engine.restore import export, restore, warn
from lockstep.errors import LockstepError, RunFailed
from lockstep.files import read_json, write_json
from lockstep.linux import die_with_parent
from lockstep.parameters import Parameters, Training, read
from lockstep.strategies._ema import aliases
from lockstep.strategies._module_state import seed_all
from lockstep.strategies._observed import Observed
from lockstep.strategies._slices import NOTHING_TO_TRAIN
from lockstep.strategies.base import Group, Strategy, key
from lockstep.transports.base import TransportError

LONGEST_WORDS = 65_536  # bytes


def main(index: int, run_path: str, attempt: int, parent_pid: int) -> None:
    """Train as rank ``index``, or serve where it is beyond the ranks.

    Whatever goes wrong is left in a file for the launcher; the exit status is 1.
    """
    run = Run(Path(run_path))
    if index >= read_json(run.plan)["world_size"]:
        from lockstep.engine import serving  # which needs what is here

        serving.main(index, run, attempt, parent_pid)
        return
    with launched(run, index, run.rank_log(index), parent_pid), Board(run.live / "board", index) as board:
        parameters = read(run.parameters, [])
        plan = read_json(run.plan)
        torch.set_num_threads(plan["threads_per_rank"])
        work(run, parameters, plan, index, attempt, board)


@contextlib.contextmanager
def launched(run: Run, index: int, log: Path, parent_pid: int) -> Iterator[None]:
    """Tie this process to its parent, send all its output to its log, and leave a word where it fails."""
    die_with_parent(parent_pid)
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # they reach the launcher as well, which asks the ranks to stop
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(descriptor, stream)  # the descriptors, so that native code's output is caught as well
    os.close(descriptor)
    sys.stdout = os.fdopen(1, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")
    sys.stderr = os.fdopen(2, "w", buffering=1, closefd=False, encoding="utf-8", errors="backslashreplace")
    lazy_dynamo.install()
    faulthandler.enable()
    faulthandler.register(signal.SIGUSR1, all_threads=True)  # the launcher asks where a hanging rank stands
    words = -1
    try:
        words = _room_for_words(run, index)
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):  # its log may be on the disk that is full
            traceback.print_exc()
        _leave_word(run, index, words, error)
        os._exit(1)  # at once: an orderly exit would wait for peers that wait for this rank
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # everything is written; tearing down the interpreter would take 0.2 s and can hang in gloo


def _room_for_words(run: Run, index: int) -> int:
    """A file with its blocks taken already, so that a full disk can still be reported."""
    descriptor = os.open(
        run.live / f"words-{index}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600
    )
    os.posix_fallocate(descriptor, 0, LONGEST_WORDS)
    return descriptor


def _leave_word(run: Run, index: int, descriptor: int, error: BaseException) -> None:
    error = full_disk.explained(error) or error
    expected = isinstance(error, LockstepError)
    message = str(error) if expected else f"{type(error).__name__}: {error}"
    word = {
        "rank": index,
        "time": time.monotonic(),
        "cause": getattr(error, "cause", "exception"),
        "message": _middle_out(message, LONGEST_WORDS // 8),
        "expected": expected,
        "echo": isinstance(error, TransportError) and error.is_echo,
        "errno": getattr(error, "errno", None),
        "traceback": _middle_out(traceback.format_exc(), LONGEST_WORDS // 4),
    }
    content = json.dumps(word).encode()
    with contextlib.suppress(OSError):
        os.pwrite(descriptor, content, 0)
        os.ftruncate(descriptor, len(content))
        (run.live / f"words-{index}").rename(run.live / f"error-{index}.json")


def _middle_out(text: str, longest: int) -> str:
    """The beginning and the end of a text that is too long."""
    half = longest // 2
    return text if len(text) <= longest else f"{text[:half]}\n[...]\n{text[-half:]}"


def work(
    run: Run, parameters: Parameters, plan: dict[str, Any], index: int, attempt: int, board: Board
) -> None:
    """Set up, train, and close in the order that leaves nothing half done."""
    options = parameters.distributed
    metrics = Metrics(run.metrics_file(index, attempt))
    group = Group(index, options.world_size, run.live / f"rendezvous-{attempt}", options.timeout_seconds)
    strategy: Strategy = plugins.load("strategies", options.strategy.name)(group, **options.strategy.options)
    precision = PRECISIONS[parameters.training.precision]
    splits = open_splits(run.data, ("train", "validation"), parameters, precision)
    training, device = parameters.training, choose(plan, index, parameters.training)
    batches = Batches(*splits["train"], parameters.seed, training.global_batch_size, strategy.shard())
    if device != HOST or training.channels_last:
        batches = OnDevice(batches, device, training.channels_last)
    with errors_in_words(f"on rank {index}"):
        compared = build_model(run, parameters, strategy, batches, device)
        if plan.get("check_only"):
            if index == 0:
                write_json(run.live / "compared.json", compared)
                warn(run, *caveats.of(strategy))
            metrics.close()
            board.enter("done")
            strategy.close()
            return
        job = Job(
            run=run,
            parameters=parameters,
            strategy=strategy,
            batches=batches,
            validation=splits["validation"],
            board=board,
            metrics=metrics,
            watch=Watch(run, board, attempt),
            steps=plan["steps"],
            rank=index,
        )
        step = restore(job)
        imports.note(run, index)
        started = time.monotonic()
        note_start(job, step, started, attempt, compared)
        say_start(f"rank {index} of {options.world_size} ({options.strategy.name})", attempt, step, device)
        step = train(job, step)
    strategy.total(torch.zeros(1))  # every rank has posted its last fingerprint when this returns
    job.watch.finish()
    metrics.write(
        "end",
        step=step,
        seconds=time.monotonic() - started,
        cpu_seconds=time.process_time(),
        peak_rss_bytes=peak_rss_bytes(),
        held_bytes=job.held,
        peak_device_bytes=peak_bytes(device),
    )
    if index == 0 and step >= job.steps and not strategy.sharded:
        export(job, step)
    imports.note(run, index, ended=True)
    metrics.close()
    ending = "training is done" if step >= job.steps else f"stopped of {job.steps}, as it was asked to"
    say(f"ended after step {step}: {ending}; {time.monotonic() - started:.1f} s of training")
    board.enter("done")
    strategy.close()


def note_start(job: Job, step: int, started: float, attempt: int, compared: dict[str, Any]) -> None:
    """Where this attempt begins, on the board and in the metrics."""
    board, index = job.board, job.rank
    job.metrics.write(
        "start",
        attempt=attempt,
        rank=index,
        pid=os.getpid(),
        step=step,
        startup_seconds=started - board.number(index, "launched"),
        threads=torch.get_num_threads(),
        exact=job.strategy.exact,
        strategy=job.strategy.describe(),
        compared_with_model=compared,
        parameter_digests=fingerprints(job.strategy.fingerprinted()),
    )
    board.write("epoch", step // job.batches.steps_per_epoch)
    board.write("step", step)
    board.write("start", step)
    board.write("first_step", started)


def build_model(
    run: Run, parameters: Parameters, strategy: Strategy, batches: Batches, device: torch.device = HOST
) -> dict[str, Any]:
    """The model by its name, placed, settled, and back at its initial state; then the optimizer.

    Returns what `rehearsal.rehearse` compared.
    """
    module = placed(make_module(run, parameters, strategy.notes), device, parameters.training)
    if not any(parameter.requires_grad for parameter in module.parameters()):
        raise RunFailed(NOTHING_TO_TRAIN)
    strategy.passes.device = device.type
    strategy.passes.find_generators(module)
    classes = len(read_json(run.data / "data.json")["classes"])
    strategy.reads = check_model(module, batches(0), parameters, classes)
    names = [name for name, parameter in module.named_parameters()]
    initial = rehearsal.weights_print(module)
    strategy.observed = Observed.of_record(read_json(run.plan).get("model", {}))
    refusals.refuse_other_constants(module, strategy.observed.constants)
    refusals.refuse_model(strategy, parameters.distributed.strategy.name)
    strategy.aliases = aliases(module)
    prepare_module(module, parameters.training)
    strategy.place(module)
    strategy.max_grad_norm = parameters.training.max_grad_norm
    strategy.passes.choose(parameters.training.precision, parameters.training.micro_batch_size)
    strategy.ema_decay = parameters.training.ema_decay
    refuse_what_it_cannot(strategy, parameters.distributed.strategy.name)
    strategy.settle(batches(0))
    compared = {"absent": "a compiled model would be compiled again for the shapes of a few rows"}
    if not parameters.training.compile:
        reference = rehearsal.reference_of(run)
        precision = parameters.training.precision
        compared = rehearsal.rehearse(strategy, batches, reference, initial, names, precision)
    strategy.optimizer = make_optimizer(parameters.training, strategy.optimized())
    return compared


def refuse_what_it_cannot(strategy: Strategy, name: str) -> None:
    """Training options that a strategy's way of working has no place for."""
    if strategy.passes.loss_scale.on and not strategy.scales_loss:
        raise RunFailed(
            f"training.precision: fp16 needs its loss scaled and {name} does not; allowed with it: fp32, bf16, fp64"
        )
    if strategy.ema_decay is not None and not strategy.updates_weights:
        raise RunFailed(
            f"training.ema_decay: with {name} the weights are updated by servers, which keep no average; allowed "
            "with it: null"
        )


def prepare_module(module: torch.nn.Module, training: Training) -> None:
    """What the parameters ask of the model itself, in place: names of parameters stay as they are."""
    if training.activation_checkpointing:
        drop_activations(module)
    if training.compile:
        if not (shutil.which("g++") or shutil.which("clang++")) and not torch.cuda.is_available():
            raise RunFailed(
                "training.compile: torch.compile needs a C++ compiler and found neither g++ nor clang++; install one, "
                "or set it to false"
            )
        module.compile()
        say("the model is compiled as it is first used")


def make_module(run: Run, parameters: Parameters, notes: list[str] | None = None) -> torch.nn.Module:
    """The model in its initial state, which depends on the seed alone; ``notes`` gets what is to be said of it."""
    data = read_json(run.data / "data.json")
    seed_all(key(parameters.seed, "model"))
    function = plugins.load("models", parameters.model.name)
    module = function(tuple(data["input_shape"]), len(data["classes"]), **parameters.model.options)
    if not isinstance(module, torch.nn.Module):
        raise RunFailed(
            f"model.name: {parameters.model.name} returned {type(module).__name__}, not a torch.nn.Module"
        )
    found = take_in(module, PRECISIONS[parameters.training.precision])
    if notes is not None:
        notes += found
    if parameters.model.weights is not None:
        load_weights(module, run.path, parameters.model.weights)
    return module
