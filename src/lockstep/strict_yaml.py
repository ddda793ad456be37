"""YAML as a parameter file needs it: plain values, one meaning, the line of everything, no surprises.

The value is built from the parser's events, one at a time and without recursion, so that a file made to
hurt (a million brackets, a tree of aliases) is refused at the first event that shows it. Scalars follow the
core schema of YAML 1.2: `1e-3` is a float, `yes` and `2026-11-20` are text, `010` is ten.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from lockstep.errors import ParametersError
from lockstep.files import printable

MAX_BYTES = 1_000_000
MAX_DEPTH = 20
MAX_VALUES = 10_000


KeyPath = tuple[str | int, ...]  # keys of mappings, indices into lists

_LOADER: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML was built with it
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


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
    value, lines = _build(_decoded(content, source), source)
    if value is None:
        raise ParametersError(f"{source}: found nothing (it is empty), allowed: sections such as training:")
    if not isinstance(value, dict):
        kind = "a list" if isinstance(value, list) else "a single value"
        raise ParametersError(
            f"{source}:{lines.get((), 1)}: found {kind} at the top level, allowed: sections such as training:"
        )
    return Document(value, lines, source)


def parse_value(text: str, source: str) -> Any:
    """Parse one value as it stands behind `key=`: a scalar, or a list or mapping in brackets."""
    if "\n" in text or "\r" in text:
        raise ParametersError(f"{source}: found a line break, allowed: one value on one line")
    return _build(_decoded(text, source, one_line=True), source, one_line=True)[0]


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
    if control := _CONTROL.search(text):
        where = source if one_line else f"{source}:{text.count(chr(10), 0, control.start()) + 1}"
        found = f"the control character U+{ord(control.group()):04X}"
        raise ParametersError(f"{where}: found {found}, allowed: printable text")
    return text


@dataclass
class _Frame:
    """A list or mapping that is still open; ``key`` is the mapping's key that waits for its value."""

    container: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


