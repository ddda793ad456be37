"""Two runs: whether they agree and in which sense, else the first step at which they part, and why."""

import json
import math
import re
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import compared_runs
from compared_runs import TENSORS, build, checkpoint, prints, recorded
from lockstep import cli
from lockstep.catalog import compare
from lockstep.catalog.compare import quantities, text
from lockstep.catalog.compare import steps as metrics
from lockstep.catalog.run import Run
from lockstep.files import read_json_lines
from training import train


def compared(a: Run, b: Run, tolerance: float | None = None) -> dict:
    return compare.compare(a, b, [a.catalog], tolerance)


def words(found: dict) -> str:
    return "\n".join(text.verdict_lines(found))


def at_step(step: int, **changes: object) -> compared_runs.Edit:
    """Change the line of a step of rank 1."""

    def edit(rank: int, line: dict) -> None:
        if rank == 1 and line["kind"] == "step" and line["step"] == step:
            line |= changes

    return edit


def test_runs_that_agree_say_so_up_to_which_step_and_in_which_sense(tmp_path, capsys):
    build(tmp_path, "a")
    build(tmp_path, "b", last=30)
    assert cli.main(["diff", "a", "b", "--catalog", str(tmp_path)]) == 0
    said = capsys.readouterr().out
    assert "agree up to step 20: the same bits" in said
    assert "A went to step 20, B to step 30" in said


@pytest.mark.parametrize(
    ("change", "quantity"),
    [
        ({"loss": math.nextafter(2.0 / 15, 1)}, "loss"),
        ({"grad_norm": -0.0}, "norm of the gradient"),
        ({"learning_rate": 0.02}, "learning rate"),
        ({"batch_digest": 1}, "samples of the batch"),
    ],
)
def test_the_first_step_rank_and_quantity_are_named(tmp_path, capsys, change, quantity):
    build(tmp_path, "a")
    build(tmp_path, "b", edit=at_step(15, **change))
    assert cli.main(["diff", "a", "b", "--catalog", str(tmp_path), "--json"]) == 1
    first = json.loads(capsys.readouterr().out)["training"]["first"]
    assert (first["step"], first["ranks"], first["quantity"]) == (15, [1], quantity)


@pytest.mark.parametrize(
    ("what", "quantity"), [("gradient", "gradient"), ("parameter", "weights after the update")]
)
def test_the_tensor_that_parted_is_named(tmp_path, what, quantity):
    other = prints(10, what) | {TENSORS[1]: 5}
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", edit=at_step(10, **{f"{what}_digests": other}))
    first = compared(a, b)["training"]["first"]
    assert (first["step"], first["ranks"], first["quantity"]) == (10, [1], quantity)
    assert first["tensors"] == [TENSORS[1]]


def test_with_coarse_fingerprints_the_interval_in_which_it_began_is_said(tmp_path):
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", edit=at_step(8, loss=0.5))
    found = compared(a, b)
    assert found["training"]["first"]["begun_in"] == [6, 8]
    assert "begun between step 5 and step 8" in words(found)


def test_with_fingerprints_of_every_step_the_step_is_exact(tmp_path):
    a = build(tmp_path, "a", every=1)
    b = build(tmp_path, "b", every=1, edit=at_step(8, loss=0.5))
    assert "begun in step 8: after step 7 the weights were the same" in words(compared(a, b))


def test_of_a_repeated_step_the_last_attempt_counts(tmp_path):
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", last=14, edit=at_step(13, loss=9.0))
    for rank in range(2):
        compared_runs.write(b.metrics_file(rank, 2), compared_runs.lines(rank, 11, 20))
    found = compared(a, b)
    assert found["training"]["verdict"] == compare.SAME
    assert any(
        "twice with other bits, the first of them step 13" in note for note in found["training"]["notes"]
    )


def test_steps_that_an_attempt_undid_and_nobody_did_again_are_no_part_of_the_run(tmp_path):
    a = build(tmp_path, "a", last=12)
    b = build(tmp_path, "b", last=18, edit=at_step(17, loss=9.0))
    for rank in range(2):
        compared_runs.write(b.metrics_file(rank, 2), compared_runs.lines(rank, 11, 12))
    assert metrics.read(b).last == 12
    assert compared(a, b)["training"]["verdict"] == compare.SAME


