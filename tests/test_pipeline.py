"""Pipelines: the same maths as the single process, whatever the schedule, the cut and the size of the last batch."""

import os
import signal

import pytest
import torch
from torch import nn

from conftest import rank_pids
from lockstep import parameters
from lockstep.catalog.run import Run
from lockstep.catalog.seal import verify_seal
from lockstep.collectives.pipeline import classic_bubble
from lockstep.engine.activations import drop_activations
from lockstep.errors import RunFailed, UsageError
from lockstep.files import read_json_lines
from lockstep.models.gpt import gpt
from lockstep.models.resnet import resnet
from lockstep.models.vit import vit
from lockstep.orchestration import combinations
from lockstep.strategies._pipeline_cut import cut, units
from lockstep.strategies.base import Batch
from lockstep.strategies.pipeline import Pipeline
from marks import slow
from own_models import passes_told
from pipeline_ranks import alone, batch_of, difference, together, whole
from training import bits, largest_difference, results, train

SCHEDULES = [
    ("gpipe", None), ("1f1b", None), ("interleaved", 2), ("zero_bubble", None), ("zero_bubble", 2),
    ("zero_bubble_v", None),
]  # fmt: skip
TENSOR = "distributed.strategy={name: tensor, data_parallel: 3}"
PIPELINE = "distributed.strategy=pipeline"
DEEP = "model.hidden_sizes=[16, 14, 12, 16, 13, 11, 12]"
AVERAGED = "training.ema_decay=0.9"
SINGLE = ("distributed.strategy=single", "distributed.world_size=1")


def deep(width=7, depth=9, classes=4):
    torch.manual_seed(5)
    layers = [nn.Linear(6, width)]
    for _ in range(depth - 2):
        layers += [nn.ReLU(), nn.Linear(width, width)]
    return nn.Sequential(*layers, nn.GELU(), nn.Linear(width, classes)).double()


@pytest.mark.parametrize("ranks", [1, 2, 3, 4])
@pytest.mark.parametrize(("schedule", "stages"), SCHEDULES)
def test_every_schedule_has_the_gradient_of_the_single_process(ranks, schedule, stages):
    batches = [batch_of(11), batch_of(12), batch_of(2)]  # the last has fewer rows than micro-batches
    single = alone(deep(), batches)
    found = together(ranks, deep(), batches, schedule=schedule, stages_per_rank=stages, micro_batches=5)
    assert difference(found, single) < 1e-10
    last = [rank for rank in found if rank.strategy.counts]
    assert len(last) == 1  # samples are counted once
    for mine, theirs in zip(last[0].outcomes, single.outcomes, strict=True):
        assert mine.loss == pytest.approx(theirs.loss, abs=1e-12)
        assert mine.correct == theirs.correct
    for rank in found:
        assert rank.norms == pytest.approx(single.norms, abs=1e-12)  # every rank knows the whole norm
    assert torch.allclose(last[0].logits, single.logits, atol=1e-12)


def test_clipping_sees_the_gradients_of_all_stages():
    batches = [batch_of(9, seed=step) for step in range(3)]
    single = alone(deep(), batches, clip=0.01)
    assert min(single.norms) > 0.01
    assert difference(together(3, deep(), batches, clip=0.01, schedule="zero_bubble"), single) < 1e-10


class Tied(nn.Sequential):
    """The first layer's weights are the last one's as well, and a norm between them has statistics."""

    def __init__(self):
        torch.manual_seed(1)
        first, last = nn.Linear(6, 6), nn.Linear(6, 6, bias=False)
        last.weight = first.weight
        super().__init__(first, nn.Tanh(), nn.Linear(6, 8), nn.LayerNorm(8), nn.Linear(8, 6), nn.Tanh(), last)


