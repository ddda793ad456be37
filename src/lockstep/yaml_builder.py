"""From the events of a YAML parser to plain values, one event at a time; ``strict_yaml`` reads with it.

There is no recursion, so that a file made to hurt (a million brackets, a tree of aliases) is refused at the first
event that shows it. Scalars follow the core schema of YAML 1.2.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NoReturn

import yaml

from lockstep.errors import ParametersError
from lockstep.files import printable

MAX_DEPTH = 20
MAX_VALUES = 10_000

KeyPath = tuple[str | int, ...]  # keys of mappings, indices into lists

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x84\x86-\x9f\ud800-\udfff\ufffe\uffff]")
_NULL = re.compile(r"null|Null|NULL|~|")
_BOOL = re.compile(r"true|True|TRUE|false|False|FALSE")
_INT = re.compile(r"[-+]?[0-9]+")
_PREFIXED = re.compile(r"0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?")
_BETWEEN = set("[]{},: \t")  # what may stand between the scalars of a value in brackets
_NOT_FINITE = re.compile(r"[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")


@dataclass
class Frame:
    """A list or mapping that is still open; ``key`` is the mapping's key that waits for its value."""

    container: dict[str, Any] | list[Any]
    path: KeyPath
    key: str | None = None


@dataclass
class Builder:
    """Builds one value; ``one_line`` is the stricter reading of a value that was typed behind `key=`."""

    source: str
    one_line: bool
    stack: list[Frame] = field(default_factory=list)
    lines: dict[KeyPath, int] = field(default_factory=dict)
    result: Any = None
    # Where scalars stand in the text, in characters, and what plain ones (neither '' nor "") are taken for.
    spans: list[tuple[int, int, str | None]] = field(default_factory=list)
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
        if self.one_line and (not event.flow_style or event.start_mark.index == event.end_mark.index):
            self.refuse(line, "a nested key", "a value, a [list] or a {mapping: in brackets}")
        container: dict[str, Any] | list[Any] = {} if isinstance(event, yaml.MappingStartEvent) else []
        self.put(frame, container)
        self.stack.append(Frame(container, path))
        if len(self.stack) > MAX_DEPTH:
            self.refuse(line, f"more than {MAX_DEPTH} levels of nesting", "at most that many")

    def take_key(self, frame: Frame, event: Any, line: int) -> None:
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

    def next_path(self, frame: Frame | None, line: int) -> KeyPath:
        """The path of the value that comes now, its line noted."""
        if frame is None:
            path: KeyPath = ()
        elif isinstance(frame.container, dict):
            return (*frame.path, frame.key or "")  # the line is the key's
        else:
            path = (*frame.path, len(frame.container))
        self.lines[path] = line
        return path

    def put(self, frame: Frame | None, value: Any) -> None:
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
        start, end = event.start_mark.index, event.end_mark.index
        if self.one_line and start == end:  # {epochs:2} is for YAML a key without a value
            self.refuse(
                line,
                f"the key {dotted(path[-1:])} without a value",
                "key: value, with a space after the colon",
            )
        self.spans.append((start, end, None if event.style else text))
        if control := CONTROL.search(text):
            self.refuse(
                line, f"the control character U+{ord(control.group()):04X} as an escape", "printable text"
            )
        if not event.implicit[0]:
            return text
        return resolved(text, lambda found, allowed: self.refuse(line, found, allowed, path))

    def unaccounted(self, text: str) -> str:
        """The first part of a value in brackets or quotes that YAML would drop or change; "" if none."""
        position = 0
        for start, end, plain in self.spans:
            if not set(text[position:start]) <= _BETWEEN:
                return text[position:start].strip(" \t")
            if plain is not None and text[start:end] != plain:
                return text[start:end]
            position = end
        return "" if set(text[position:]) <= _BETWEEN else text[position:].lstrip(" \t]},")

    def refuse(self, line: int, found: str, allowed: str, path: KeyPath = ()) -> NoReturn:
        """Raise the one error that all of this ends in."""
        where = self.source if self.one_line else f"{self.source}:{line}"
        key = f" {dotted(path)}:" if path else ""
        raise ParametersError(f"{where}:{key} found {printable(found)}, allowed: {allowed}")


def resolved(text: str, refuse: Callable[[str, str], NoReturn]) -> Any:
    """What a plain scalar means; ``refuse(found, allowed)`` is called for a number that cannot be held."""
    if _NULL.fullmatch(text):
        return None
    if _BOOL.fullmatch(text):
        return text[0] in "tT"
    if _INT.fullmatch(text) or _PREFIXED.fullmatch(text):
        if len(text) <= 40 and abs(whole := int(text, 10 if _INT.fullmatch(text) else 0)) < 2**64:
            return whole
        refuse(shortened(text), "whole numbers of at most 64 bits")
    if _NOT_FINITE.fullmatch(text):
        refuse(shortened(text), "finite numbers")
    if not _FLOAT.fullmatch(text):
        return text
    number = float(text)
    if not math.isfinite(number):
        refuse(shortened(text), "finite numbers")
    if number == 0 and re.search("[1-9]", re.split("[eE]", text)[0]):
        refuse(shortened(text), f"0, or numbers of at least {math.ulp(0.0)} in size")
    return number


def dotted(path: KeyPath) -> str:
    """A path as a person writes it: training.epochs, model.hidden_sizes[0]."""
    text = "".join(f"[{key}]" if isinstance(key, int) else f".{shortened(key)}" for key in path)
    return printable(text.removeprefix(".")).replace("\n", "\\n")


def shortened(text: str, limit: int = 60) -> str:
    """Text cut to a length that a message can carry."""
    return text if len(text) <= limit else f"{text[: limit - 3]}..."