def test_a_childs_first_steps_are_its_parents(tmp_path):
    whole = build(tmp_path, "whole")
    build(tmp_path, "parent", last=12)
    child = build(tmp_path, "child", first=11, parent={"run_id": "parent", "checkpoint": "step-00000010"})
    found = compared(whole, child)["training"]
    assert found["verdict"] == compare.SAME and found["steps"] == {"first": 1, "last": 20}
    build(tmp_path, "orphan", first=11, parent={"run_id": "gone", "checkpoint": "step-00000010"})
    found = compared(whole, Run(tmp_path / "orphan"))["training"]
    assert found["verdict"] == compare.SAME and found["steps"] == {"first": 11, "last": 20}
    assert any("gone" in note for note in found["notes"])


def test_a_run_that_names_itself_as_its_parent_is_read_all_the_same(tmp_path):
    loop = build(tmp_path, "loop", first=11, parent={"run_id": "loop", "checkpoint": "step-00000010"})
    assert metrics.read(loop).last == 20


def test_other_world_sizes_are_compared_in_what_is_of_all_ranks_together(tmp_path):
    a = build(tmp_path, "a", ranks=2)
    b = build(tmp_path, "b", ranks=3)
    found = compared(a, b)
    assert found["training"]["verdict"] == compare.SAME
    assert not found["training"]["by_rank"]

    def other(rank, line):
        if line["kind"] == "step" and line["step"] == 7:
            line["loss"] += 1e-3

    c = build(tmp_path, "c", ranks=3, edit=other)
    first = compared(a, c)["training"]["first"]
    assert (first["step"], first["ranks"], first["quantity"]) == (7, None, "loss")
    assert compared(a, c, tolerance=0.01)["training"]["verdict"] == compare.WITHIN
    assert compared(a, c, tolerance=1e-4)["training"]["beyond"]["step"] == 7


def test_slices_add_up_to_the_whole(tmp_path):
    first = dict.fromkeys(TENSORS, 12345)

    def sliced(rank, line):
        for step in (5, 10, 15, 20):
            if line["kind"] == "step" and line["step"] == step:
                rest = {name: value - 12345 for name, value in prints(step).items()}
                line["parameter_digests"] = [first, rest][rank]
        if line["kind"] == "start":
            line["parameter_digests"] = [first, {k: v - 12345 for k, v in prints(0).items()}][rank]

    a, b = build(tmp_path, "a"), build(tmp_path, "b", edit=sliced)
    b.parameters.write_text(b.parameters.read_text().replace("name: ddp", "name: fsdp"))
    assert compared(a, b)["training"]["verdict"] == compare.SAME

    def spoiled(rank, line):
        sliced(rank, line)
        if rank == 1 and line.get("step") == 10 and line["kind"] == "step":
            line["parameter_digests"][TENSORS[1]] += 1

    c = build(tmp_path, "c", edit=spoiled)
    c.parameters.write_text(b.parameters.read_text())
    first_seen = compared(a, c)["training"]["first"]
    assert (first_seen["step"], first_seen["ranks"], first_seen["tensors"]) == (10, None, [TENSORS[1]])


def test_samples_that_differ_are_no_matter_of_tolerance(tmp_path):
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", edit=at_step(10, batch_digest=4))
    assert compared(a, b, tolerance=0.5)["training"]["verdict"] == compare.PARTED


def test_checkpoints_tell_how_far_each_tensor_is_apart(tmp_path):
    weights = {"w": np.linspace(-1, 1, 50, dtype=np.float32), "b": np.zeros(3, np.float32)}
    a, b = build(tmp_path, "a"), build(tmp_path, "b")
    checkpoint(a, 10, weights)
    checkpoint(b, 10, weights)
    checkpoint(a, 20, weights)
    weights["w"] = weights["w"].copy()
    weights["w"][7] = np.nextafter(np.nextafter(weights["w"][7], np.float32(9)), np.float32(9))
    checkpoint(b, 20, weights)
    found = compared(a, b)
    first = found["training"]["first"]
    assert (first["step"], first["tensors"]) == (20, ["w"])
    (tensor,) = first["checkpoint"]["tensors"]
    assert (tensor["name"], tensor["differing"], tensor["elements"], tensor["ulps"]) == ("w", 1, 50, 2)
    assert compared(a, b, tolerance=1e-6)["training"]["verdict"] == compare.WITHIN
    assert compared(a, b, tolerance=1e-9)["training"]["verdict"] == compare.PARTED