@pytest.mark.parametrize(
    ("schedule", "ranks"), [("1f1b", 2), ("1f1b", 3), ("zero_bubble", 4), ("zero_bubble_v", 2)]
)
def test_weights_that_two_stages_share_stay_one(schedule, ranks):
    batches = [batch_of(10, classes=6, seed=step) for step in range(3)]
    single = alone(Tied().double(), batches, clip=0.1)
    found = together(ranks, Tied().double(), batches, clip=0.1, schedule=schedule)
    assert difference(found, single) < 1e-10
    holders = [dict(rank.strategy.module.named_parameters()) for rank in (found[0], found[-1])]
    if schedule != "zero_bubble_v":  # there one rank has both
        assert torch.equal(holders[0]["0.weight"], holders[1]["0.weight"])
        assert torch.equal(holders[0]["0.weight"], found[-1].strategy.module.state_dict()["6.weight"])
    assert found[0].strategy.describe()["shared"] == ["0.weight"]


@pytest.mark.parametrize(
    ("schedule", "stages"), [("1f1b", None), ("zero_bubble", 2), ("zero_bubble_v", None)]
)
def test_a_language_model_goes_through_with_its_embedding_shared_by_the_ends(schedule, stages):
    torch.manual_seed(3)
    model = gpt((6,), 11, dim=8, depth=2, heads=2).double()
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(11, (9, 7), generator=generator)
    batches = [Batch(tokens[:, :-1], tokens[:, 1:].contiguous(), 1.0, 9) for _ in range(2)]
    single = alone(model, batches, clip=0.5)
    found = together(2, model, batches, clip=0.5, schedule=schedule, stages_per_rank=stages, micro_batches=4)
    assert difference(found, single) < 1e-10
    assert "head.weight" in whole(found) and found[0].strategy.describe()["shared"] == [
        "embedding.token.weight"
    ]


@pytest.mark.parametrize("schedule", ["1f1b", "zero_bubble", "zero_bubble_v"])
@pytest.mark.parametrize("name", ["resnet", "vit"])
def test_the_models_of_images_go_through(name, schedule):
    torch.manual_seed(4)
    model = {
        "resnet": lambda: resnet((8, 8), 4, width=4, stem="cifar"),
        "vit": lambda: vit((8, 8), 4, patch_size=4, dim=8, depth=2, heads=2),
    }[name]().double()
    batches = [batch_of(9, (8, 8)), batch_of(5, (8, 8))]  # of the second, one micro-batch is a single row
    found = together(2, model, batches, schedule=schedule, micro_batches=3)
    assert difference(found, alone(model, batches)) < 1e-10


def test_micro_batches_can_be_given_by_their_size():
    def of_three(strategy):
        strategy.passes.choose("fp64", 3)

    batches = [batch_of(11), batch_of(2)]
    found = together(2, deep(), batches, prepare=of_three)
    assert found[0].strategy.describe()["micro_batches"] == 4
    assert difference(found, alone(deep(), batches)) < 1e-10


def test_the_forecast_counts_the_weights_that_each_rank_keeps():
    found = together(3, Tied().double(), [batch_of(8, classes=6)], schedule="1f1b")
    options = {"schedule": "1f1b", "stages_per_rank": None}
    with torch.device("meta"):
        shares = [Pipeline.share(Tied(), options, 3, rank) for rank in range(3)]
    for rank, share in zip(found, shares, strict=True):
        held = {id(p): p.numel() for p in rank.strategy.module.parameters()}
        assert sum(share.values()) == sum(held.values())


class Once(nn.Module):
    """Uses its weights only when told to."""

    def __init__(self, width):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(width))

    def forward(self, x, scaled):
        return x * self.scale if scaled else x + 0


class Awkward(nn.Module):
    """A part whose weights are used twice, by their module and beside it, and whose rectifier works in place."""

    def __init__(self, width, in_place):
        super().__init__()
        self.in_place = in_place
        self.twice, self.beside = nn.Linear(width, width), nn.Linear(width, width)
        self.scale = nn.Parameter(torch.ones(width))
        self.attention = nn.MultiheadAttention(width, 2, batch_first=True)
        self.never = nn.Linear(3, 3)
        self.once = Once(width)

    def forward(self, x):
        x = self.once(self.once(x.tanh_() if self.in_place else x.tanh(), True), False)
        x = torch.relu_(self.twice(x)) * self.scale
        x = self.twice(x) + torch.nn.functional.linear(self.beside(x), self.beside.weight)
        return x + self.attention(x[:, None], x[:, None], x[:, None])[0][:, 0]


