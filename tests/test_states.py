"""State of every kind is trained, saved, resumed and judged alike under all strategies, or refused by all of them."""

import contextlib

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

import own_states
from lockstep import parameters
from lockstep.catalog.export import plain_weights
from lockstep.catalog.run import Run
from lockstep.engine import checkpoint
from lockstep.engine.contents import Contents, file_name, header
from lockstep.engine.evaluation import evaluate_run
from lockstep.engine.fitting import load_weights
from lockstep.errors import RunFailed
from lockstep.files import read_json_lines
from lockstep.strategies._reads import Reads
from lockstep.strategies._state import Slice
from marks import quick_are, slow
from training import bits, final_state, results, train

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
HOLDING = (
    "model=own_states:holding",
    "training.epochs=2",
    "checkpoint.keep=9",
    "training.global_batch_size=60",
)


def ranks(strategy):
    return (f"distributed.strategy={strategy}", f"distributed.world_size={1 if strategy == 'single' else 2}")


def apart(a, b):
    """The largest difference between weights and buffers of the last checkpoints."""
    left, right = final_state(a), final_state(b)
    names = [name for name in left if name.startswith("model/") and left[name].size]
    assert names == [name for name in right if name.startswith("model/") and right[name].size]
    return max(float(abs(left[name] - right[name]).max()) for name in names)


@pytest.fixture(scope="module")
def single(server, tmp_path_factory):
    known = {}

    def of(*words):
        if words not in known:
            known[words] = train(server, tmp_path_factory.mktemp("single"), *words, *ranks("single"))
        return known[words]

    return of


@pytest.mark.parametrize(
    ("kind", "strategy"),
    quick_are(
        [("turn", "fsdp"), ("without", "pipeline")],
        [(kind, name) for kind in ("turn", "without", "passing") for name in STRATEGIES[1:]],
    ),
)
def test_complex_and_empty_tensors_are_kept_by_every_strategy(server, tmp_path, single, kind, strategy):
    words = (*HOLDING, f"model.kind={kind}")
    run = train(server, tmp_path, *words, *ranks(strategy))
    if strategy != "local_sgd":
        assert apart(run, single(*words)) < 1e-10
    again = train(server, tmp_path, *words, *ranks(strategy), start=min(run.checkpoints.glob("step-*")))
    assert bits(again) == bits(run)
    judged = evaluate_run(run, parameters.read(run.parameters, []))
    told = results(run)["epochs"][-1]["validation"]["loss"]
    assert judged["final"]["validation"]["loss"] == pytest.approx(told, rel=1e-9)


def test_imaginary_parts_are_kept_in_double_precision(single):
    """Both parts of a buffer that the passes write; the checkpoint's file format has no type for it."""
    run = single(*HOLDING, "model.kind=turn")
    seen = final_state(run)["model/1.seen"]
    assert seen.dtype == np.complex128
    assert seen.tolist() == [-2 + 1j, -0.5 + 0j]


@pytest.mark.parametrize(
    "strategy",
    quick_are(["pipeline"], [name for name in STRATEGIES[1:] if name not in ("parameter_server",)]),
)
def test_every_rank_begins_with_what_rank_0_drew(server, tmp_path, strategy):
    words = (*HOLDING, "model.kind=unseeded", "training.learning_rate=1e-30", *ranks(strategy))
    run = train(server, tmp_path, *words)
    state = final_state(run)
    assert np.array_equal(state["model/1.weight"], state["model/6.weight"])
    judged = evaluate_run(run, parameters.read(run.parameters, []))["final"]["validation"]["loss"]
    assert judged > 0


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ("head", r"returned 1,000 logits, and synthetic has 5 classes; allowed: 5\."),
        ("head, classes: 4", r"returned 4 logits, and synthetic has 5 classes; allowed: 5\."),
        ("remembering", r"model.name: 0 \(Remembering\) keeps state by get_extra_state"),
        ("complex_weight", r"model.name: spectrum is a complex parameter"),
        *(
            (f"embedded, way: {way}", r"table\.weight gets sparse gradients")
            for way in ("module", "function")
        ),
        slow("embedded, way: gather", r"table\.weight gets sparse gradients"),
        slow("embedded, way: bag", r"table\.weight gets sparse gradients"),
        slow("embedded, way: cast", r"a weight gets sparse gradients"),
    ],
)
@pytest.mark.parametrize("strategy", quick_are(["single"], STRATEGIES))
def test_what_no_strategy_can_train_or_judge_is_refused_before_training(
    server, tmp_path, model, message, strategy
):
    words = (f"model={{name: own_states:{model}}}", *ranks(strategy))
    with pytest.raises(RunFailed, match=message):
        train(server, tmp_path, *words)


@pytest.mark.parametrize("way", [slow("frozen"), slow("plain")])
@pytest.mark.parametrize("strategy", ["single", "fsdp"])
def test_a_frozen_table_and_an_attribute_called_sparse_are_no_sparse_gradients(
    server, tmp_path, way, strategy
):
    train(
        server,
        tmp_path,
        "model=own_states:embedded",
        f"model.way={way}",
        "training.epochs=1",
        *ranks(strategy),
    )