@given(st.floats(-(2.0**126), 2.0**126, width=32), st.integers(-3000, 3000))
def test_ulps_count_the_numbers_between_two(value, count):
    other = np.float32(value)
    for _ in range(min(abs(count), 40)):
        other = np.nextafter(other, np.float32(math.copysign(math.inf, count)))
    steps = quantities.ulps(float(value), float(other), single=True)
    assert steps <= min(abs(count), 40)
    if (
        np.isfinite(other)
        and value != 0
        and other != 0
        and math.copysign(1, value) == math.copysign(1, other)
    ):
        assert steps == min(abs(count), 40)


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    step=st.integers(1, 20),
    rank=st.integers(0, 1),
    field=st.sampled_from(["loss", "grad_norm", "learning_rate", "gradient_digests", "parameter_digests"]),
    later=st.integers(0, 3),
)
def test_wherever_two_runs_part_that_place_is_found(tmp_path_factory, step, rank, field, later):
    tmp_path = tmp_path_factory.mktemp("parted")
    step = step if not field.endswith("digests") else -(-step // 5) * 5

    def edit(at, line):
        if at == rank and line["kind"] == "step" and step <= line["step"] <= step + later and field in line:
            line[field] = (
                line[field] | {TENSORS[2]: 1} if isinstance(line[field], dict) else line[field] + 0.125
            )

    first = compared(build(tmp_path, "a"), build(tmp_path, "b", edit=edit))["training"]["first"]
    assert first["step"] == step and first["ranks"] == [rank]
    assert first["quantity"] == quantities.NAMES[field]
    assert first["tensors"] == ([TENSORS[2]] if field.endswith("digests") else [])


def _start(**digests):
    def edit(rank, line):
        if line["kind"] == "start":
            line["parameter_digests"] |= digests

    return edit


@pytest.mark.parametrize(
    ("differs", "edit", "kind", "because"),
    [
        ({"learning_rate": 0.02}, at_step(1, learning_rate=0.02), "optimizer parameters", "training.learning_rate"),
        ({"seed": 7}, _start(**{TENSORS[0]: 1}), "seed", "seed: 42 in A, 7 in B"),
        (
            {"provenance": recorded(packages={"python": "3.12.7", "torch": "2.14.0", "numpy": "2.1.0"})},
            at_step(10, loss=0.7),
            "arithmetic",
            "packages.torch: 2.13.0 in A, 2.14.0 in B",
        ),
        ({}, at_step(10, loss=0.7), "non-determinism", "recorded as the same"),
        # What differs cannot be the cause where it does not fit: another rate is never seen in the samples first.
        ({"learning_rate": 0.02}, at_step(10, batch_digest=7), "unknown", "nothing that differs explains it"),
    ],
)  # fmt: skip
def test_the_cause_is_deduced_and_its_evidence_said(tmp_path, differs, edit, kind, because):
    found = compared(build(tmp_path, "a"), build(tmp_path, "b", edit=edit, **differs))
    assert found["cause"]["kind"] == kind
    assert any(because in each for each in found["cause"]["evidence"]), found["cause"]


def test_other_data_is_the_cause_where_samples_differ_first(tmp_path):
    a = build(tmp_path, "a")
    b = build(tmp_path, "b", edit=at_step(5, batch_digest=3))
    (b.data / "data.json").write_text(json.dumps({"identity": "i", "files": {"train": {"sha256": "c" * 64}}}))
    assert compared(a, b)["cause"]["kind"] == "data"


@pytest.fixture
def repository(tmp_path):
    """A repository with two commits; a function that runs git in it."""

    def git(*words: str) -> str:
        command = [
            "git",
            "-c",
            "user.name=a",
            "-c",
            "user.email=a@example.org",
            "-C",
            str(tmp_path / "code"),
            *words,
        ]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    (tmp_path / "code").mkdir()
    git("init", "-q", "-b", "main")
    (tmp_path / "code" / "model.py").write_text("width = 8\n")
    git("add", "-A")
    git("commit", "-qm", "one")
    return git


def _with_code(commit: str, run_patch: bytes | None = None) -> dict:
    import hashlib

    patch = None
    if run_patch:
        patch = {
            "file": "source.patch",
            "sha256": hashlib.sha256(run_patch).hexdigest(),
            "bytes": len(run_patch),
        }
    return recorded(
        git={"commit": commit, "dirty": bool(patch), "patch": patch, "tree": None, "left_out_count": 0}
    )


def test_code_is_shown_as_one_diff_of_commits_and_patches_together(tmp_path, repository):
    code = tmp_path / "code"
    first = repository("rev-parse", "HEAD")
    (code / "model.py").write_text("width = 16\n")
    repository("commit", "-qam", "two")
    (code / "model.py").write_text("width = 32\n")
    patch = (repository("diff", "--full-index", "HEAD") + "\n").encode()
    a = build(tmp_path, "a", provenance=_with_code(first))
    b = build(tmp_path, "b", provenance=_with_code(repository("rev-parse", "HEAD"), patch))
    b.patch.write_bytes(patch)
    before = repository("status", "--porcelain"), repository("count-objects")
    found = compare.compare(a, b, [code])["code"]
    assert "-width = 8\n+width = 32" in found["diff"] and found["files"] == ["model.py"]
    assert found["same"] is False and found["computes"]
    assert (repository("status", "--porcelain"), repository("count-objects")) == before
    b.patch.write_bytes(patch.replace(b"32", b"64"))
    found = compare.compare(a, b, [code])["code"]
    assert any("not the one that was recorded" in gap for gap in found["gaps"])


def test_a_commit_that_is_not_to_be_had_is_said(tmp_path, repository):
    a = build(tmp_path, "a", provenance=_with_code(repository("rev-parse", "HEAD")))
    b = build(tmp_path, "b", provenance=_with_code("f" * 40))
    found = compare.compare(a, b, [tmp_path / "code"])["code"]
    assert found["same"] is None
    assert any(f"commit {'f' * 12} is not in" in gap for gap in found["gaps"])


def test_code_that_differs_only_in_its_documents_is_no_cause(tmp_path, repository):
    first = repository("rev-parse", "HEAD")
    (tmp_path / "code" / "README.md").write_text("words")
    repository("add", "-A")
    repository("commit", "-qm", "words")
    a = build(tmp_path, "a", provenance=_with_code(first))
    provenance = _with_code(repository("rev-parse", "HEAD"))
    b = build(tmp_path, "b", provenance=provenance, edit=at_step(10, loss=0.7))
    found = compare.compare(a, b, [tmp_path / "code"])
    assert found["code"]["same"] is False and not found["code"]["computes"]
    assert found["cause"]["kind"] == "non-determinism"


@settings(max_examples=20, deadline=None)
@given(st.lists(st.binary(max_size=80), max_size=5), st.recursive(st.none() | st.text(), st.lists))
def test_metrics_of_any_shape_are_read_without_an_error(tmp_path_factory, junk, value):
    run = build(tmp_path_factory.mktemp("hostile"), "a", last=3)
    odd = [
        {"kind": "step", "step": value, "loss": value},
        {"kind": "step", "step": 2, "loss": 1e999, "samples": -1, "parameter_digests": {"a": value}},
        {"kind": "start", "step": True, "parameter_digests": value},
        {"kind": "epoch", "step": 3, "validation": value},
        {"kind": "step", "step": 10**400, "loss": 10**400},
        {"kind": "step", "step": 3, "loss": 10**400, "batch_digest": 10**400, "learning_rate": value},
    ]
    content = b"\n".join([*junk, *(json.dumps(each).encode() for each in odd), b"[" * 100_000])
    run.metrics_file(0).write_bytes(run.metrics_file(0).read_bytes() + content)
    run.provenance.write_text(json.dumps({"git": value, "packages": value, "machine": {"cores": value}}))
    other = build(run.catalog, "b", last=3)
    found = compared(run, other)
    text.blocks(found)
    json.dumps(found)


def test_recorded_text_cannot_command_the_terminal(tmp_path, capsys):
    evil = {"\x1b[2Jname": 5}
    build(tmp_path, "a")
    build(
        tmp_path,
        "b",
        edit=at_step(10, gradient_digests=evil),
        provenance=recorded(machine={"host": "\x1b[31mred"}),
    )
    cli.main(["diff", "a", "b", "--catalog", str(tmp_path)])
    assert "\x1b" not in capsys.readouterr().out


def test_comparing_imports_neither_torch_nor_runnable(tmp_path):
    build(tmp_path, "a")
    build(tmp_path, "b")
    program = (
        "import sys; from lockstep.cli import main; "
        f"code = main(['diff', 'a', 'b', '--catalog', {str(tmp_path)!r}]); "
        "assert not {'torch', 'runnable', 'pydantic'} & set(sys.modules); sys.exit(code)"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], check=False, cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def test_two_trainings_with_other_rates_part_at_the_first_update(server, tmp_path):
    a = train(server, tmp_path, "training.digest_every=1", "training.epochs=1")
    again = train(server, tmp_path, "training.digest_every=1", "training.epochs=1")
    assert compared(a, again)["training"]["verdict"] == compare.SAME
    b = train(server, tmp_path, "training.digest_every=1", "training.epochs=1", "training.max_grad_norm=0.1")
    found = compared(a, b)
    first = found["training"]["first"]
    assert (first["step"], first["quantity"], first["ranks"]) == (1, "gradient", [0, 1])
    assert found["cause"]["kind"] == "optimizer parameters"
    assert any("max_grad_norm" in each for each in found["cause"]["evidence"])


def test_the_same_training_in_another_type_of_number_is_within_a_tolerance(server, tmp_path):
    words = (
        "training.digest_every=1",
        "training.epochs=1",
        "distributed.strategy=single",
        "distributed.world_size=1",
    )
    runs = [train(server, tmp_path, *words, f"training.precision={each}") for each in ("fp64", "fp32")]
    assert compared(*runs, tolerance=1e-2)["training"]["verdict"] == compare.WITHIN
    found = compared(*runs, tolerance=1e-12)
    assert found["training"]["verdict"] == compare.PARTED
    assert found["training"]["beyond"]["quantity"] == "loss"
    assert found["cause"]["kind"] == "precision"


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "naive", "allreduce", "local_sgd", "parameter_server"])
def test_gradients_are_fingerprinted_reduced_or_called_the_ranks_own(server, tmp_path, strategy):
    words = ("training.digest_every=2", "training.epochs=1", f"distributed.strategy={strategy}")
    run = train(server, tmp_path, *words)
    ranks = [
        [line for line in read_json_lines(run.metrics_file(rank)) if "digest_seconds" in line]
        for rank in (0, 1)
    ]
    assert ranks[0]
    for one, other in zip(*ranks, strict=True):
        if strategy in ("local_sgd", "parameter_server"):
            assert "gradient_digests" not in one
            assert one["own_gradient_digests"] != other["own_gradient_digests"]
        else:
            assert one["gradient_digests"] == other["gradient_digests"]
        assert one["batch_digest"] != other["batch_digest"]