@pytest.mark.parametrize("recompute", [False, pytest.param(True, marks=pytest.mark.slow)])  # it imports more
def test_halves_of_the_backward_pass_are_right_however_weights_are_used(recompute):
    torch.manual_seed(2)
    model = nn.Sequential(
        nn.Linear(6, 8),
        Awkward(8, not recompute),
        nn.LayerNorm(8),
        Awkward(8, not recompute),
        nn.Linear(8, 4),
    ).double()
    batches = [batch_of(9), batch_of(7)]
    single = alone(model, batches)
    if recompute:
        drop_activations(model)
    assert difference(together(4, model, batches, schedule="zero_bubble", micro_batches=3), single) < 1e-10


def test_half_precision_of_the_passes_goes_from_stage_to_stage():
    def halved(strategy):
        strategy.passes.choose("bf16", None)

    model, batches = deep().float(), [batch_of(9)]
    batches[0].features.data = batches[0].features.float()
    single = alone(model, batches)
    found = together(3, model, batches, prepare=halved, micro_batches=3)
    assert 0 < abs(found[-1].outcomes[0].loss - single.outcomes[0].loss) < 0.02


def test_stages_are_cut_by_cost_and_none_is_empty():
    assert cut([1, 1, 1, 9], 2) == [range(3), range(3, 4)]
    assert cut([9, 1, 1, 1], 4) == [range(1), range(1, 2), range(2, 3), range(3, 4)]
    assert cut([1] * 6, 3) == [range(2), range(2, 4), range(4, 6)]
    torch.manual_seed(0)
    for _ in range(200):
        costs = torch.randint(1, 50, (int(torch.randint(1, 9, ())),)).tolist()
        stages = int(torch.randint(1, len(costs) + 1, ()))
        found = cut(costs, stages)
        assert all(len(span) for span in found)
        assert [place for span in found for place in span] == list(range(len(costs)))
        assert max(sum(costs[i] for i in span) for span in found) == cheapest(costs, stages)


def cheapest(costs, stages):
    """By trying every cut."""
    if stages == 1:
        return sum(costs)
    return min(
        max(sum(costs[stop:]), cheapest(costs[:stop], stages - 1)) for stop in range(stages - 1, len(costs))
    )


def test_what_has_no_weights_goes_with_what_has():
    model = nn.Sequential(
        nn.Flatten(), nn.Sequential(nn.Linear(2, 2), nn.ReLU()), nn.Dropout(0.1), nn.Linear(2, 2)
    )
    assert [unit.names for unit in units(model)] == [("0", "1.0", "1.1", "2"), ("3",)]


def test_stages_can_be_cut_by_measured_time():
    class Slow(nn.Linear):
        def forward(self, x):
            for _ in range(60):
                x = x + 0 * super().forward(x)
            return super().forward(x)

    torch.manual_seed(0)
    model = nn.Sequential(*[nn.Linear(6, 6) for _ in range(4)], Slow(6, 6), Slow(6, 4)).double()
    model[5] = nn.Linear(6, 4).double()
    batches = [batch_of(16)]
    found = together(2, model, batches, balance="time")
    assert difference(found, alone(model, batches)) < 1e-10
    cuts = {tuple(tuple(s["parts"]) for s in rank.strategy.describe()["stages"]) for rank in found}
    assert len(cuts) == 1  # the same on every rank
    assert "4" in cuts.pop()[1]  # and the slow part is not with the four that come before it


