"""What a model does is observed, not guessed from names: the caveats, refusals and comparisons that follow from it."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

import odd_models
from lockstep import parameters
from lockstep.catalog.run import Run
from lockstep.engine.batches import Batches
from lockstep.engine.fitting import check_model
from lockstep.engine.observation import observe
from lockstep.errors import RunFailed
from lockstep.files import read_json
from lockstep.strategies._module_state import ModuleState, evaluating, seed_all
from lockstep.strategies._observed import shared_memory
from lockstep.strategies.base import Shard
from marks import slow
from training import bits, evaluate, final_state, largest_difference, train

SINGLE = ("distributed.strategy=single", "distributed.world_size=1")
WANTED = parameters.read(None, ["data=synthetic", "training.global_batch_size=20"])


def data(rows: int = 60) -> Batches:
    generator = torch.Generator().manual_seed(3)
    features = torch.randn(rows, 12, generator=generator)
    return Batches(features, torch.randint(5, (rows,), generator=generator), 0, 20, Shard(0, 1, 2))


def seen_of(function, **options):
    seed_all(1)
    return observe(function((12,), 5, **options), data(), WANTED)[0]


@pytest.mark.parametrize("source", ["functional", "in place", "numpy", "python", "own"])
def test_draws_are_seen_wherever_they_come_from(source):
    if source == "own":
        assert "2.generator" in seen_of(odd_models.noisy, source=source).generators
    else:
        assert seen_of(odd_models.noisy, source=source).draws == ["2"]


def test_what_a_pass_changes_is_seen_and_a_plain_model_does_none_of_it():
    plain = seen_of(lambda shape, classes: odd_models.three(shape[0], classes))
    kept = {"passes", "seconds", "trained", "compared_in_training"}
    assert not any(value for name, value in plain.record().items() if name not in kept)
    assert seen_of(odd_models.normed).buffers == ["1.running_mean", "1.running_var", "1.num_batches_tracked"]
    assert seen_of(odd_models.statistics).mixes_samples
    assert seen_of(odd_models.teacher).written == ["teacher.weight", "teacher.bias"]
    assert not seen_of(odd_models.teacher).written_by_sample
    first = seen_of(odd_models.first_batch)
    assert first.written_by_sample == first.written_in_evaluation == ["shift"]
    assert first.attributes == ["FirstBatch.ready"]
    assert seen_of(odd_models.frozen_norm).evaluation_modes == ["1"]
    assert seen_of(odd_models.hooked).gradient_hooks == ["4.weight"]
    assert seen_of(odd_models.hooked, after=True).gradient_hooks == ["4.weight"]
    assert seen_of(odd_models.transposed).shared_memory == [["0.weight", "2.weight"]]
    assert {name.rpartition(".")[0] for name in seen_of(odd_models.experts, count=8).unused} >= {"experts.0"}


def test_views_of_one_buffer_that_do_not_overlap_are_apart():
    flat, model = torch.zeros(24), nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 3, bias=False))
    model[0].weight.data, model[1].weight.data = flat[:12].view(4, 3), flat[12:].view(3, 4)
    assert shared_memory(model) == []
    model[1].weight.data = flat[11:23].view(3, 4)
    assert shared_memory(model) == [["0.weight", "1.weight"]]


class Changing(nn.Module):
    """Changes everything that a pass can change."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)
        self.register_buffer("seen", torch.zeros(5))
        self.register_buffer("cache", None, persistent=False)
        self.calls, self.history, self.table = 0, [], np.zeros(3)
        self.generator = torch.Generator().manual_seed(5)
        self.norm = nn.BatchNorm1d(5).eval()

    def forward(self, x):
        self.calls += 1
        self.history.append(self.calls)
        self.table += 1
        self.seen = self.seen + 1  # another tensor in its place
        self.cache = torch.ones(2)
        self.layer.weight.data.mul_(2)
        self.fresh = random.random() + np.random.rand() + float(torch.rand((), generator=self.generator))
        result = self.norm(self.layer(x)) + torch.rand(())
        self.norm.train()
        return result


