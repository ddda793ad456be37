"""Tensor parallelism, alone and in a grid with sharded groups: the same maths as the single process."""

import pytest
import torch
from torch import nn

from lockstep.catalog.run import Run
from lockstep.errors import RunFailed
from lockstep.files import read_json_lines
from lockstep.models.gpt import gpt
from lockstep.models.mlp import mlp
from lockstep.orchestration.plan import per_rank_batch
from lockstep.parameters import Choice
from lockstep.strategies._tensor_draws import Draws
from lockstep.strategies._tensor_plan import Way, check_sizes, held, plan_of
from marks import slow
from own_models import passes_told
from training import bits, final_state, largest_difference, results, train

SINGLE = ("distributed.strategy=single", "distributed.world_size=1")
TENSOR = "distributed.strategy=tensor"
SIZES = "model.hidden_sizes=[16, 12, 8, 4]"  # two pairs, and a last layer that every rank holds whole
CLIPPED = "training.max_grad_norm=0.2"
AVERAGED = "training.ema_decay=0.9"


def grid(ranks, groups):
    return (TENSOR, f"distributed.strategy.data_parallel={groups}", f"distributed.world_size={ranks}")


def lines(run, rank=0):
    return [line for line in read_json_lines(run.metrics_file(rank)) if line["kind"] == "step"]


@pytest.fixture(scope="module")
def reference(server, tmp_path_factory):
    return train(server, tmp_path_factory.mktemp("single"), SIZES, CLIPPED, AVERAGED, *SINGLE)


@pytest.mark.parametrize(("ranks", "groups"), [(2, 1), slow(4, 1), slow(4, 2)])
def test_a_whole_run_is_that_of_the_single_process(server, tmp_path, reference, ranks, groups):
    pieces = "training.micro_batch_size=4" if groups > 1 else "training.micro_batch_size=null"
    run = train(server, tmp_path, SIZES, CLIPPED, AVERAGED, pieces, *grid(ranks, groups))
    assert largest_difference(run, reference) < 1e-10
    norms, expected = ([line["grad_norm"] for line in lines(one)] for one in (run, reference))
    assert norms == pytest.approx(expected, abs=1e-12)
    assert max(expected) > 0.2  # so that it was clipped
    for mine, theirs in zip(results(run)["epochs"], results(reference)["epochs"], strict=True):
        for split in ("train", "validation"):
            assert mine[split]["samples"] == theirs[split]["samples"]  # each sample counted once
            assert mine[split]["loss"] == pytest.approx(theirs[split]["loss"], abs=1e-10)
            assert mine[split]["accuracy"] == pytest.approx(theirs[split]["accuracy"], abs=1e-12)
    described = read_json_lines(run.metrics_file(0))[0]["strategy"]
    assert described["tensor_parallel"] == ranks // groups
    assert described["share_held"] < 1.3 / ranks
    assert all(line["wire_bytes"] > 0 for line in lines(run))
    starts = [read_json_lines(run.metrics_file(rank))[0]["parameter_digests"] for rank in range(ranks)]
    whole = read_json_lines(reference.metrics_file(0))[0]["parameter_digests"]
    for name, value in whole.items():  # those of the slices add up to that of the whole, whoever holds copies
        assert (sum(own.get(name, 0) for own in starts) - value) % 2**64 == 0, name


@pytest.mark.parametrize(("ranks", "groups"), [(2, 1), slow(4, 2)])
def test_a_parameter_that_is_a_single_number_is_held_whole(server, tmp_path, ranks, groups):
    words = ("model=own_models:tempered", "training.epochs=2", "training.max_grad_norm=0.3")
    alone = train(server, tmp_path, *words, *SINGLE)
    run = train(server, tmp_path, *words, *grid(ranks, groups))
    assert largest_difference(run, alone) < 1e-10


@pytest.mark.slow
def test_groups_with_fewer_micro_batches_than_others_go_through_as_many_passes(server, tmp_path):
    words = ("training.global_batch_size=13", "training.epochs=1", SIZES, "distributed.timeout_seconds=20")
    alone = train(server, tmp_path, *words, *SINGLE)
    run = train(server, tmp_path, *words, "training.micro_batch_size=6", *grid(4, 2))
    assert largest_difference(run, alone) < 1e-10


@pytest.mark.slow
def test_layers_that_are_the_same_weights_stay_so_where_they_are_cut_alike(server, tmp_path):
    words = ("model=own_models:tied", "training.epochs=1")
    alone = train(server, tmp_path, *words, *SINGLE)
    run = train(server, tmp_path, *words, *grid(2, 1))
    assert largest_difference(run, alone) < 1e-10
    rest = [
        train(server, tmp_path, *words, "training.epochs=2", *way, start=newest(run))
        for way in (SINGLE, grid(2, 1))
    ]
    assert largest_difference(*rest) < 1e-10
    with pytest.raises(RunFailed, match=r"0.weight and 4.weight are one parameter.*colwise, whole"):
        train(server, tmp_path, *words, "model.plan=apart", *grid(2, 1))


