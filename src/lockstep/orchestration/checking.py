"""`lockstep run --check-only`: all that is looked at before step 1, in a folder that is removed afterwards."""

import tempfile
from pathlib import Path
from typing import Any

from lockstep.catalog import events, status
from lockstep.catalog.run import Run, claim
from lockstep.files import read_json, write_atomically
from lockstep.launchers.client import Server
from lockstep.orchestration import inputs, steps
from lockstep.orchestration.display import Display
from lockstep.orchestration.session import Session, active
from lockstep.orchestration.start import Request

_FACTS = {
    "draws": "draws random numbers in",
    "buffers": "changes the buffers",
    "written": "writes to the parameters",
    "unused": "leaves out of some passes the parameters",
    "attributes": "changes the attributes",
    "gradient_hooks": "has hooks on the gradients of",
    "evaluation_modes": "was left in evaluation mode in",
}


def check(request: Request, server: Server, display: Display) -> int:
    """Prepare the data, look at the model, start the ranks, compare, and end. Nothing is trained or kept."""
    wanted = request.read(request.file, request.overrides, None)
    server.prepare(wanted.distributed.start_method, request.folder, wanted.distributed.strategy.name)
    inputs.require(wanted, request.folder, None)
    with tempfile.TemporaryDirectory(prefix="lockstep-check-") as place:
        run = claim(Path(place), "check")
        descriptor = status.hold(run)
        try:
            write_atomically(run.parameters, inputs.text_of(wanted))
            events.append(run, "created", run_id=run.run_id, tag=None, parent=None, summary={})
            value = wanted.to_value()
            with active(Session(run, display, request.folder, server)):
                steps.prepare_data(value["seed"], value["data"])
                steps.setup_distributed(**value)
                compared = steps.check_ranks(value["distributed"])
            for line in in_words(run, compared):
                display.line(line)
        finally:
            server.close()
            status.release(run, descriptor)
    return 0


def in_words(run: Run, compared: dict[str, Any]) -> list[str]:
    """What was seen and what was compared, a line each."""
    plan = read_json(run.plan)
    seen, strategy = plan["model"], plan["strategy"]["name"]
    if "absent" in seen:
        lines = [f"the model was not looked at: {seen['absent']}"]
    else:
        lines = [f"the model was looked at in {seen['passes']} passes, {seen['seconds']:.2f} s"]
        lines += [
            f"  it {words} {', '.join(name or 'its own forward pass' for name in seen[key])}"
            for key, words in _FACTS.items()
            if seen.get(key)
        ]
        lines += [f"  it shares memory between {' and '.join(group)}" for group in seen["shared_memory"]]
        lines += ["  a sample's output depends on the others in its pass"] if seen["mixes_samples"] else []
    if compared["absent"]:
        return [*lines, f"{strategy} was not compared with the model: {compared['absent']}"]
    return [
        *lines,
        f"{strategy} on {plan['world_size']} ranks computes what the model computes: the loss of {compared['rows']} "
        f"samples and {compared['gradients']} gradients agree",
    ]
