"""`lockstep explain`: which run made a file that was found anywhere, and from what."""

import argparse
from pathlib import Path
from typing import Any

from lockstep.catalog.explanation import explain
from lockstep.catalog.report.values import at, mapping, moment, show_bytes, show_count, show_moment
from lockstep.catalog.text import cell
from lockstep.cli import output
from lockstep.cli.list import add_reading_options, catalog_of
from lockstep.files import one_line, printable

MOST_SHOWN = 10
NO_NAME = (
    "a .pt names no run, and this catalog has no note of having exported it; it was not compared with any checkpoint. "
    "A .safetensors that lockstep export writes says where it is from, in any catalog"
)
PACKAGES = ("python", "torch", "lockstep", "numpy")


def configure(parser: argparse.ArgumentParser) -> None:
    """Options of the command."""
    parser.add_argument(
        "file",
        metavar="FILE",
        type=Path,
        help="a checkpoint's folder, or any file: .safetensors, .pt, a manifest",
    )
    add_reading_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Print it; 1 where no run holds these bytes, nor the checkpoint that they were exported from."""
    catalog = catalog_of(arguments)
    found = explain(catalog, arguments.file)
    if arguments.json:
        output.write_json(found)
    else:
        _write(found, catalog)
    leads_back = at(found, "exported", "same") and at(found, "exported", "from")
    return int(not found["held_by"] and not leads_back)


def _write(found: dict[str, Any], catalog: Path) -> None:
    what = "the folder's manifest.json" if found["kind"] == "folder" else "the file"
    output.write_line(one_line(found["path"]))
    output.write_line(f"  {what}: {found['bytes']:,} bytes, sha256 {found['sha256']}")
    for finding in found["findings"][:20]:
        output.write_line(f"  CHANGED  {finding}")
    if not found["held_by"]:
        output.write_line(f"no run in {printable(str(catalog))} holds these bytes")
        if found["exported"]:
            _write_exported(found["exported"])
        if found["similar"]:
            output.write_line(f"  {_similar(found['similar'])}")
        if Path(found["path"]).suffix == ".pt" and not found["exported"]:
            output.write_line(f"  {NO_NAME}")
        return
    for each in found["held_by"][:MOST_SHOWN]:
        output.write_line()
        _write_facts(each)
    rest = [each["run_id"] for each in found["held_by"][MOST_SHOWN:]] + found["also_held_by"]
    rest = [one_line(name) for name in rest]
    if rest:
        output.write_line()
        output.write_line(
            f"and {len(rest)} more runs: {', '.join(rest[:20])}{', ...' if len(rest) > 20 else ''}"
        )


def _write_exported(said: dict[str, Any]) -> None:
    """What the header says, and whether the checkpoint that it names has these tensors."""
    whose = f"checkpoint {cell(said['checkpoint'])} of run {cell(said['run_id'], 64)}"
    if said["why"]:
        output.write_line(
            f"  it says, or was noted, that it was exported from {whose}, which cannot be compared:"
        )
        output.write_line(f"  {cell(said['why'], 400)}")
        return
    if said.get("written"):
        when = show_moment(moment(said["written"]))
        what = f"{said['of']}, {said['tensors']:,} tensors"
        output.write_line(f"  it is an export of {whose}: {what}, as was noted when it was written, {when}")
        if said["from"] is None:
            output.write_line("  neither a record nor a tombstone of that run is here")
            return
    elif said["same"]:
        tensors = f"all {said['tensors']:,} tensors are the same by SHA-256"
        output.write_line(f"  it is an export of {whose}: {said['of']}, {tensors}")
    else:
        names = ", ".join(cell(name, 100) for name in said["named"])
        count = f"{said['differing']:,} of {said['tensors']:,} tensors"
        output.write_line(f"  its header says that it was exported from {whose}, and that does not hold:")
        output.write_line(f"  {count} differ from its {said['of']}: {names}")
    output.write_line()
    _write_facts(said["from"])


def _write_facts(each: dict[str, Any]) -> None:
    for name, value in _facts(each):
        output.write_line(f"{name:<12}{value}")


def _similar(similar: dict[str, Any]) -> str:
    whose = f"{cell(similar['file'], 200)} of run {cell(similar['run_id'], 64)} ({similar['bytes']:,} bytes)"
    count = similar["different_bytes"]
    where = f", in tensor {cell(similar['tensor'], 100)}" if similar.get("tensor") else ""
    change = (
        f"; {count:,} bytes differ, the first at byte {similar['first_difference']:,}{where}" if count else ""
    )
    begins = {
        "cut": f"it is cut: it has the beginning of {whose}",
        "longer": f"it was added to: it begins as {whose}",
        "changed": f"it is a changed copy of {whose}",
    }
    return begins[similar["how"]] + change


def _facts(each: dict[str, Any]) -> list[tuple[str, str]]:
    verb = "made it" if each["made"] else "has it, and did not make it"
    code, packages, machine = mapping(each["code"]), mapping(each["packages"]), mapping(each["machine"])
    summary, data = mapping(each["summary"]), mapping(each["data"])
    facts = [
        ("run", f"{one_line(each['run_id'])} {verb}" + (f" (tag {cell(each['tag'])})" if each["tag"] else ""))
    ]
    facts += [("as", f"{cell(name, 200)}: {state}") for name, state in list(each["files"].items())[:5]]
    facts += [
        ("step", show_count(each["step"]) if each["step"] is not None else ""),
        ("status", cell(each["status"]) + f", created {show_moment(moment(each['created']))}"),
        ("removed", show_moment(moment(each["removed"])) if each["removed"] else ""),
        ("what", _what(summary)),
        ("commit", _commit(code)),
        ("patch", _patch(code, each["patch_file"])),
        ("data", f"{cell(summary.get('dataset'))}, identity {cell(data.get('identity'), 64)}"),
        ("packages", ", ".join(f"{name} {cell(packages[name])}" for name in PACKAGES if name in packages)),
        ("uv.lock", f"sha256 {cell(each['uv_lock'], 64)}" if each["uv_lock"] else ""),
        ("machine", _machine(machine)),
        ("command", cell(" ".join(map(str, each["argv"])), 200) if isinstance(each["argv"], list) else ""),
    ]  # fmt: skip
    facts += [("from", _ancestor(ancestor)) for ancestor in each["ancestry"]]
    return [fact for fact in facts if fact[1]]


def _what(summary: dict[str, Any]) -> str:
    words = [cell(summary.get(key)) for key in ("model", "dataset", "strategy")]
    ranks = show_count(summary.get("world_size"))
    return f"{words[0]} on {words[1]}, {words[2]}, ranks: {ranks}" if summary else ""


def _commit(code: dict[str, Any]) -> str:
    if code.get("absent"):
        return f"not under git ({cell(code['absent'], 100)})"
    if not code.get("commit"):
        return ""
    changed = {True: ", with changes that were not committed", False: ", nothing changed"}
    dirty = code.get("dirty")
    return f"{cell(code['commit'], 64)} on {cell(code.get('branch'))}" + (
        changed[dirty] if isinstance(dirty, bool) else ""
    )


def _patch(code: dict[str, Any], file: str | None) -> str:
    patch = mapping(code.get("patch"))
    return (
        f"sha256 {cell(patch.get('sha256'), 64)}" + (f", {file}" if file else ", not kept") if patch else ""
    )


def _machine(machine: dict[str, Any]) -> str:
    if not machine:
        return ""
    return (
        f"{cell(machine.get('host'))}, {cell(machine.get('processor'))}, "
        f"{show_count(machine.get('cores'))} cores, {show_bytes(machine.get('memory_bytes'))}"
    )


def _ancestor(each: dict[str, Any]) -> str:
    agrees = {True: "", False: " WHICH IS ANOTHER ONE NOW", None: " (which is not there to compare)"}
    commit = mapping(each["code"]).get("commit")
    words = [f"{cell(each['kind'])} from {cell(each['run_id'], 64)}, {cell(each['status'])}"]
    words.append(
        f"at {cell(each['checkpoint'])}{agrees[each['agrees']]}"
        if each["checkpoint"]
        else "from the beginning"
    )
    words.append(f"commit {cell(commit)[:12]}" if commit else "")
    words.append(f"data {cell(each['data'], 64)[:12]}" if each["data"] else "")
    return ", ".join(word for word in words if word)
