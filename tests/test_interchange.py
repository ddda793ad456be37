"""Promise 2: a checkpoint forgets how it was trained; and its weights leave for others in plain files."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lockstep import parameters
from lockstep.cli import main
from lockstep.engine import checkpoint, judging
from lockstep.engine.evaluation import evaluate_run
from lockstep.engine.features import open_splits
from lockstep.engine.rank import make_module
from lockstep.files import read_json_lines
from marks import slow
from training import bits, largest_difference, train

# Every exact strategy, on the ranks that it can have. Two blocks of layers, so that a pipeline has what to cut.
MODEL = ("model.hidden_sizes=[8, 8, 8]", "data.num_samples=107", "training.epochs=4")
FSDP = "{name: fsdp, transport: shm}"
STRATEGIES = {
    "single": ("single", (1,)),
    "ddp": ("ddp", (1, 2, 4)),
    "allreduce": ("allreduce", (1, 2, 4)),
    "naive": ("naive", (1, 2, 4)),
    "parameter_server": ("{name: parameter_server, transport: shm}", (1, 2, 4)),
    "fsdp": (FSDP, (1, 2, 4)),
    "pipeline": ("pipeline", (1, 2, 4)),
    "tensor": ("tensor", (1, 2, 4)),
}
CASES = [(name, ranks) for name, (_, possible) in STRATEGIES.items() for ranks in possible]
STOP = 2  # epochs under the first strategy


def available() -> set[str]:
    from lockstep import plugins

    return set(plugins.names("strategies"))


def chosen(case):
    name, ranks = case
    return f"distributed.strategy={STRATEGIES[name][0]}", f"distributed.world_size={ranks}"


def losses(run) -> dict[int, float]:
    """The global batch's loss at each step of this run: the ranks' means by their samples."""
    sums: dict[int, list[float]] = {}
    for path in run.metrics.glob("rank-*.jsonl"):
        for line in read_json_lines(path):
            if line["kind"] == "step":
                total = sums.setdefault(line["step"], [0.0, 0])
                total[0] += line["loss"] * line["samples"]
                total[1] += line["samples"]
    return {step: loss / samples for step, (loss, samples) in sums.items()}


@pytest.fixture(scope="module")
def trained(server, tmp_path_factory):
    """Runs that are made once and asked for by many cases: the whole one, and the first half under each strategy."""
    made = {}
    folder = tmp_path_factory.mktemp("interchange")

    def of(case, epochs):
        if (case, epochs) not in made:
            made[case, epochs] = train(server, folder, *MODEL, *chosen(case), f"training.epochs={epochs}")
        return made[case, epochs]

    return of


def continues(server, tmp_path, trained, first, second):
    if missing := {first[0], second[0]} - available():
        pytest.skip(f"no strategy {missing.pop()}")
    whole = trained(("single", 1), 4)
    half = trained(first, STOP)
    start = max(half.checkpoints.glob("step-*"))
    run = train(server, tmp_path, *MODEL, *chosen(second), start=start)
    expected = losses(whole)
    found = losses(run)
    assert list(found) == list(range(int(start.name[5:]) + 1, max(expected) + 1))
    assert found == pytest.approx({step: expected[step] for step in found}, abs=1e-8)
    assert largest_difference(run, whole) < 1e-8


# A ring through all strategies and back: each is once the one that saves and once the one that goes on.
RING = [
    (("single", 1), ("fsdp", 2)),
    (("fsdp", 2), ("ddp", 2)),
    (("ddp", 2), ("allreduce", 4)),
    (("allreduce", 4), ("fsdp", 4)),
    (("fsdp", 4), ("pipeline", 2)),
    (("pipeline", 2), ("tensor", 2)),
    (("tensor", 2), ("parameter_server", 2)),
    (("parameter_server", 2), ("single", 1)),
]


def named(case) -> str:
    return "-".join(map(str, case)) if isinstance(case[0], str) else " to ".join(map(named, case))


@pytest.mark.parametrize("pair", RING, ids=named)
def test_saved_under_one_strategy_and_resumed_under_another_goes_on_as_if_nothing_had_happened(
    server, tmp_path, trained, pair
):
    continues(server, tmp_path, trained, *pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", list(itertools.product(CASES, CASES)), ids=named)
def test_every_strategy_goes_on_from_every_other_at_every_world_size(server, tmp_path, trained, pair):
    continues(server, tmp_path, trained, *pair)


@pytest.mark.parametrize("ranks", [slow(2), slow(3)])
def test_sharded_training_that_is_taken_up_again_ends_in_the_same_bits(server, tmp_path, ranks):
    way = (f"distributed.strategy={FSDP}", f"distributed.world_size={ranks}", "training.precision=fp32")
    whole = train(server, tmp_path, *MODEL, *way)
    half = train(server, tmp_path, *MODEL, *way, f"training.epochs={STOP}")
    again = train(server, tmp_path, *MODEL, *way, start=max(half.checkpoints.glob("step-*")))
    assert bits(again) == bits(whole)


def test_a_checkpoint_of_another_model_is_refused_in_words_by_a_sharded_run(server, tmp_path, trained):
    from lockstep.errors import RunFailed

    start = max(trained(("single", 1), STOP).checkpoints.glob("step-*"))
    with pytest.raises(RunFailed, match=r"does not fit the model: .*1.weight has the shape \(8, 12\)"):
        train(server, tmp_path, *MODEL, *chosen(("fsdp", 2)), "model.hidden_sizes=[9, 8, 8]", start=start)


def test_another_optimizer_starts_afresh_from_the_weights(server, tmp_path, trained):
    start = max(trained(("fsdp", 2), STOP).checkpoints.glob("step-*"))
    options = ["training.optimizer=sgd", "training.epochs=3"]
    runs = [
        train(server, tmp_path, *MODEL, *chosen(case), *options, start=start)
        for case in (("single", 1), ("fsdp", 2))
    ]
    assert largest_difference(*runs) < 1e-10


@pytest.fixture
def halves(trained):
    """The same run by one process and by two ranks that each saved their own slices."""
    return trained(("single", 1), STOP), trained(("fsdp", 2), STOP)


def export(run, target, *words: str) -> None:
    assert main(["export", str(run.path), "--output", str(target), *words]) == 0


def test_exported_weights_are_plain_files_whoever_wrote_the_slices(halves, tmp_path, capsys):
    for number, run in enumerate(halves):
        export(run, tmp_path / f"{number}.safetensors", "--format", "safetensors")
        plain = load_file(tmp_path / f"{number}.safetensors")
        state = checkpoint.newest(run.checkpoints)[0].tensors()["model"]
        assert plain.keys() == state.keys()
        assert all(torch.equal(plain[name], state[name]) for name in state)
    export(halves[1], tmp_path / "1.pt", "--format", "pt")
    loaded = torch.load(tmp_path / "1.pt", weights_only=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)
    assert "wrote" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["0.safetensors", "1.pt", "1.safetensors"]


def test_columns_scalars_and_empty_tensors_are_put_together_from_bytes(tmp_path):
    from lockstep.catalog.export import plain_weights
    from test_sharded_checkpoints import META, save_together, state

    whole, slices = state(3)
    (tmp_path / "c").mkdir()
    save_together(tmp_path / "c", slices, META | {"step": 5})
    plain_weights.write(tmp_path / "c" / "step-00000005", tmp_path / "out.safetensors", {"format": "pt"})
    found = load_file(tmp_path / "out.safetensors")
    assert found.keys() == whole["model"].keys()
    for name, tensor in whole["model"].items():
        assert torch.equal(found[name], tensor) and found[name].dtype == tensor.dtype


def test_the_average_and_any_kept_checkpoint_can_be_exported(server, tmp_path):
    run = train(server, tmp_path, *MODEL, *chosen(("fsdp", 2)), "training.ema_decay=0.9", "training.epochs=2")
    first, last = sorted(run.checkpoints.glob("step-*"))
    for path in (first, last):
        export(run, tmp_path / "w", "--format", "safetensors", "--step", str(int(path.name[5:])))
        state = checkpoint.open_verified(path).tensors()
        assert torch.equal(load_file(tmp_path / "w")["1.weight"], state["model"]["1.weight"])
    export(run, tmp_path / "e", "--format", "safetensors", "--ema")
    assert torch.equal(load_file(tmp_path / "e")["1.weight"], state["optimizer"]["1.weight/ema"])
    assert not torch.equal(load_file(tmp_path / "e")["1.weight"], load_file(tmp_path / "w")["1.weight"])


@pytest.mark.parametrize("way", [("single", 1), ("fsdp", 2)])
def test_the_average_of_a_weight_that_is_used_twice_stands_under_both_names(server, tmp_path, way):
    (tmp_path / "t.txt").write_text("a language model whose head and embedding are one. " * 20)
    data = f"data={{name: text, path: {tmp_path / 't.txt'}, context_length: 16}}"
    model = "model={name: gpt, dim: 16, depth: 1, heads: 2}"
    words = (data, model, "training.ema_decay=0.9", "training.global_batch_size=8")
    run = train(server, tmp_path, *words, *chosen(way), "training.epochs=1")
    export(run, tmp_path / "e", "--format", "safetensors", "--ema")
    found, state = load_file(tmp_path / "e"), checkpoint.newest(run.checkpoints)[0].tensors()
    average = state["optimizer"]["embedding.token.weight/ema"]
    assert torch.equal(found["embedding.token.weight"], average) and torch.equal(
        found["head.weight"], average
    )
    evaluated = evaluate_run(run, parameters.read(run.parameters, []))
    module = make_module(run, parameters.read(run.parameters, []))
    module.load_state_dict(found)
    splits = open_splits(run.data, ("test",), parameters.read(run.parameters, []), torch.float64)
    seen = judging.evaluate(module, *splits["test"])
    assert evaluated["ema"]["test"]["loss"] == pytest.approx(seen.loss / seen.samples, rel=1e-9)
    assert evaluated["ema"]["test"]["loss"] != pytest.approx(evaluated["final"]["test"]["loss"], rel=1e-6)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "safetensors"], "needs --output"),
        (["--format", "safetensors", "--output", "{run}/w.safetensors"], "inside the run's own folder"),
        (["--format", "pt", "--output", "{tmp}/none/w.pt"], "there is no folder"),
        (["--format", "pt", "--output", "{tmp}/w.pt", "--step", "3"], "found 3, and the checkpoints of"),
        (["--format", "pt", "--output", "{tmp}/w.pt", "--ema"], "no moving average"),
        (["--format", "in-toto", "--ema"], "--ema does not go with"),
    ],
)
def test_what_cannot_be_exported_is_refused_in_words(halves, tmp_path, capsys, words, message):
    run = halves[1]
    filled = [word.format(run=run.path, tmp=tmp_path) for word in words]
    assert main(["export", str(run.path), *filled]) == 2
    assert message in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_damaged_checkpoint_is_passed_over_and_never_exported(server, tmp_path, trained, capsys):
    run = train(server, tmp_path, *MODEL, *chosen(("fsdp", 2)), "training.epochs=2")
    first, last = sorted(run.checkpoints.glob("step-*"))
    file = last / "model-00001-of-00002.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"x")
    assert (
        main(["export", str(run.path), "--format", "safetensors", "--output", str(tmp_path / "w"), "--json"])
        == 0
    )
    assert json.loads(capsys.readouterr().out)["checkpoint"] == first.name
    (first / "state.json").unlink()
    assert main(["export", str(run.path), "--format", "safetensors", "--output", str(tmp_path / "x")]) != 0
    assert "no checkpoint" in capsys.readouterr().err and not (tmp_path / "x").exists()


def test_exporting_safetensors_imports_no_torch(halves, tmp_path):
    words = ["export", str(halves[1].path), "--format", "safetensors", "--output", str(tmp_path / "w")]
    code = f"import sys; from lockstep.cli import main; print(main({words!r}), 'torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "0 False"
    assert Path(tmp_path / "w").exists()
