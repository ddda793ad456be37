"""What a process says of its work in its own log: where it began, each epoch, each checkpoint, its end."""

import contextlib
import os
import sys
from datetime import UTC, datetime
from typing import Any

import torch


def say(text: str) -> None:
    """A line, with the time. One that cannot be written is no reason to stop."""
    with contextlib.suppress(OSError):
        sys.stdout.write(f"{datetime.now(UTC):%Y-%m-%d %H:%M:%S} UTC  {text}\n")


def say_start(what: str, attempt: int, step: int, device: torch.device) -> None:
    """Who begins, where, and after which step."""
    threads = torch.get_num_threads()
    say(
        f"{what} begins after step {step}: attempt {attempt}, process {os.getpid()}, device {device}, "
        f"{threads} thread{'s' * (threads > 1)}, torch {torch.__version__}"
    )


def say_epoch(
    epoch: int, step: int, seconds: float, train: dict[str, Any], validation: dict[str, Any]
) -> None:
    """An epoch's end, with the means over this rank's own share of each split."""
    shares = [
        f"{name} loss {share['loss']:.6g}, accuracy {share['accuracy']:.4f} ({share['samples']} samples)"
        for name, share in (("train", train), ("validation", validation))
        if share["samples"]
    ]
    say("; ".join([f"epoch {epoch} ended with step {step} after {seconds:.2f} s", *shares]))
