"""YAML as a parameter file needs it: plain values, one meaning, the line of everything, no surprises.

The value is built from the parser's events, one at a time and without recursion, so that a file made to
hurt (a million brackets, a tree of aliases) is refused at the first event that shows it. Scalars follow the
core schema of YAML 1.2: `1e-3` is a float, `yes` and `2026-11-20` are text, `010` is ten.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import yaml

from lockstep.errors import ParametersError
from lockstep.files import printable
from lockstep.yaml_builder import CONTROL, Builder, KeyPath, dotted, resolved, shortened

__all__ = ["Document", "KeyPath", "dotted", "parse", "parse_value", "read", "shortened"]

MAX_BYTES = 1_000_000
LINE_BREAKS = re.compile(r"[\n\r\x85\u2028\u2029]")
# How a value begins, or what it holds, that has a meaning of its own in YAML and is no plain text there.
_SYNTAX = {
    "an alias": re.compile(r"\*"),
    "an anchor": re.compile(r"&"),
    "a tag": re.compile(r"!"),
    "a block of text": re.compile(r"[|>]"),
    "the start of another document (---)": re.compile(r"---([ \t]|$)"),
    "a nested key": re.compile(r"\?([ \t]|$)|.*:([ \t]|$)"),
    "a nested list": re.compile(r"-([ \t]|$)"),
}

IN_QUOTES = "a text that begins like this, or has ` #` in it, stands in quotes of its own: '\"...\"'"
_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it


@dataclass(frozen=True)
class Document:
    """What a file says, and where: ``lines[("training", "epochs")]`` is the line of that key, from 1."""

    value: dict[str, Any]
    lines: dict[KeyPath, int]
    source: str


def read(path: Path) -> Document:
    """Read a file. Raises ParametersError for whatever is not one plain mapping in strict YAML."""
    source = printable(str(path)).replace("\n", "\\n")
    try:
        if not path.exists():
            raise ParametersError(f"{source}: there is no such file")
        if not path.is_file():
            raise ParametersError(f"{source}: found something that is not a file, allowed: a YAML file")
        with path.open("rb") as file:
            content = file.read(MAX_BYTES + 1)
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        reason = getattr(error, "strerror", None) or error
        raise ParametersError(f"{source}: cannot be read: {reason}") from None
    return parse(content, source)


def parse(content: bytes | str, source: str) -> Document:
    """Parse a whole document, whose top level must be a mapping; ``source`` is its name in messages."""
    builder = _build(_decoded(content, source), source)
    value, lines = builder.result, builder.lines
    if value is None:
        raise ParametersError(f"{source}: found nothing (it is empty), allowed: sections such as training:")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ParametersError(
            f"{source}:{lines.get((), 1)}: found {kind} at the top level, allowed: sections such as training:"
        )
    return Document(value, lines, source)


def parse_value(text: str, source: str) -> Any:
    """Parse one value as it stands behind `key=`: a scalar, or a list or mapping in brackets.

    What is neither quoted nor in brackets is a number, a boolean, null, or the text exactly as it was typed:
    ` #` begins no comment here. What YAML would cut, change or take for something else is refused.
    """
    if found := LINE_BREAKS.search(text):
        what = "a line break" if found.group() in "\r\n" else f"the line break U+{ord(found.group()):04X}"
        raise ParametersError(f"{source}: found {what}, allowed: one value on one line")
    bare = _decoded(text, source, one_line=True).strip(" \t")
    if bare.startswith(("[", "{", "'", '"')):
        builder = _build(bare, source, one_line=True)
        if extra := builder.unaccounted(bare):
            _refuse_syntax(source, f"{shortened(extra)!r}, which is no part of the value", bare)
        return builder.result
    for what, pattern in _SYNTAX.items():
        if pattern.match(bare):
            shown = f"the alias {shortened(bare)}" if what == "an alias" else what
            _refuse_syntax(source, shown, bare)
    value = resolved(bare, lambda found, allowed: _refuse_syntax(source, found, bare, allowed))
    return text if isinstance(value, str) or (text and not bare) else value


def _refuse_syntax(source: str, found: str, text: str, allowed: str = "") -> NoReturn:
    quoted = (
        "..." if re.search(r"[\\'\"]", text) else shortened(text)
    )  # those would need an escape of their own
    allowed = allowed or f"one plain value, or the text in quotes of its own: '\"{quoted}\"'"
    raise ParametersError(f"{source}: found {printable(found)}, allowed: {printable(allowed)}")


def _decoded(content: bytes | str, source: str, one_line: bool = False) -> str:
    if len(content) > MAX_BYTES:
        raise ParametersError(f"{source}: found more than {MAX_BYTES:,} bytes, allowed: at most that many")
    if isinstance(content, str):
        text = content
    else:
        try:
            text = content.decode("utf-8-sig")
        except UnicodeDecodeError as error:
            line = content.count(b"\n", 0, error.start) + 1
            found = f"the byte 0x{content[error.start]:02x}, which is not UTF-8"
            raise ParametersError(f"{source}:{line}: found {found}, allowed: text in UTF-8") from None
    if control := CONTROL.search(text):
        where = source if one_line else f"{source}:{text.count(chr(10), 0, control.start()) + 1}"
        number = ord(control.group())
        found = f"the control character U+{number:04X}"
        if 0xDC80 <= number <= 0xDCFF:  # how Python hands on a byte of the command line that it cannot decode
            found = f"the byte 0x{number - 0xDC00:02x}, which is not UTF-8"
        raise ParametersError(f"{where}: found {found}, allowed: printable text")
    return text


def _build(text: str, source: str, one_line: bool = False) -> Builder:
    builder = Builder(source, one_line)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = source if mark is None or one_line else f"{source}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or "unknown problem"
        advice = f"; {IN_QUOTES}" if one_line else ""
        raise ParametersError(f"{where}: not valid YAML: {printable(problem)}{advice}") from None
    return builder
