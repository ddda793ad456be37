"""Weights that do not stand in memory row by row are trained and resumed like any others."""

import pytest
import torch
from torch import nn

import own_layouts
from lockstep.engine.optimizers import make_optimizer
from lockstep.engine.precision import take_in
from lockstep.errors import RunFailed
from lockstep.parameters import read
from lockstep.strategies._buckets import cut
from lockstep.strategies._layout import is_dense, like, shape_in_memory, slot_like
from marks import quick_are, slow
from training import bits, final_state, largest_difference, train

STRATEGIES = [
    "single",
    "ddp",
    "allreduce",
    "naive",
    "fsdp",
    "tensor",
    "pipeline",
    "parameter_server",
    "local_sgd",
]
LAYERED = ("model=own_layouts:layered", "training.epochs=2", "checkpoint.keep=9")


def ranks(strategy):
    return (f"distributed.strategy={strategy}", f"distributed.world_size={1 if strategy == 'single' else 2}")


@pytest.mark.parametrize("precision", ["fp32", slow("fp64")])
@pytest.mark.parametrize("strategy", quick_are(["single", "pipeline"], STRATEGIES))
def test_a_run_resumes_in_the_same_bits_however_its_weights_stand_in_memory(
    server, tmp_path, strategy, precision
):
    words = (*LAYERED, *ranks(strategy), f"training.precision={precision}", "training.ema_decay=0.9")
    if strategy == "parameter_server":
        words = words[:-1]
    whole = train(server, tmp_path, *words)
    rest = train(server, tmp_path, *words, start=min(whole.checkpoints.glob("step-*")))
    assert bits(rest) == bits(whole)


@pytest.mark.slow
@pytest.mark.parametrize("strategy", STRATEGIES[:-1])
def test_what_one_strategy_saved_another_goes_on_with_however_weights_stand_in_memory(
    server, tmp_path, strategy
):
    alone = train(server, tmp_path, *LAYERED, *ranks("single"))
    half = min(alone.checkpoints.glob("step-*"))
    assert largest_difference(train(server, tmp_path, *LAYERED, *ranks(strategy), start=half), alone) < 1e-10
    first = train(server, tmp_path, *LAYERED, *ranks(strategy))
    half = min(first.checkpoints.glob("step-*"))
    assert largest_difference(train(server, tmp_path, *LAYERED, *ranks("single"), start=half), alone) < 1e-10


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["single", "ddp", "allreduce", "pipeline", "fsdp"])
def test_a_run_with_channels_last_resumes_in_the_same_bits(server, tmp_path, strategy):
    words = (
        "data=digits",
        "model=resnet",
        "model.width=4",
        "model.stem=cifar",
        "training.channels_last=true",
    )
    words = (
        *words,
        "training.epochs=2",
        "training.global_batch_size=512",
        "checkpoint.keep=9",
        *ranks(strategy),
    )
    whole = train(server, tmp_path, *words)
    rest = train(server, tmp_path, *words, start=min(whole.checkpoints.glob("step-*")))
    assert bits(rest) == bits(whole)


@pytest.mark.parametrize("strategy", quick_are(["single"], STRATEGIES))
def test_moments_of_a_weight_that_is_one_number_go_into_another_precision(server, tmp_path, strategy):
    words = ("model=own_layouts:layered", "training.global_batch_size=200", *ranks(strategy))
    first = train(server, tmp_path, *words, "training.epochs=1")
    start = max(first.checkpoints.glob("step-*"))
    state = final_state(
        train(server, tmp_path, *words, "training.epochs=2", "training.precision=fp32", start=start)
    )
    kinds = {name: str(value.dtype) for name, value in state.items() if "scale" in name}
    assert set(kinds.values()) == {"float32"}
    assert len(kinds) == 4