def test_what_cannot_be_cut_is_refused_in_words():
    batches = [batch_of(4)]
    with pytest.raises(
        RunFailed, match=r"need 4 stages, and the model has 3 parts with weights.*world_size of at most 1"
    ):
        together(2, deep(depth=3), batches, schedule="interleaved")

    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(6, 4)

        def forward(self, x):
            return self.layer(x)

    with pytest.raises(RunFailed, match=r"the model is Own, and only a sequence can be cut.*blocks\(\)"):
        together(1, Own().double(), batches)

    class Outside(Own):
        def __init__(self):
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(4))

        def blocks(self):
            return [self.layer]

    with pytest.raises(RunFailed, match="bias belongs to none of the model's parts"):
        together(1, Outside().double(), batches)

    class More(nn.Sequential):
        def forward(self, x):
            return super().forward(x) + 1

    with pytest.raises(
        RunFailed, match="the parts of More one after another do not give what the model itself gives"
    ):
        together(1, More(nn.Linear(6, 4)).double(), batches)
    with pytest.raises(RunFailed, match="returned tuple for 2 samples"):
        together(
            1, nn.Sequential(nn.LSTM(6, 4, batch_first=True), nn.Linear(4, 4)).double(), [batch_of(4, (3, 6))]
        )
    with pytest.raises(RunFailed, match="found 3 with schedule 1f1b, allowed: 1"):
        together(1, deep(), batches, stages_per_rank=3)
    with pytest.raises(RunFailed, match="micro_batch_size: found 2 beside 4"):
        together(1, deep(), batches, micro_batches=4, prepare=lambda s: s.passes.choose("fp64", 2))


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["distributed.strategy.schedule=gpipe", "distributed.strategy.stages_per_rank=2"],
            "found 2 with schedule gpipe",
        ),
        (["distributed.strategy.micro_batches=4", "training.micro_batch_size=3"], "found 3 beside 4"),
        (["training.compile=true"], "training.compile: with pipeline the parts"),
        ([TENSOR], "found 3 for 2 ranks, allowed: 1, 2"),
    ],
)
def test_what_does_not_go_together_is_refused_before_anything_starts(words, message):
    with pytest.raises(UsageError, match=message):
        combinations.check(parameters.read(None, words if TENSOR in words else [PIPELINE, *words]))


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(server, tmp_path_factory.mktemp("single"), DEEP, AVERAGED, *SINGLE)


@pytest.mark.parametrize(
    ("ranks", "schedule"), [pytest.param(2, "1f1b", marks=pytest.mark.slow), (4, "zero_bubble_v")]
)
def test_a_whole_run_is_that_of_the_single_process(server, tmp_path, reference, ranks, schedule):
    words = (
        PIPELINE,
        f"distributed.strategy.schedule={schedule}",
        f"distributed.world_size={ranks}",
        DEEP,
        AVERAGED,
    )
    run = train(server, tmp_path, *words)
    assert largest_difference(run, reference) < 1e-10
    for mine, theirs in zip(results(run)["epochs"], results(reference)["epochs"], strict=True):
        for split in ("train", "validation"):
            assert mine[split]["samples"] == theirs[split]["samples"]
            assert mine[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-10)
            assert mine[split]["accuracy"] == pytest.approx(theirs[split]["accuracy"], abs=1e-12)
    lines = [read_json_lines(run.metrics_file(rank)) for rank in range(ranks)]
    counting = [sum(line.get("samples", 0) for line in own) for own in lines]
    assert sorted(counting) == [0] * (ranks - 1) + [3 * 148]
    for own in lines:
        described = own[0]["strategy"]["bubble"]
        assert described["classic"] == classic_bubble(ranks, 8)
        assert all(0 <= line["bubble"] <= 1 for line in own if line["kind"] == "step")
        assert not any(line["replicated"] for line in own if "replicated" in line)
    bubble = results(run)["training"]["bubble"]
    assert bubble["classic"] == classic_bubble(ranks, 8) and 0 < bubble["measured"] <= 1


