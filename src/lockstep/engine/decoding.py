"""A rank's own processes that decode images, ahead of when they are needed, into memory that both see."""

import contextlib
import json
import mmap
import os
import selectors
import subprocess
import sys
from collections.abc import Hashable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import lockstep.datasets
from lockstep.errors import RunFailed
from lockstep.linux import anonymous_file

Task = tuple[str, str, list[float] | None]  # path, SHA-256, crop
MOST_SLOTS = (
    2048  # answers to so many fit into a pipe, so that nobody who writes ever waits for one who writes
)
# By its path: as a module of its package it would bring numpy along, and start in twice the time.
PROGRAM = Path(lockstep.datasets.__file__).with_name("_decode.py")
LOOK_SECONDS = 0.5  # between looks at whether the processes still live


@dataclass
class Ticket:
    """Images that were asked for, each in a slot of the shared memory."""

    slots: list[int]
    missing: set[int] = field(default_factory=set)


class Decoder:
    """Started with the first task; ended by ``close``, or by the kernel when this process dies."""

    def __init__(self, folder: str, size: int, resize: int, workers: int, rows: int) -> None:
        self.folder, self.size, self.resize = folder, size, resize
        self.workers = workers
        self.capacity = min(max(3 * rows, 16), MOST_SLOTS)
        self._free = list(range(self.capacity))
        self._owner: dict[int, Ticket] = {}
        self._waiting: dict[Hashable, Ticket] = {}
        self._processes: list[subprocess.Popen[bytes]] = []
        self._load: list[set[int]] = [set() for _ in range(workers)]
        self._answers: list[bytes] = [b""] * workers
        self._selector = selectors.DefaultSelector()

    def expect(self, key: Hashable, tasks: Sequence[Task]) -> None:
        """Begin to decode what will be taken under this key; not at all where there is no room for it."""
        if key not in self._waiting and 0 < len(tasks) <= len(self._free):
            self._waiting[key] = self._submit(tasks)

    def take(self, key: Hashable, tasks: Sequence[Task]) -> Tensor:
        """The images, (tasks, size, size, 3) in bytes."""
        ticket = self._waiting.pop(key, None)
        if ticket is not None:
            return self._collect(ticket)
        pieces = []
        for start in range(0, len(tasks), self.capacity):
            piece = tasks[start : start + self.capacity]
            while len(self._free) < len(piece):  # what was expected and never came
                self._collect(self._waiting.pop(next(iter(self._waiting))))
            pieces.append(self._collect(self._submit(piece)))
        return torch.cat(pieces) if len(pieces) > 1 else pieces[0]

    def close(self) -> None:
        """End the processes."""
        self._selector.close()
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()  # type: ignore[union-attr]
        self._processes = []

    def _start(self) -> None:
        """Fresh programs, not forks: this process has threads and, maybe, a process group."""
        image_bytes = 3 * self.size * self.size
        descriptor = anonymous_file("lockstep-images")
        os.ftruncate(descriptor, self.capacity * image_bytes)
        memory = mmap.mmap(descriptor, self.capacity * image_bytes)
        self._pixels = torch.frombuffer(memory, dtype=torch.uint8).view(-1, self.size, self.size, 3)
        words = [str(word) for word in (descriptor, os.getpid(), self.size, self.resize, self.folder)]
        for number in range(self.workers):
            process = subprocess.Popen(
                [sys.executable, "-P", str(PROGRAM), *words],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                pass_fds=(descriptor,),
            )
            assert process.stdout is not None
            self._selector.register(process.stdout, selectors.EVENT_READ, number)
            self._processes.append(process)
        os.close(descriptor)

    def _submit(self, tasks: Sequence[Task]) -> Ticket:
        """Deal tasks out, each to the process that has least to do."""
        if not self._processes:
            self._start()
        ticket = Ticket([self._free.pop() for _ in tasks])
        ticket.missing = set(ticket.slots)
        lines: list[list[str]] = [[] for _ in self._processes]
        for slot, task in zip(ticket.slots, tasks, strict=True):
            number = min(range(self.workers), key=lambda one: len(self._load[one]))
            self._load[number].add(slot)
            self._owner[slot] = ticket
            lines[number].append(json.dumps([slot, *task]) + "\n")
        for process, own in zip(self._processes, lines, strict=True):
            if own:
                assert process.stdin is not None
                with contextlib.suppress(BrokenPipeError):  # its death is reported by the one who waits
                    process.stdin.write("".join(own).encode())
                    process.stdin.flush()
        return ticket

    def _collect(self, ticket: Ticket) -> Tensor:
        """Wait for a ticket's images, copy them, and give the slots back."""
        while ticket.missing:
            for ready, _ in self._selector.select(LOOK_SECONDS):
                self._hear(ready.data, os.read(ready.fd, 1 << 16))
        images = self._pixels.index_select(0, torch.tensor(ticket.slots))
        self._free += ticket.slots
        return images

    def _hear(self, number: int, data: bytes) -> None:
        if not data:
            code = self._processes[number].wait()
            how = f"killed by signal {-code}" if code < 0 else f"with exit status {code}"
            raise RunFailed(f"a process that decodes images ended ({how}); see this rank's log")
        *lines, self._answers[number] = (self._answers[number] + data).split(b"\n")
        for line in lines:
            answer: dict[str, Any] = json.loads(line)
            if "error" in answer:
                raise RunFailed(f"an image cannot be used: {answer['error']}")
            slot = answer["slot"]
            self._load[number].discard(slot)
            self._owner.pop(slot).missing.discard(slot)
