"""A comparison of two runs in words and tables, for a terminal. Recorded text is made printable here."""

from collections.abc import Iterator
from typing import Any

from lockstep.catalog.report.values import DASH, counted, number, show_bytes
from lockstep.catalog.source_files import may_be_read
from lockstep.catalog.text import Table, cell
from lockstep.files import printable

Block = tuple[str, Table | list[str]]
MOST_ROWS = 40
WIDEST_VALUE = 44
DIFF_LINES = 200
LONGEST_LINE = 240  # characters of a line of code
MOST_ULPS = 100_000  # beyond it the number says nothing


def blocks(found: dict[str, Any], diff_lines: int = DIFF_LINES) -> list[Block]:
    """Headings with what stands below them."""
    a, b = (cell(found[side]["run_id"], 64) for side in "ab")
    shown: list[Block] = [("", [f"A  {a}", f"B  {b}"])]
    for heading, key in (
        ("Parameters", "parameters"),
        ("Environment", "environment"),
        ("Data", "data"),
        ("Results", "metrics"),
    ):
        shown.append((heading, _table(found[key]) if found[key] else ["the same"]))
    shown.insert(2, ("Code", list(code_lines(found["code"], diff_lines))))
    shown.append(("Training", list(verdict_lines(found))))
    return shown


def _table(rows: list[dict[str, Any]]) -> Table:
    shown = [(cell(row["key"], 40), *_values(row["key"], row["a"], row["b"])) for row in rows[:MOST_ROWS]]
    if len(rows) > MOST_ROWS:
        shown.append((f"... {len(rows) - MOST_ROWS} more (--json has all)", "", "", ""))
    if not any(row[3] for row in shown):
        return Table([row[:3] for row in shown], ("", "A", "B"))
    return Table(shown, ("", "A", "B", "B - A"), droppable=(3,))


def _values(key: str, a: object, b: object) -> tuple[str, str, str]:
    """Both values, and for two numbers by how much they differ."""
    if key.endswith("bytes") and (show_bytes(a) != show_bytes(b) or DASH in (show_bytes(a), show_bytes(b))):
        shown = [show_bytes(value) if number(value) is not None else _value(value) for value in (a, b)]
    elif isinstance(a, float) or isinstance(b, float):
        shown = [*_digits(a, b)]
    else:
        shown = [_value(a), _value(b)]
    return shown[0], shown[1], _delta(a, b)


def _digits(a: object, b: object) -> tuple[str, str]:
    """Two values with as few digits as tell them apart: six, or more."""
    one, other = number(a), number(b)
    if one is None or other is None:
        return _value(a), _value(b)
    for digits in range(6, 18):
        shown = f"{one:.{digits}g}", f"{other:.{digits}g}"
        if shown[0] != shown[1] or one == other:
            return shown
    return repr(one), repr(other)


def _delta(a: object, b: object) -> str:
    one, other = number(a), number(b)
    if one is None or other is None:
        return ""
    share = f" ({100 * (other - one) / abs(one):+.3g}%)" if one else ""
    return f"{other - one:+.3g}{share}"


def _value(value: object) -> str:
    return cell(str(value), WIDEST_VALUE)


def code_lines(code: dict[str, Any], diff_lines: int) -> Iterator[str]:
    """How the code of two runs differs: in words, the files, and the lines."""
    yield printable(code["words"])
    for gap in code["gaps"]:
        yield f"not to be had: {_one_line(gap)}"
    if not code["files"]:
        return
    most = len(code["files"]) if len(code["files"]) <= MOST_ROWS else MOST_ROWS
    none = "" if code["computes"] else f", {_not_imported(code['files'])}"
    yield f"{counted(len(code['files']), 'file')}{none}: {_few(code['files'], most)}"
    lines = [_clipped(printable(line).replace("\t", "    ")) for line in code["diff"].splitlines()]
    yield from lines[:diff_lines]
    if len(lines) > diff_lines:
        yield f"... {len(lines) - diff_lines:,} more lines (--lines {len(lines)} shows all)"


def _not_imported(files: list[str]) -> str:
    """What a run can have done with files that hold no programs."""
    count = sum(map(may_be_read, files))
    if not count:
        return "with none of which a run computes"
    return f"not imported, but {'' if count == len(files) else f'{count:,} of them '}may have been read"


def _clipped(line: str) -> str:
    """A line of code; of one that no one reads on a terminal, such as data on one line, the beginning."""
    if len(line) <= LONGEST_LINE:
        return line
    return f"{line[:LONGEST_LINE]}… ({len(line) - LONGEST_LINE:,} more characters)"