def test_a_check_of_the_model_leaves_no_trace_of_itself():
    seed_all(7)
    model, batch = Changing(), data()(0)
    weight, buffer, generator = model.layer.weight.clone(), model.seen, model.generator.get_state()
    check_model(model, batch, WANTED, 5)
    assert torch.equal(model.layer.weight, weight) and model.seen is buffer and not buffer.any()
    assert model.cache is None and model.calls == 0 and model.history == [] and not model.table.any()
    assert not hasattr(model, "fresh") and not model.norm.training and model.training
    assert torch.equal(model.generator.get_state(), generator)
    drawn = torch.rand(()), np.random.rand(), random.random()
    seed_all(7)
    Changing()
    assert drawn == (torch.rand(()), np.random.rand(), random.random())


def test_modes_come_back_part_by_part():
    model = nn.Sequential(nn.Dropout(), nn.BatchNorm1d(3).eval())
    with evaluating(model):
        assert not any(part.training for part in model)
    assert [part.training for part in model] == [True, False]
    state = ModuleState(model)
    model.eval()
    state.restore()
    assert [part.training for part in model] == [True, False]


@pytest.mark.parametrize(
    "model", ["with_helper", *map(slow, ["lazy", "centred", "always_noisy", "late_writer"])]
)
def test_a_model_that_is_odd_and_right_is_trained(server, tmp_path, model):
    words = (f"model=odd_models:{model}", "training.epochs=1", "distributed.strategy=allreduce")
    run = train(server, tmp_path, *words)
    assert bits(run) == bits(train(server, tmp_path, *words))
    if model in ("with_helper", "late_writer"):
        assert largest_difference(run, train(server, tmp_path, *words, *SINGLE)) < 1e-10


def test_a_part_that_was_left_in_evaluation_mode_stays_there(server, tmp_path):
    run = train(server, tmp_path, "model=odd_models:frozen_norm", "training.epochs=2", *SINGLE)
    state = final_state(run)
    assert not state["model/1.running_mean"].any() and state["model/1.num_batches_tracked"] == 0


def test_a_layer_that_sets_itself_from_its_first_batch_is_set_by_training(server, tmp_path):
    run = train(server, tmp_path, "model=odd_models:first_batch", "training.epochs=1", *SINGLE)
    assert "FirstBatch.ready" in run.events.read_text()
    first = read_json(run.plan)["model"]
    assert first["written_by_sample"] == ["shift"]
    with pytest.raises(RunFailed, match=r"sets shift from the samples"):
        train(server, tmp_path, "model=odd_models:first_batch", "training.epochs=1")


@pytest.mark.parametrize("source", ["numpy", slow("python"), slow("own")])
def test_draws_from_any_generator_repeat_and_a_constructor_draws_alike_everywhere(server, tmp_path, source):
    if source != "own":
        model = f"model={{name: odd_models:projected, source: {source}}}"
        both = [train(server, tmp_path, model, "training.epochs=1", *ranks) for ranks in (SINGLE, ())]
        assert largest_difference(*both) < 1e-10  # also the evaluator makes the same constant
        evaluate(server, both[1])
    model = f"model={{name: odd_models:noisy, source: {source}}}"
    one, other = (train(server, tmp_path, model, "training.epochs=1") for _ in range(2))
    assert bits(one) == bits(other)


def test_a_constant_that_each_process_draws_for_itself_is_refused(server, tmp_path):
    with pytest.raises(RunFailed, match=r"makes constant otherwise in each process"):
        train(server, tmp_path, "model={name: odd_models:projected, source: entropy}", "training.epochs=1")


REFUSED = {
    "a plan that pairs columns": ("gated", "tensor", "checked on"),
    "hooks, fsdp": ("hooked", "fsdp", r"gradient of 4\.weight has hooks"),
    "hooks, tensor": (
        "{name: odd_models:hooked, after: true}",
        "tensor",
        r"gradient of 4\.weight has hooks",
    ),
    "writes": ("teacher", "fsdp", r"writes to teacher\.weight"),
    "memory, fsdp": ("transposed", "fsdp", r"0\.weight and 2\.weight share memory"),
    "memory, servers": ("transposed", "parameter_server", r"0\.weight and 2\.weight share memory"),
    "draws between parts": ("between", "pipeline", "do not give what the model itself gives"),
}
REFUSED |= {
    "writes that come late, fsdp": ("late_writer", "fsdp", r"wrote to take\.weight, and fsdp lets go"),
    "writes that come late, servers": (
        "late_writer",
        "parameter_server",
        r"wrote to take\.weight, and the servers",
    ),
    "a plan that is wrong in training": ("trained_otherwise", "tensor", "checked on"),
    "gradients that stop between parts": ("detached", "pipeline", "checked on"),
}
QUICK = ("a plan that pairs columns", "writes", "draws between parts")