@pytest.mark.slow
def test_the_same_training_on_other_world_sizes_agrees_within_rounding_and_has_the_same_samples(
    server, tmp_path
):
    a = train(server, tmp_path, "training.digest_every=2")
    b = train(server, tmp_path, "training.digest_every=2", "distributed.world_size=3")
    found = compared(a, b, tolerance=1e-10)["training"]
    assert found["verdict"] == compare.WITHIN
    assert found["first"]["quantity"] != quantities.SAMPLES and found["compared"][quantities.SAMPLES] == 13


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["fsdp", "{name: fsdp, sharding: hybrid, ranks_per_group: 1}", "tensor", "pipeline", "naive"]
)
def test_slices_of_weights_are_compared_as_wholes_with_another_strategys(server, tmp_path, strategy):
    a = train(server, tmp_path, "training.digest_every=2", "training.epochs=1")
    b = train(
        server, tmp_path, "training.digest_every=2", "training.epochs=1", f"distributed.strategy={strategy}"
    )
    found = compared(a, b, tolerance=1e-10)["training"]
    assert found["verdict"] in (compare.SAME, compare.WITHIN)
    assert found["first"] is None or found["first"]["step"] > 0  # they start from the same weights


@pytest.mark.slow
def test_the_invariant_reduction_has_the_same_bits_at_any_world_size(server, tmp_path):
    words = (
        "distributed.strategy=allreduce",
        "distributed.strategy.reduction=invariant",
        "training.digest_every=2",
    )
    a, b = train(server, tmp_path, *words), train(server, tmp_path, *words, "distributed.world_size=3")
    assert compared(a, b)["training"]["verdict"] == compare.SAME