@pytest.mark.slow
def test_blocks_that_are_computed_again_draw_as_they_did(server, tmp_path, words_file):
    data = f"data={{name: text, path: {words_file}, context_length: 16}}"
    model = "model={name: gpt, dim: 16, depth: 2, heads: 4, dropout: 0.3}"
    words = (data, model, "training.global_batch_size=8", "training.epochs=1", *grid(2, 1))
    plain = train(server, tmp_path, *words)
    assert bits(train(server, tmp_path, *words, "training.activation_checkpointing=true")) == bits(plain)


@pytest.mark.slow
@pytest.mark.parametrize("how", [(2, 1), (4, 2)])
def test_layers_that_are_computed_again_draw_as_they_did_wherever_their_runs_begin(server, tmp_path, how):
    words = (SIZES, "model.dropout=0.3", "training.epochs=1", "training.micro_batch_size=4", *grid(*how))
    # Of five layers 1, 2 and 2 are computed again together, and 2, 2 and 1 are cut together.
    plain = train(server, tmp_path, *words)
    assert bits(train(server, tmp_path, *words, "training.activation_checkpointing=true")) == bits(plain)


def test_each_micro_batch_draws_anew(server, tmp_path):
    words = (
        "model=own_models:telling",
        "model.dropout=0.5",
        "training.epochs=1",
        "training.global_batch_size=16",
    )
    run = train(server, tmp_path, *words, "training.micro_batch_size=4", *grid(2, 1))
    told = [passes_told(run, rank)[0:8:2] for rank in (0, 1)]  # of the first step, behind the first layer
    assert len({*told[0], *told[1]}) == 8


def test_a_checkpoint_goes_on_under_any_strategy_and_back(server, tmp_path, reference):
    words = (SIZES, CLIPPED, AVERAGED)
    middle = reference.checkpoints / "step-00000008"
    cut = train(server, tmp_path, *words, *grid(4, 2), "training.epochs=2", start=middle)
    rest = train(server, tmp_path, *words, "distributed.world_size=3", start=newest(cut))
    assert largest_difference(rest, reference) < 1e-10


def newest(run: Run):
    return max(run.checkpoints.glob("step-*"))


@pytest.fixture
def words_file(tmp_path):
    file = tmp_path / "text.txt"
    file.write_text("the ranks go in step and each has its columns of every layer. " * 12)
    return file


def gpt_words(file):
    return (
        "data=text", f"data.path={file}", "data.context_length=12", "model=gpt", "model.dim=12", "model.heads=2",
        "model.depth=2", "training.epochs=1", "training.precision=fp64", "training.global_batch_size=20",
    )  # fmt: skip


@pytest.mark.parametrize(("ranks", "groups"), [(2, 1), pytest.param(4, 2, marks=pytest.mark.slow)])
def test_attention_is_cut_by_heads_and_a_language_model_stays_the_same(
    server, tmp_path, words_file, ranks, groups
):
    words = (*gpt_words(words_file), CLIPPED)
    alone = train(server, tmp_path, *words, *SINGLE)
    run = train(server, tmp_path, *words, *grid(ranks, groups))
    assert largest_difference(run, alone) < 1e-10
    assert "model/head.weight" in final_state(run)  # shared with the embedding, saved by both names


@pytest.mark.slow
def test_vit_is_cut_by_heads(server, tmp_path):
    words = (
        "data=digits", "model=vit", "model.patch_size=4", "model.dim=8", "model.heads=2", "model.depth=1",
        "training.epochs=1", "training.global_batch_size=400", "training.precision=fp64",
    )  # fmt: skip
    assert (
        largest_difference(
            train(server, tmp_path, *words, *grid(2, 1)), train(server, tmp_path, *words, *SINGLE)
        )
        < 1e-10
    )


@pytest.mark.slow
def test_a_repeated_run_draws_alike_and_ends_in_the_same_bits(server, tmp_path):
    words = (SIZES, "model.dropout=0.3", "training.epochs=1", *grid(2, 1))
    first, second = train(server, tmp_path, *words), train(server, tmp_path, *words)
    assert bits(first) == bits(second)
    # What every rank holds whole stays the same on all, though their own columns draw differently.
    ends = [read_json_lines(first.metrics_file(rank)) for rank in range(2)]
    assert ends[0][1]["grad_norm"] == ends[1][1]["grad_norm"]