@pytest.mark.parametrize(
    "case", [case if case in QUICK else pytest.param(case, marks=pytest.mark.slow) for case in REFUSED]
)
def test_what_a_strategy_cannot_keep_is_refused_by_name(server, tmp_path, case):
    model, strategy, words = REFUSED[case]
    model = model if model.startswith("{") else f"odd_models:{model}"
    with pytest.raises(RunFailed, match=words):
        train(server, tmp_path, f"model={model}", f"distributed.strategy={strategy}", "training.epochs=2")
    if "late" in case:
        return
    assert Run(max(tmp_path.glob("run-*"))).checkpoints.exists() is False or not [
        *Run(max(tmp_path.glob("run-*"))).checkpoints.glob("step-*")
    ]


@pytest.mark.slow
@pytest.mark.parametrize("model", ["hooked", "teacher", "transposed"])
@pytest.mark.parametrize("strategy", ["ddp", "allreduce", "naive"])
def test_strategies_that_keep_the_model_whole_are_right_about_it(server, tmp_path, model, strategy):
    own = f"model=odd_models:{model}"
    alone = train(server, tmp_path, own, "training.epochs=2", *SINGLE)
    run = train(server, tmp_path, own, "training.epochs=2", f"distributed.strategy={strategy}")
    assert largest_difference(alone, run) < 1e-10


MIXED = [("experts", "fsdp"), ("experts_in_blocks", "fsdp"), ("layer_drop", "fsdp")]
MIXED += [("experts_in_blocks", "{name: fsdp, sharding: hybrid, ranks_per_group: 1}")]
MIXED += [("experts_with_a_plan", "{name: tensor, data_parallel: 2}")]


@pytest.mark.parametrize(
    ("model", "strategy"),
    [MIXED[1], *(pytest.param(*case, marks=pytest.mark.slow) for case in (MIXED[0], *MIXED[2:]))],
)
def test_sharding_is_right_where_ranks_leave_out_different_parameters(server, tmp_path, model, strategy):
    small = (f"model=odd_models:{model}", "training.epochs=1", "training.global_batch_size=4")
    small += ("training.micro_batch_size=1",) if model == "experts_in_blocks" else ()
    run = train(server, tmp_path, *small, f"distributed.strategy={strategy}")
    # layer_drop draws by rank, and so is not what one process draws
    base = () if model == "layer_drop" else ("distributed.strategy=allreduce",)
    assert largest_difference(run, train(server, tmp_path, *small, *base)) < 1e-10


@pytest.mark.slow
def test_a_block_that_only_some_ranks_gather_ends_the_run_in_that_step(server, tmp_path):
    small = ("model=odd_models:late", "training.epochs=3", "training.global_batch_size=2")
    with pytest.raises(RunFailed, match=r"rank 0 gathers the weights of layers\.\d where rank 1 gathers"):
        train(server, tmp_path, *small, "distributed.strategy=fsdp")
    chosen = "{name: fsdp, gathered_with_root: [layers.0, layers.1, layers.2]}"
    run = train(server, tmp_path, *small, f"distributed.strategy={chosen}")
    assert largest_difference(run, train(server, tmp_path, *small, "distributed.strategy=allreduce")) < 1e-10


@pytest.mark.parametrize("model", ["reused", pytest.param("layer_twice", marks=pytest.mark.slow)])
def test_a_pipeline_goes_through_a_module_as_often_as_the_model_does(server, tmp_path, model):
    own = (f"model=odd_models:{model}", "training.epochs=1")
    run = train(server, tmp_path, *own, "distributed.strategy=pipeline")
    assert largest_difference(train(server, tmp_path, *own, *SINGLE), run) < 1e-10


@pytest.mark.slow
def test_a_rank_imports_neither_sharded_tensors_nor_the_compiler_unless_its_strategy_does():
    code = (
        "import sys; import lockstep.engine.rank, lockstep.engine.forecast, lockstep.engine.evaluation; "
        "print([name for name in ('torch.distributed.tensor', 'torch._dynamo', 'sympy') if name in sys.modules])"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=True, capture_output=True, encoding="utf-8", timeout=100
    )
    assert found.stdout.strip() == "[]"