def weights_of(*layouts):
    module = nn.ParameterDict({layout: nn.Parameter(own_layouts.weight(4, 6, layout)) for layout in layouts})
    take_in(module, torch.float32)
    return module


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("layout", ["transposed", "sliced", "rows"])
def test_updates_do_not_depend_on_how_a_weight_or_its_gradient_stands_in_memory(optimizer, layout):
    training = read(None, [f"training.optimizer={optimizer}"]).training
    found = {}
    for each in ("plain", layout):
        torch.manual_seed(1)
        module = weights_of(each)
        (weight,) = module.parameters()
        made = make_optimizer(training, module)
        for step in range(3):
            weight.grad = torch.sin(torch.arange(24.0) * (step + 1)).view(
                4, 6
            )  # row by row, as a hook may leave it
            made.step()
        found[each] = weight.detach().clone()
        if each != "plain":  # go on from moments that were read row by row
            made.state[weight] = {
                key: slot_like(key, value.clone(memory_format=torch.contiguous_format), weight)
                for key, value in made.state[weight].items()
            }
        made.step()
    assert torch.equal(found["plain"], found[layout])


def test_an_optimizer_refuses_moments_that_stand_otherwise_than_their_weight():
    module = weights_of("transposed")
    (weight,) = module.parameters()
    made = make_optimizer(read(None, ["training.optimizer=sgd"]).training, module)
    made.state[weight]["momentum_buffer"] = torch.zeros(4, 6)
    weight.grad = torch.ones(4, 6)
    before = weight.detach().clone()
    with pytest.raises(
        RunFailed, match=r"momentum_buffer of transposed .* strides \(6, 1\) .* strides \(1, 4\)"
    ):
        made.step()
    assert torch.equal(weight, before)


def test_a_part_of_a_bucket_is_described_in_the_order_of_its_memory():
    """PowerSGD takes it for a matrix: of a transposed weight it would otherwise see a scrambled one."""
    module = weights_of("transposed", "plain")
    (bucket,) = cut([module["transposed"], module["plain"]], 10**6)
    assert [tuple(shape_in_memory(view)) for view in bucket.views] == [(6, 4), (4, 6)]
    values = own_layouts.weight(4, 6, "plain")
    bucket.views[0].copy_(values)
    assert torch.equal(bucket.flat[:24].view(shape_in_memory(bucket.views[0])), values.t())
    assert tuple(shape_in_memory(torch.empty(8, 3, 5, 7).to(memory_format=torch.channels_last))) == (
        8,
        5,
        7,
        3,
    )


def test_elements_that_share_memory_get_a_place_each_and_it_is_said():
    module = own_layouts.expanded((5,), 3)
    (note,) = take_in(module, torch.float32)
    assert "each element of 0.weight is trained by itself" in note
    assert is_dense(module[0].weight)
    frozen = own_layouts.expanded((5,), 3, trained=False)
    assert take_in(frozen, torch.float32) == []  # nothing changes for a weight that is not trained
    assert is_dense(frozen[0].weight)


def test_a_view_with_gaps_of_memory_that_another_weight_has_is_refused_by_name():
    module = nn.ParameterDict({"whole": nn.Parameter(torch.randn(4, 6))})
    module["part"] = nn.Parameter(module["whole"].data[:, :3])
    with pytest.raises(RunFailed, match=r"part is a view of memory that whole has as well"):
        take_in(module, torch.float32)
    room = torch.randn(4, 6)
    apart = nn.ParameterDict({"left": nn.Parameter(room[:, :3]), "right": nn.Parameter(room[:, 3:])})
    take_in(apart, torch.float32)  # of one piece of memory, but no element in common
    assert torch.equal(torch.cat([*apart.values()], 1), room)


def test_a_change_of_precision_keeps_memory_shared_that_is_shared():
    module = nn.ParameterDict({"one": nn.Parameter(torch.randn(4, 6))})
    module["other"] = nn.Parameter(module["one"].data.t())
    take_in(module, torch.float64)
    with torch.no_grad():
        module["one"][1, 2] = 7
    assert module["other"][2, 1] == 7
    assert module["other"].dtype == torch.float64


@pytest.mark.parametrize("layout", ["transposed", "plain"])
def test_what_belongs_to_a_weight_is_laid_out_as_it_is(layout):
    weight = own_layouts.weight(4, 6, layout)
    copy = like(torch.arange(24, dtype=torch.float64).view(4, 6), weight)
    assert copy.stride() == weight.stride()
    assert copy.dtype == weight.dtype
    assert torch.equal(copy, torch.arange(24.0).view(4, 6))