@dataclass
class _Builder:
    source: str
    one_line: bool
    stack: list[_Frame] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    result: Any = None
    documents: int = 0
    values: int = 0

    def take(self, event: Any) -> None:
        """Account for one event of the parser."""
        line = event.start_mark.line + 1
        if isinstance(event, yaml.DocumentStartEvent):
            self.documents += 1
            if self.documents > 1 or (self.one_line and event.explicit):
                self.refuse(line, "the start of another document (---)", "one document")
        elif isinstance(event, yaml.CollectionEndEvent):
            self.stack.pop()
        elif isinstance(event, yaml.NodeEvent):
            self.values += 1
            if self.values > MAX_VALUES:
                self.refuse(line, f"more than {MAX_VALUES:,} values", "at most that many")
            self.refuse_references(event, line)
            self.take_node(event, line)

    def refuse_references(self, event: Any, line: int) -> None:
        """Aliases make a short file long, and tags make objects: a parameter file needs neither."""
        if isinstance(event, yaml.AliasEvent):
            self.refuse(line, f"the alias *{event.anchor}", "the value itself, written out")
        if event.anchor is not None:
            self.refuse(line, f"the anchor &{event.anchor}", "the value itself")
        if event.tag is not None:
            self.refuse(line, f"the tag {event.tag}", "a plain value, without a tag")

    def take_node(self, event: Any, line: int) -> None:
        """Put a scalar, or open a list or mapping, where the frame on top expects it."""
        frame = self.stack[-1] if self.stack else None
        if frame is not None and isinstance(frame.container, dict) and frame.key is None:
            self.take_key(frame, event, line)
            return
        path = self.next_path(frame, line)
        if isinstance(event, yaml.ScalarEvent):
            self.put(frame, self.scalar(event, line, path))
            return
        if self.one_line and not event.flow_style:
            self.refuse(line, "a nested key", "a value, a [list] or a {mapping: in brackets}")
        container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.put(frame, container)
        self.stack.append(_Frame(container, path))
        if len(self.stack) > MAX_DEPTH:
            self.refuse(line, f"more than {MAX_DEPTH} levels of nesting", "at most that many")

    def take_key(self, frame: _Frame, event: Any, line: int) -> None:
        """A key of a mapping: text, and new."""
        if not isinstance(event, yaml.ScalarEvent):
            self.refuse(line, "a list or a mapping as a key", "a name as a key")
        key = self.scalar(event, line, frame.path)
        if not isinstance(key, str):
            self.refuse(line, f"the key {event.value or 'null'} ({type(key).__name__})", "a name as a key")
        path = (*frame.path, key)
        if path in self.lines:
            where = f" (line {self.lines[path]} has it already)" if not self.one_line else ""
            self.refuse(line, f"the key {dotted(path)} a second time", f"each key once{where}")
        frame.key = key
        self.lines[path] = line

    def next_path(self, frame: _Frame | None, line: int) -> KeyPath:
        """The path of the value that comes now, its line noted."""
        if frame is None:
            path: KeyPath = ()
        elif isinstance(frame.container, dict):
            return (*frame.path, frame.key or "")  # the line is the key's
        else:
            path = (*frame.path, len(frame.container))
        self.lines[path] = line
        return path

    def put(self, frame: _Frame | None, value: Any) -> None:
        """Hand a value to the container that waits for it."""
        if frame is None:
            self.result = value
        elif isinstance(frame.container, list):
            frame.container.append(value)
        else:
            frame.container[frame.key or ""] = value
            frame.key = None

    def scalar(self, event: Any, line: int, path: KeyPath) -> Any:
        """The value of a scalar: quoted ones are text, plain ones follow the core schema of YAML 1.2."""
        text: str = event.value
        if control := _CONTROL.search(text):
            self.refuse(
                line, f"the control character U+{ord(control.group()):04X} as an escape", "printable text"
            )
        if not event.implicit[0]:
            return text
        if _NULL.fullmatch(text):
            return None
        if _BOOL.fullmatch(text):
            return text[0] in "tT"
        if _INT.fullmatch(text) or _PREFIXED.fullmatch(text):
            if len(text) <= 40 and abs(number := int(text, 10 if _INT.fullmatch(text) else 0)) < 2**64:
                return number
            self.refuse(line, shortened(text), "whole numbers of at most 64 bits", path)
        if _NOT_FINITE.fullmatch(text) or (_FLOAT.fullmatch(text) and not math.isfinite(float(text))):
            self.refuse(line, shortened(text), "finite numbers", path)
        return float(text) if _FLOAT.fullmatch(text) else text

    def refuse(self, line: int, found: str, allowed: str, path: KeyPath = ()) -> None:
        """Raise the one error that all of this ends in."""
        where = self.source if self.one_line else f"{self.source}:{line}"
        key = f" {dotted(path)}:" if path else ""
        raise ParametersError(f"{where}:{key} found {printable(found)}, allowed: {allowed}")


def _build(text: str, source: str, one_line: bool = False) -> tuple[Any, dict[KeyPath, int]]:
    builder = _Builder(source, one_line)
    try:
        for event in yaml.parse(text, Loader=_LOADER):
            builder.take(event)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
        where = source if mark is None or one_line else f"{source}:{mark.line + 1}"
        problem = getattr(error, "problem", None) or getattr(error, "context", None) or "unknown problem"
        raise ParametersError(f"{where}: not valid YAML: {printable(problem)}") from None
    return builder.result, builder.lines


def dotted(path: KeyPath) -> str:
    """A path as a person writes it: training.epochs, model.hidden_sizes[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{shortened(key)}" for key in path)
    return printable(text.removeprefix(".")).replace("\n", "\\n")


def shortened(text: str, limit: int = 60) -> str:
    """Text cut to a length that a message can carry."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