def test_a_checkpoint_goes_on_under_any_strategy_and_back(server, tmp_path, reference):
    middle = reference.checkpoints / "step-00000008"
    words = (PIPELINE, "distributed.world_size=3", DEEP, AVERAGED, "training.max_grad_norm=100")
    piped = train(server, tmp_path, *words, "training.epochs=2", start=middle)
    assert len(list(max(piped.checkpoints.glob("step-*")).glob("model-*"))) == 3  # each rank its own
    rest = train(
        server,
        tmp_path,
        "distributed.world_size=2",
        DEEP,
        AVERAGED,
        start=max(piped.checkpoints.glob("step-*")),
    )
    assert largest_difference(rest, reference) < 1e-10


def test_draws_depend_on_the_part_of_the_model_and_not_on_the_ranks(server, tmp_path):
    words = (PIPELINE, DEEP, "model.dropout=0.3", "training.epochs=1", "training.precision=fp32")
    found = {
        bits(train(server, tmp_path, *words, f"distributed.world_size={ranks}", *more))
        for ranks, more in ((2, ()), (3, ("distributed.strategy.schedule=gpipe",)))
    }
    assert len(found) == 1


@pytest.mark.parametrize("schedule", [slow("1f1b"), "zero_bubble"])
def test_layers_whose_activations_are_dropped_are_computed_again_to_the_same_bits(server, tmp_path, schedule):
    words = ("model=own_models:telling", "model.dropout=0.3", "training.epochs=1", "distributed.world_size=2")
    words = (*words, f"distributed.strategy={{name: pipeline, schedule: {schedule}, micro_batches: 2}}")
    words = (*words, "training.precision=fp32") + (
        ("distributed.world_size=1",) if "zero" in schedule else ()
    )
    plain = train(server, tmp_path, *words)
    again = train(server, tmp_path, *words, "training.activation_checkpointing=true")
    assert bits(again) == bits(plain)
    passes = [
        sum(len(passes_told(run, rank)) for rank in range(2 if schedule == "1f1b" else 1))
        for run in (plain, again)
    ]
    assert passes[1] >= 1.5 * passes[0], passes  # all but what no gradient needs: the last layers of a run


@pytest.mark.slow
@pytest.mark.parametrize(
    "strategy", ["{name: pipeline, schedule: zero_bubble}", "{name: tensor, data_parallel: 1}"]
)
def test_kill_9_of_a_rank_then_resume_ends_in_the_same_bits(command, strategy):
    words = (
        "data=synthetic", "data.num_samples=2001", "training.epochs=6", "checkpoint.every_steps=9",
        "model.hidden_sizes=[32, 32, 32, 32]", f"distributed.strategy={strategy}", "distributed.world_size=2",
    )  # fmt: skip
    command.run("--run-id", "whole", *words)
    process = command.start_and_wait_for_step("r", 20, *words)
    os.kill(rank_pids(command.catalog, "r")[1], signal.SIGKILL)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 1 and "rank 1 was killed by SIGKILL" in output
    command.run("--resume", "r")
    runs = [Run((command.catalog / name).resolve()) for name in ("whole", "r")]
    assert bits(runs[0]) == bits(runs[1])
    assert verify_seal(runs[1]) == []


@pytest.mark.slow
def test_ctrl_c_stops_all_stages_after_the_same_step(command):
    process = command.start_and_wait_for_step(
        "r", 10, "data=synthetic", "data.num_samples=3001", "training.epochs=300", "distributed.world_size=3",
        "model.hidden_sizes=[32, 32, 32, 32]", "distributed.strategy=pipeline", "checkpoint.every_epochs=1000",
    )  # fmt: skip
    os.killpg(process.pid, signal.SIGINT)
    output, _ = process.communicate(timeout=100)
    assert process.returncode == 130, output
    run = Run((command.catalog / "r").resolve())
    ends = [read_json_lines(run.metrics_file(rank))[-1] for rank in range(3)]
    assert {end["kind"] for end in ends} == {"end"} and len({end["step"] for end in ends}) == 1