def test_checkpoints_in_slices_are_compared_tensor_by_tensor_however_they_are_cut(tmp_path):
    from lockstep.catalog.compare import tensors
    from lockstep.engine import checkpoint as engine_checkpoint
    from test_sharded_checkpoints import META, save_together, state

    whole, slices = state(3)
    runs = [Run(tmp_path / name) for name in ("whole", "sliced", "changed", "other-type")]
    for run in runs:
        run.checkpoints.mkdir(parents=True)
    engine_checkpoint.save(runs[0].checkpoints, whole, META | {"step": 5})
    save_together(runs[1].checkpoints, slices, META | {"step": 5})
    name = next(
        name for name, value in whole["model"].items() if value.is_floating_point() and value.numel() > 3
    )
    value = whole["model"][name].clone()
    value.view(-1)[2] += 1
    changed = whole | {"model": whole["model"] | {name: value}}
    engine_checkpoint.save(runs[2].checkpoints, changed, META | {"step": 5})
    half = whole | {"model": whole["model"] | {name: whole["model"][name].int()}}
    engine_checkpoint.save(runs[3].checkpoints, half, META | {"step": 5})
    ((same,), (other,), (unlike,)) = (tensors.common(runs[1], run) for run in (runs[0], runs[2], runs[3]))
    assert same.same == ("model.safetensors", "optimizer.safetensors") and same.other == ()
    assert other.other == ("model.safetensors",)
    (found,) = tensors.apart(other.a, other.b, "model.safetensors")
    assert (found.name, found.differing) == (name, 1) and found.largest == pytest.approx(1)
    (found,) = tensors.apart(unlike.a, unlike.b, "model.safetensors")
    assert "I32" in found.unlike and "in B" in found.unlike