def verdict_lines(found: dict[str, Any]) -> Iterator[str]:
    """What the comparison of the steps came to."""
    training, cause = found["training"], found["cause"]
    yield from _verdict(training)
    first = training["first"]
    if first is not None:
        yield f"first seen: {difference_in_words(first)}"
        if words := _interval(first):
            yield words
        yield from _sizes(training, first)
    if cause is not None:
        yield f"cause: {cause['kind']}"
        yield from (f"    because {_one_line(each)}" for each in cause["evidence"])
        yield from (f"    also differs: {_one_line(each)}" for each in cause["others"])
    yield from _compared(training)
    yield from (f"note: {_one_line(each)}" for each in training["notes"])


def _verdict(training: dict[str, Any]) -> Iterator[str]:
    steps, last = training["steps"], training["last_step"]
    until = f"up to step {steps['last']}" if steps["last"] else "as far as there are checkpoints"
    match training["verdict"]:
        case "same bits":
            yield f"The two agree {until}: the same bits" + (
                "" if training["by_rank"] else ", over all ranks"
            )
        case "within tolerance":
            yield f"The two agree {until}, within the tolerance of {training['tolerance']:g}, not in their bits"
        case "parted":
            yield "The two part" + (
                f", by more than the tolerance of {training['tolerance']:g}: {difference_in_words(training['beyond'])}"
                if training["beyond"]
                else ""
            )
        case _:
            yield "Nothing can be compared: they have no step and no checkpoint in common"
    if last["a"] != last["b"]:
        yield f"A went to step {last['a']}, B to step {last['b']}"
    if steps["last"] and not training["by_rank"]:
        yield "The ranks have other shares of the batches: only what is of all ranks together was compared"


def difference_in_words(difference: dict[str, Any]) -> str:
    """step 100, rank 1, weights after the update: layers.0.weight and 3 more."""
    ranks = difference["ranks"]
    where = "all ranks together" if ranks is None else f"rank{'s' * (len(ranks) > 1)} {_few(ranks)}"
    text = f"step {difference['step']}, {where}, {difference['quantity']}"
    if difference["tensors"]:
        text += f" of {_few(difference['tensors'])}"
    if difference["a"] is not None:
        a, b = _digits(difference["a"], difference["b"])
        text += f": {a} in A, {b} in B (relative {difference['relative']:.2g}"
        near = difference.get("ulps", MOST_ULPS + 1) <= MOST_ULPS
        text += f", {difference['ulps']:,} ulps of {difference['precision']})" if near else ")"
    return text


def _few(values: list[Any], most: int = 4) -> str:
    shown = ", ".join(cell(str(value), 64) for value in values[:most])
    return shown if len(values) <= most else f"{shown} and {len(values) - most} more"


def _interval(first: dict[str, Any]) -> str | None:
    """Where it may have begun, when fingerprints are taken less often than every step."""
    same, step = first["last_same_weights"], first["step"]
    if not step:
        return "they start from other weights"
    if same is None:
        return f"begun at step {step} or before: no earlier fingerprints can be compared"
    if same == step - 1:
        return f"begun in step {step}: after step {same} the weights were the same"
    return (
        f"begun between step {same} and step {step}: fingerprints are taken every training.digest_every steps, and "
        "those after step " + f"{same} are the same"
    )


def _sizes(training: dict[str, Any], first: dict[str, Any]) -> Iterator[str]:
    seen = first.get("seen_next")
    if seen is not None:
        yield f"tensors, where they were next looked at: {difference_in_words(seen)}"
    apart = first.get("checkpoint")
    if apart and apart["tensors"]:
        count = counted(apart["differing"], "tensor")
        yield f"at the checkpoint of step {apart['step']}, {count} of the {apart['part']}:"
        for each in apart["tensors"][:5]:
            if each["unlike"]:
                yield f"    {cell(each['name'], 60)}: {each['unlike']}"
                continue
            ulps = f", up to {each['ulps']:,} ulps" if (each["ulps"] or MOST_ULPS + 1) <= MOST_ULPS else ""
            yield (
                f"    {cell(each['name'], 60)}: {each['differing']:,} of {each['elements']:,} elements, by up to "
                f"{each['largest']:.2g} ({each['relative']:.2g} of the largest{ulps})"
            )
    for name, each in training["largest"].items():
        yield f"largest difference of the {name}: {each['relative']:.2g}, at step {each['step']}"


def _compared(training: dict[str, Any]) -> Iterator[str]:
    counts = [f"{count:,} of {name}" for name, count in training["compared"].items()]
    if counts:
        yield f"compared: {', '.join(counts)}"
    pairs = training["checkpoints"]
    if pairs:
        same = sum(not pair["other"] for pair in pairs)
        yield f"checkpoints in common: {len(pairs)}, of which {same} hold the same bytes"
    if training["steps"]["last"] and "weights after the update" not in training["compared"]:
        yield "no fingerprints of weights in common: of the weights only checkpoints and losses tell"


def _one_line(text: object) -> str:
    return " ".join(printable(str(text)).split())