@pytest.mark.parametrize(
    "strategy",
    ["fsdp", slow("{name: fsdp, sharding: shard_grad_op}"), slow("{name: tensor, data_parallel: 2}")],
)
@pytest.mark.parametrize(
    "way", ["function", slow("property"), slow("penalty"), slow("direct"), slow("described")]
)
def test_a_block_whose_weight_is_used_elsewhere_is_left_to_the_root(server, tmp_path, single, strategy, way):
    words = (
        "model=own_states:read_outside",
        f"model.way={way}",
        "training.epochs=1",
        "training.global_batch_size=60",
    )
    run = train(server, tmp_path, *words, *ranks(strategy))
    assert apart(run, single(*words)) < 1e-10
    if strategy == "fsdp":
        left = read_json_lines(run.metrics_file(0))[0]["strategy"]["left_to_root"]
        assert left == ({} if way == "described" else {"body.4": "body.4.weight is read outside of it"})


def test_reads_tell_a_description_from_a_use():
    model = own_states.read_outside((6,), 3, way="described")
    with Reads(model) as reads:
        model(torch.randn(2, 6))
    assert reads.read_outside(model.body[4]) is None
    assert reads.read_outside(model.body[0]) is None
    model.way = "property"
    with Reads(model) as reads:
        model(torch.randn(2, 6))
    assert reads.read_outside(model.body[4]) == "body.4.weight"
    assert reads.read_outside(model) is None
    assert not model.body[4]._forward_hooks


@pytest.mark.parametrize("strategy", quick_are(["fsdp"], STRATEGIES))
@pytest.mark.parametrize("decay", ["null", slow("0.9")])
def test_sgd_without_momentum_is_finished_judged_and_resumed(server, tmp_path, strategy, decay):
    if strategy == "parameter_server" and decay != "null":
        pytest.skip("servers keep no average")
    words = ("training.optimizer={name: sgd, momentum: 0.0}", f"training.ema_decay={decay}", *ranks(strategy))
    words = (*words, "training.epochs=2", "training.global_batch_size=60", "checkpoint.keep=9")
    run = train(server, tmp_path, *words)
    judged = evaluate_run(run, parameters.read(run.parameters, []))
    assert ("ema" in judged) == (decay != "null")
    assert bits(train(server, tmp_path, *words, start=min(run.checkpoints.glob("step-*")))) == bits(run)


def test_lower_precision_that_becomes_full_is_said(single):
    run = single(*HOLDING, "model.kind=passing", "training.precision=fp32")
    assert final_state(run)["model/1.scale"].dtype == np.float32
    assert "1.scale is bfloat16 in the model and float32 in this run" in run.rank_log(0).read_text()


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
@pytest.mark.parametrize("wrapped", [False, True])
def test_weights_are_found_with_and_without_what_a_wrapper_puts_before_their_names(tmp_path, prefix, wrapped):
    saved = own_states.wrapping((4,), 3)
    module = own_states.wrapping((4,), 3)
    if not wrapped:
        saved, module = saved.module, module.module
    torch.save(
        {prefix + name: tensor for name, tensor in saved.state_dict().items()}, tmp_path / "weights.pt"
    )
    load_weights(module, tmp_path, "weights.pt")
    assert all(torch.equal(one, module.state_dict()[name]) for name, one in saved.state_dict().items())


def test_complex_numbers_come_back_from_a_checkpoint_as_they_were_and_from_its_pairs(tmp_path):
    module = nn.ParameterDict({"c": nn.Parameter(torch.randn(3, 2, dtype=torch.complex128))})
    state = {"model": {"c": module["c"].detach().clone().conj(), "none": torch.ones(0)}, "optimizer": {}}
    path = checkpoint.save(tmp_path, state, {"step": 1})
    found = checkpoint.open_verified(path)
    assert torch.equal(found.tensors()["model"]["c"], state["model"]["c"])
    with contextlib.closing(found.contents()) as contents:
        assert contents.shape("model", "c") == (3, 2)
        assert torch.equal(contents.read("model", "c", (1, 0), (2, 1)), state["model"]["c"][1:, :1])
    run = Run(tmp_path / "run")
    run.path.mkdir()
    (run.path / "weights.safetensors").write_bytes((path / "model.safetensors").read_bytes())
    module["none"] = nn.Parameter(torch.ones(0))
    load_weights(module, run.path, "weights.safetensors")
    assert torch.equal(module["c"], state["model"]["c"])


def test_slices_of_complex_numbers_are_read_by_every_reader(tmp_path):
    whole = torch.randn(5, 3, dtype=torch.complex128)
    parts = [Slice(whole[:3], (5, 3), (0, 0)), Slice(whole[3:], (5, 3), (3, 0))]
    path = checkpoint.save(tmp_path, {"model": {}, "optimizer": {}}, {"step": 1})
    (path / "model.safetensors").unlink()
    for rank, part in enumerate(parts):
        tensors = checkpoint.storable({"c": part.data})
        save_file(tensors, path / file_name("model", rank, 2), metadata=header({"c": part}))
    with contextlib.closing(Contents(path)) as contents:
        assert contents.shape("model", "c") == (5, 3)
        assert torch.equal(contents.whole()["model"]["c"], whole)
        assert torch.equal(contents.read("model", "c", (2, 1), (2, 2)), whole[2:4, 1:])
    # The commands that do not import torch see pairs of real numbers, which weights to start from may be as well.
    plain_weights.write(path, tmp_path / "weights.safetensors", {})
    module = nn.ParameterDict({"c": nn.Parameter(torch.zeros_like(whole))})
    load_weights(module, tmp_path, "weights.safetensors")
    assert torch.equal(module["c"], whole)