def test_every_parameter_that_can_change_a_number_is_known_to_the_causes():
    from lockstep.catalog.compare import cause
    from lockstep.sections import Distributed, Training

    keys = [
        f"{name}.{key}"
        for name, section in (("training", Training), ("distributed", Distributed))
        for key in section.model_fields
    ]
    for key in keys:
        found = [kind for kind, pattern, _ in cause._PARAMETERS if re.fullmatch(pattern, key)]
        inert = key.partition(".")[2] in cause.INERT
        assert inert != bool(found), key
        assert inert or found[0] != "unknown", key
    kinds = [kind for kind, pattern, _ in cause._PARAMETERS if re.fullmatch(pattern, "training.new_option")]
    assert kinds == ["unknown"]  # named, and not taken for nothing


def test_micro_batches_are_the_cause_and_not_chance(server, tmp_path):
    a, b = (
        train(server, tmp_path, "training.precision=fp32", f"training.micro_batch_size={n}") for n in (3, 4)
    )
    found = compared(a, b)
    assert found["training"]["verdict"] == "parted"
    assert found["cause"]["kind"] == "arithmetic", found["cause"]
    assert any("micro_batch_size" in each for each in found["cause"]["evidence"])


@pytest.mark.parametrize(
    ("strategy", "recorded_exact", "kind"),
    [
        ("{name: 'mine:Sketch'}", False, "training algorithm"),
        ("{name: 'mine:Faithful'}", True, "arithmetic"),
        ("{name: 'mine:OfAnOlderRecord'}", None, "training algorithm"),
        ("{name: fsdp, param_dtype: bf16}", False, "training algorithm"),
        ("{name: fsdp, param_dtype: bf16}", None, "training algorithm"),
        ("{name: fsdp, param_dtype: null}", None, "arithmetic"),
        ("{name: local_sgd, every: 4}", None, "training algorithm"),
        ("{name: parameter_server, mode: async}", None, "training algorithm"),
    ],
)
def test_a_strategy_is_exact_as_it_said_itself_and_older_records_are_judged_by_source_and_options(
    tmp_path, strategy, recorded_exact, kind
):
    def edit(rank, line):
        if line["kind"] == "start" and recorded_exact is not None:
            line["exact"] = recorded_exact
        if line["kind"] == "step" and line["step"] >= 5:
            line["loss"] *= 1.5

    a, b = build(tmp_path, "a"), build(tmp_path, "b", edit=edit)
    b.parameters.write_text(b.parameters.read_text().replace("{name: ddp}", strategy))
    assert compared(a, b)["cause"]["kind"] == kind


def test_a_schedule_that_ends_at_another_step_is_told(tmp_path):
    def falling(last):
        def edit(rank, line):
            if line["kind"] == "step":
                line["learning_rate"] = 0.01 * (1 - line["step"] / last)

        return edit

    def planned(name, last, **more):
        run = build(tmp_path, name, last=last, **more)
        plan = json.loads(run.plan.read_text())
        run.plan.write_text(json.dumps({**plan, "steps": last}))
        return run

    short, long = planned("short", 20, edit=falling(20)), planned("long", 40, edit=falling(40))
    assert "schedule ends at step 20 in A and at step 40 in B" in words(compared(short, long))
    parent = {"run_id": "short", "kind": "resumed", "checkpoint": "step-00000020"}
    more = planned("more", 40, edit=falling(40), first=21, parent=parent)
    said = words(compared(short, more))
    assert "at step 40 in B (it goes on at step 21 with 0.00475, after 0)" in said
    constant = planned("constant", 20), planned("constant-2", 40)
    assert "schedule" not in words(compared(*constant))
