"""Signatures of a run's head with the user's own ssh key (`ssh-keygen -Y`, OpenSSH 8.2 or newer).

What is signed is one line of text, so that anybody can check it by hand: the run, its head, and the time. It
is kept in `signatures/N.json`, which a `signed` event of the history vouches for (seal.py).
"""

import json
import os
import re
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lockstep import strict_json
from lockstep.catalog import events, seal
from lockstep.catalog.manifest import SIGNATURES
from lockstep.catalog.run import Run
from lockstep.errors import LockstepError, UsageError
from lockstep.files import fsync_folder, printable, read_object, write_atomically

NAMESPACE = "lockstep"
_KEY = re.compile(r"key (SHA256:[A-Za-z0-9+/]+)")
_CALL_SECONDS = 20.0
_SIGNING_SECONDS = 300.0  # the key's passphrase may have to be typed, or its hardware touched


@dataclass(frozen=True)
class Signature:
    """A signature that was checked. ``who`` is set where an allowed_signers file vouches for the key;
    ``bad`` says why it is none; ``current``: it stands for the run's last seal."""

    number: int
    key: str | None
    who: str | None
    bad: str | None
    current: bool
    time: str

    def as_dict(self) -> dict[str, Any]:
        """The same, for JSON."""
        return {"file": f"{SIGNATURES}/{self.number}.json", **self.__dict__}


def statement(run_id: str, head: str, time: str) -> str:
    """The line that is signed."""
    return f"lockstep run {run_id} is sealed as {head} at {time}\n"


def sign(run: Run, run_id: str, head: str, key: Path) -> str:
    """Sign the head with a key, and append that to the history; returns the key's fingerprint.

    The caller holds the run's lock. Raises LockstepError with what ssh-keygen said.
    """
    time = events.utc_now()
    text = statement(run_id, head, time)
    made = _keygen(["-Y", "sign", "-n", NAMESPACE, "-f", str(key)], text, _SIGNING_SECONDS, in_terminal=True)
    if made.returncode != 0:
        raise LockstepError(f"{key} did not sign: {_said(made)}")
    signature = made.stdout
    fingerprint, bad = _intact(text, signature)
    if bad:
        raise LockstepError(f"the signature by {key} does not verify: {bad}")
    number = sum(event["event"] == "signed" for event in events.read(run)) + 1
    file = seal.signature_file(run, number)
    if not file.parent.is_dir():
        file.parent.mkdir()
        fsync_folder(run.path)
    value = {"time": time, "key": fingerprint, "statement": text, "signature": signature}
    write_atomically(file, strict_json.encode(value, indent=1) + "\n")
    event = seal.signed_line(run, run.events.read_bytes(), number)
    written = json.loads(event)
    events.append(
        run, "signed", time=time, file=written["file"], signature_sha256=written["signature_sha256"]
    )
    return str(fingerprint)


def check(run: Run, run_id: str, state: seal.State, signers: Path | None) -> list[Signature]:
    """Every signature of a run, checked against its head and, where there is one, an allowed_signers file."""
    found = []
    for number in range(1, 1000):
        file = seal.signature_file(run, number)
        if not file.is_file() or file.is_symlink():
            break
        value = read_object(file, depth=2, limit=1 << 20)
        time, signature = str(value.get("time")), str(value.get("signature"))
        heads = [head for head in state.heads if value.get("statement") == statement(run_id, head, time)]
        if not heads:
            bad = "it is of another run, or of a seal that the history does not hold"
            found.append(Signature(number, None, None, bad, False, time))
            continue
        text = str(value["statement"])
        key, reason = _intact(text, signature)
        who = None if reason or signers is None else _who(text, signature, signers, time)
        found.append(Signature(number, key, who, reason, heads[0] == state.head and not state.went_on, time))
    return found


def require_keygen() -> None:
    """Raises UsageError where there is no ssh-keygen to ask."""
    _keygen(["-Y", "check-novalidate", "-n", NAMESPACE, "-s", "/dev/null"], "", _CALL_SECONDS)


def _intact(text: str, signature: str) -> tuple[str | None, str | None]:
    """The fingerprint of the key that made it; or why it is no signature of the text."""
    with tempfile.NamedTemporaryFile("w", prefix="lockstep-sign-", encoding="utf-8") as file:
        file.write(signature)
        file.flush()
        arguments = ["-Y", "check-novalidate", "-n", NAMESPACE, "-s", file.name]
        done = _keygen(arguments, text, _CALL_SECONDS)
    found = _KEY.search(done.stdout)
    if done.returncode == 0 and found:
        return found.group(1), None
    return None, _said(done)


def _who(text: str, signature: str, signers: Path, time: str) -> str | None:
    """The name under which an allowed_signers file lists the key, for this use and that time; None for none."""
    with tempfile.NamedTemporaryFile("w", prefix="lockstep-sign-", encoding="utf-8") as file:
        file.write(signature)
        file.flush()
        digits = re.sub(r"\D", "", time)[:14]
        when = [f"-Overify-time={digits}"] if len(digits) == 14 else []
        listed = _keygen(
            ["-Y", "find-principals", *when, "-s", file.name, "-f", str(signers)], "", _CALL_SECONDS
        )
        for name in listed.stdout.splitlines() if listed.returncode == 0 else []:
            arguments = ["-Y", "verify", *when, "-n", NAMESPACE, "-s", file.name, "-f", str(signers)]
            if _keygen([*arguments, "-I", name], text, _CALL_SECONDS).returncode == 0:
                return printable(name)
    return None


def _keygen(
    arguments: list[str], text: str, seconds: float, in_terminal: bool = False
) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            ["ssh-keygen", *arguments],
            input=text,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=seconds,
            check=False,
            start_new_session=not in_terminal,  # where a passphrase is asked for, it is at this terminal
            env={**os.environ, "LC_ALL": "C", "TZ": "UTC"},
            encoding="utf-8",
        )
    except FileNotFoundError:
        raise UsageError("signatures need ssh-keygen, which is not installed (package openssh)") from None
    except subprocess.TimeoutExpired:
        raise LockstepError(f"ssh-keygen took longer than {seconds:g} s") from None


def _said(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line for line in (done.stderr + done.stdout).splitlines() if line.strip()]
    return printable(lines[-1])[:300] if lines else f"ssh-keygen ended with {done.returncode}"