def masks_of(column, calls=1):
    """Where the dropouts before, between and behind two cut layers draw a 0, in one pass that calls them so often."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5), nn.Linear(64, 64), nn.Dropout(0.5)
    )
    draws = Draws(model, {"1": Way("colwise"), "3": Way("rowwise")}, column, torch.default_generator)
    masks: list[list[float]] = []
    for part in model:
        if isinstance(part, nn.Dropout):
            part.register_forward_hook(lambda _, given, out: masks.append((out == 0).tolist()))
    torch.manual_seed(7)
    draws.begin()
    for _ in range(calls):
        model(torch.ones(2, 64))
    return masks


def test_columns_draw_for_themselves_and_what_is_common_draws_alike():
    first, second = masks_of(0), masks_of(1)
    assert first[0] == second[0] and first[2] == second[2]
    assert first[1] != second[1]


def test_layers_that_a_pass_calls_twice_draw_anew():
    first, second = masks_of(0, calls=2), masks_of(1, calls=2)
    for number in range(3):
        assert first[number] != first[number + 3] and second[number] != second[number + 3]
    assert [first[number] == second[number] for number in range(6)] == [True, False, True] * 2


def test_a_model_carries_its_plan():
    model = mlp((8,), 4, hidden_sizes=[6, 6, 6])
    assert {name: way.kind for name, way in plan_of(model).items()} == {
        "1": "colwise", "3": "rowwise", "5": "colwise", "7": "rowwise"
    }  # fmt: skip
    plan = plan_of(gpt((5,), 7, dim=12, depth=1, heads=3))
    assert plan["layers.0.attention.query"] == Way("colwise", 4)
    assert plan["layers.0.attention"].kind == "shared" and plan["layers.0.feedforward.down"].kind == "rowwise"
    shares = held(model, plan_of(model), 2)
    assert (
        shares["1.weight"] == 24
        and shares["1.bias"] == 3
        and shares["3.weight"] == 18
        and shares["3.bias"] == 6
    )


class Own(nn.Module):
    """A user's own, whose plan is a method."""

    def __init__(self, plan):
        super().__init__()
        self.up, self.down, self.norm = nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8)
        self.plan = plan

    def tensor_plan(self):
        return self.plan


def test_the_plan_says_how_many_samples_go_through_each_rank():
    def of(name, ranks, **options):
        return per_rank_batch(10, ranks, Choice(name=name, options=options))

    assert of("ddp", 3) == [3, 3, 4]
    assert of("tensor", 4, data_parallel=2) == [5, 5, 5, 5]
    assert of("tensor", 2, data_parallel=1) == of("pipeline", 2) == [10, 10]


def test_what_cannot_be_cut_is_refused_in_words():
    # Not before the first test: it imports the compiler.
    from lockstep.strategies.tensor import _group_size

    with pytest.raises(
        RunFailed, match=r"Sequential without a plan.*mlp .*vit and gpt.*attribute tensor_plan"
    ):
        plan_of(nn.Sequential(nn.Linear(2, 2)))
    with pytest.raises(RunFailed, match="without a plan"):
        plan_of(mlp((8,), 4, hidden_sizes=[]))  # a single layer
    assert plan_of(Own({"up": "colwise", "down": "rowwise"}))["down"] == Way("rowwise")
    for plan, words in (
        ({"up": "column"}, "found 'column' for up, allowed: colwise, "),
        ({"upp": "colwise"}, "the model has no part upp"),
        ({"norm": "rowwise"}, "norm is LayerNorm, and colwise and rowwise are for Linear"),
        (["up"], "tensor_plan of the model is list, allowed: a mapping"),
    ):
        with pytest.raises(RunFailed, match=words):
            plan_of(Own(plan))
    model = mlp((8,), 4, hidden_sizes=[6])
    with pytest.raises(
        RunFailed, match="1 has 6 outputs, which 4 ranks cannot share equally; allowed: 1, 2, 3, 6 ranks"
    ):
        check_sizes(model, plan_of(model), 4)
    tokens = gpt((5,), 7, dim=12, depth=1, heads=3)
    with pytest.raises(
        RunFailed, match=r"query has 12 outputs, 3 groups of 4, which 2 ranks.*allowed: 1, 3 ranks"
    ):
        check_sizes(tokens, plan_of(tokens), 2)
    with pytest.raises(RunFailed, match="data_parallel: found 3 for 4 ranks, allowed: 1, 2, 4"):
        _group_size(4, 3)


@pytest.mark.parametrize("ranks, groups", [(2, 1), slow(4, 2)])
def test_a_weight_between_cut_layers_of_which_ranks_see_a_part_each_is_named_and_not_trained_wrongly(
    server, tmp_path, ranks, groups
):
    with pytest.raises(RunFailed, match=r"tensor: the gradient of 1\.weight is another on each rank") as told:
        train(server, tmp_path, "model=own_models:bent", *grid(ranks, groups))
    assert "3.weight" not in str(told.value)  # which stands behind both
