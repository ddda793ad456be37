"""The models: as large as published, sequences of blocks, and the same under every strategy."""

import copy
import hashlib
import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from lockstep import parameters
from lockstep.engine import fitting, judging
from lockstep.errors import RunFailed, UsageError
from lockstep.files import read_json
from lockstep.models.gpt import gpt
from lockstep.models.mlp import mlp
from lockstep.models.resnet import resnet
from lockstep.models.vit import vit
from lockstep.orchestration import inputs
from lockstep.strategies._loss import correct, summed_loss
from lockstep.strategies.base import Shard
from training import final_state, largest_difference, results, train

IMAGENET = ((3, 224, 224), 1000)
PHOTOS = ("data=own_data:images", "data.size=16", "training.epochs=1", "training.global_batch_size=12")
# sgd: where a gradient is next to nothing, adam makes a rounding of it a step of full length
PHOTOS = (*PHOTOS, "training.optimizer=sgd", "distributed.threads_per_rank=1")
SMALL_RESNET = "model={name: resnet, stem: cifar, width: 4}"
ALONE = ("distributed.strategy=single", "distributed.world_size=1")


@pytest.fixture(autouse=True, scope="module")
def one_thread():
    """Small models on a busy machine: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("build", "count"),
    [
        (lambda: resnet(*IMAGENET, depth=18, norm="batch"), 11_689_512),
        (lambda: resnet(*IMAGENET, depth=34, norm="batch"), 21_797_672),
        (lambda: resnet(*IMAGENET, depth=50, norm="batch"), 25_557_032),
        (lambda: resnet(*IMAGENET, depth=50), 25_557_032),
        (lambda: resnet((3, 32, 32), 10, stem="cifar"), 11_173_962),
        (lambda: vit(*IMAGENET), 86_567_656),
        (lambda: vit(*IMAGENET, dim=384, heads=6), 22_050_664),
        (lambda: gpt((1024,), 50257, dim=768, depth=12, heads=12), 124_439_808),
        (
            lambda: gpt((1024,), 50257, dim=768, depth=12, heads=12, tie_weights=False),
            124_439_808 + 50257 * 768,
        ),
    ],
)
def test_models_have_as_many_parameters_as_published(build, count, monkeypatch):
    for name in dir(nn.init):
        if name.endswith("_") and not name.startswith("_"):  # memory that nobody writes to is never allocated
            monkeypatch.setattr(nn.init, name, lambda *_, **__: None)
    assert sum(parameter.numel() for parameter in build().parameters()) == count


def small(kind):
    """A model and three inputs for it."""
    torch.manual_seed(0)
    if kind == "gpt":
        return gpt((10,), 20, dim=16, depth=2, heads=2), torch.randint(20, (3, 10))
    if kind == "vit":
        return vit((3, 8, 8), 5, patch_size=4, dim=16, depth=2, heads=2), torch.randn(3, 3, 8, 8)
    if kind == "mlp":
        return mlp((3, 8, 8), 5, hidden_sizes=[7]), torch.randn(3, 3, 8, 8)
    options = {"resnet": {}, "resnet batch": {"norm": "batch"}, "resnet 50": {"depth": 50}, "imagenet": {}}[
        kind
    ]
    stem, size = ("imagenet", 64) if kind == "imagenet" else ("cifar", 16)
    return resnet((3, size, size), 5, width=4, stem=stem, **options), torch.randn(3, 3, size, size)


KINDS = ["mlp", "resnet", "resnet batch", "resnet 50", "imagenet", "vit", "gpt"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_model_is_a_sequence_of_parts_that_hand_one_tensor_on(kind):
    model, inputs = small(kind)
    assert isinstance(model, nn.Sequential)
    model.eval()
    parts = []
    for part in model:
        parts += list(part) if isinstance(part, nn.Sequential) else [part]
    through = inputs
    for part in parts:
        through = part(through)
        assert isinstance(through, torch.Tensor)
    assert torch.equal(through, model(inputs))
    assert len([part for part in parts if list(part.parameters())]) >= 2
    assert {id(p) for part in parts for p in part.parameters()} == {id(p) for p in model.parameters()}


@pytest.mark.parametrize("kind", KINDS)
def test_every_parameter_of_a_model_learns(kind):
    model, inputs = small(kind)
    for _ in range(2):  # vit's head begins with zeros, which nothing behind it learns from at first
        labels = torch.randint(5, model(inputs).shape[:-1])
        model.zero_grad()
        summed_loss(model(inputs), labels).backward()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.sub_(0.1 * parameter.grad)
    still = [name for name, p in model.named_parameters() if p.grad is None or not bool(p.grad.any())]
    assert still == [name for name in still if name.endswith("attention.key.bias")]  # softmax does not see it


@pytest.mark.parametrize("kind", ["resnet", "vit", "gpt"])
def test_a_sample_does_not_see_the_others_of_its_batch(kind):
    model, inputs = small(kind)
    model, inputs = model.double().eval(), inputs if kind == "gpt" else inputs.double()
    together = model(inputs)
    apart = torch.cat([model(inputs[row : row + 1]) for row in range(3)])
    assert torch.allclose(together, apart, atol=1e-12)


def test_gpt_never_looks_ahead():
    model, tokens = small("gpt")
    model.eval()
    changed = tokens.clone()
    changed[:, 6:] = (tokens[:, 6:] + 1) % 20
    before, after = model(tokens), model(changed)
    assert torch.equal(before[:, :6], after[:, :6])
    assert not torch.allclose(before[:, 6:], after[:, 6:])


def test_models_begin_about_as_unsure_as_chance():
    for kind in ("gpt", "vit"):
        model, inputs = small(kind)
        logits = model(inputs).detach()
        loss = summed_loss(logits, torch.zeros(logits.shape[:-1], dtype=torch.int64)) / 3
        assert abs(float(loss) - float(torch.tensor(logits.shape[-1]).log())) < 0.1


def test_images_without_channels_are_taken_too():
    for model in (
        resnet((8, 8), 3, width=4, stem="cifar"),
        vit((8, 8), 3, patch_size=4, dim=8, depth=1, heads=1),
    ):
        assert model(torch.randn(2, 8, 8)).shape == (2, 3)


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: resnet((64,), 3), "resnet takes images, .* have the shape \\(64,\\)"),
        (lambda: vit((64,), 3), "vit takes images"),
        (lambda: vit((3, 30, 32), 3), "model.patch_size: found 16, allowed with images of 30 x 32"),
        (lambda: vit((3, 32, 32), 3, heads=5), "model.heads: found 5, allowed with model.dim 768"),
        (lambda: gpt((3, 8, 8), 3), "gpt takes sequences of tokens"),
        (lambda: gpt((8,), 3, dim=10, heads=3), "model.heads: found 3"),
    ],
)
def test_shapes_that_a_model_cannot_take_are_refused_in_words(build, words):
    with pytest.raises(RunFailed, match=words):
        build()


def test_the_loss_of_sequences_is_the_mean_over_their_places():
    logits, labels = torch.randn(4, 7, 5, dtype=torch.float64), torch.randint(5, (4, 7))
    one_by_one = sum(summed_loss(logits[:, place], labels[:, place]) for place in range(7)) / 7
    assert torch.allclose(summed_loss(logits, labels), one_by_one)
    right = int((logits.argmax(-1) == labels).sum())
    assert correct(logits, labels) == right / 7
    with pytest.raises(RunFailed, match=r"returned \(4, 5\) for labels of \(4, 7\)"):
        summed_loss(logits[:, 0], labels)


@pytest.fixture(scope="module")
def alone(server, tmp_path_factory):
    return train(server, tmp_path_factory.mktemp("alone"), *PHOTOS, SMALL_RESNET, *ALONE)


@pytest.mark.parametrize("strategy", ["ddp", pytest.param("allreduce", marks=pytest.mark.slow)])
def test_resnet_with_group_norm_is_the_same_on_two_ranks(server, tmp_path, alone, strategy):
    together = train(server, tmp_path, *PHOTOS, SMALL_RESNET, f"distributed.strategy={strategy}")
    assert largest_difference(alone, together) < 1e-10
    assert not read_json(together.plan)["warnings"]


def test_batch_norm_is_trained_with_a_recorded_warning(server, tmp_path):
    run = train(server, tmp_path, *PHOTOS, "model={name: resnet, stem: cifar, width: 4, norm: batch}")
    assert "looks at all samples of a pass together" in run.events.read_text()


def test_the_record_says_where_own_code_came_from_and_its_digest(alone):
    code = read_json(alone.plan)["code"]["data.name"]
    file = Path(__file__).with_name("own_data.py")
    assert code == {
        "name": "own_data:images",
        "file": str(file),
        "sha256": hashlib.sha256(file.read_bytes()).hexdigest(),
    }


def test_a_runs_parameters_say_where_own_code_came_from_and_read_back_the_same(tmp_path):
    from lockstep import parameters
    from lockstep.orchestration import inputs

    wanted = parameters.read(None, ["model=own_models:odd", "data=own_data:images"])
    file = tmp_path / "parameters.yaml"
    file.write_text(inputs.text_of(wanted))
    own = Path(__file__).with_name("own_models.py")
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    assert f"# model.name: own_models:odd is {own}, SHA-256 {digest}\n" in file.read_text()
    assert parameters.read(file) == wanted
    assert not inputs.text_of(parameters.read(None)).startswith("#")


def test_a_plain_state_dict_is_the_start_of_a_run_and_kept_with_it(server, tmp_path, alone):
    state = {
        name.removeprefix("model/"): torch.from_numpy(value)
        for name, value in final_state(alone).items()
        if name.startswith("model/")
    }
    file = tmp_path / "start.safetensors"
    save_file(state, file)
    words = (*PHOTOS, SMALL_RESNET, *ALONE, f"model.weights={file}", "training.learning_rate=1e-300")
    run = train(server, tmp_path / "catalog", *words)
    found = final_state(run)
    assert all(torch.equal(torch.from_numpy(found[f"model/{name}"]), value) for name, value in state.items())
    kept = read_json(run.plan)["weights"]
    assert hashlib.sha256((run.path / kept["file"]).read_bytes()).hexdigest() == kept["sha256"]
    # A child goes on from what its parent kept, wherever the file is by then; changed weights are not inherited.
    file.unlink()
    wanted = parameters.read(run.parameters, [])
    assert inputs.inherited_weights(run, wanted) == run.path / kept["file"]
    (run.path / kept["file"]).chmod(0o644)
    (run.path / kept["file"]).write_bytes(b"changed")
    assert inputs.inherited_weights(run, wanted) is None


@pytest.mark.parametrize("kind", ["plain", "of a DDP module", "of a finished run"])
def test_files_of_torch_save_are_read_as_weights_only(tmp_path, kind):
    model, _ = small("gpt")
    state = copy.deepcopy(model.state_dict())
    wrapped = {f"module.{name}": value for name, value in state.items()}
    whole = {"model": state, "step": 3, "optimizer": {"name": "adam"}}
    torch.save(
        {"plain": state, "of a DDP module": wrapped, "of a finished run": whole}[kind],
        tmp_path / "weights.pt",
    )
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    fitting.load_weights(model, tmp_path, "mine.pt")
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    assert model.head.weight is model.embedding.token.weight


TIED = ("head.weight", "embedding.token.weight")


@pytest.mark.parametrize("left_out", TIED)
def test_a_weight_that_the_model_uses_twice_need_stand_in_the_file_once(tmp_path, left_out):
    model, _ = small("gpt")
    state = {name: value.clone() for name, value in model.state_dict().items() if name != left_out}
    save_file(state, tmp_path / "weights.safetensors")
    with torch.no_grad():
        model.head.weight.zero_()
    fitting.load_weights(model, tmp_path, "mine.safetensors")
    assert torch.equal(model.head.weight, next(state[name] for name in TIED if name in state))


class Command:
    """Runs when it is unpickled."""

    def __reduce__(self):
        return print, ("owned",)


@pytest.mark.filterwarnings("ignore:Validating sparse tensor invariants")
def test_weights_that_do_not_fit_or_are_no_weights_are_refused_in_words(tmp_path, capsys):
    model, _ = small("mlp")
    state = copy.deepcopy(model.state_dict())
    cases = [
        ({**state, "extra": torch.zeros(1)}, "extra is not in the model"),
        ({name: value for name, value in state.items() if name != "1.bias"}, "1.bias is missing"),
        ({**state, "1.bias": torch.zeros(9)}, r"1\.bias has the shape \(9,\), the model's \(7,\)"),
        ({**state, "1.bias": torch.zeros(7, dtype=torch.int8)}, r"1\.bias is of int8, the model's of float"),
        (
            {**state, "1.bias": torch.zeros(7, dtype=torch.cfloat)},
            r"1\.bias is of complex64, the model's of float",
        ),
        ({**state, "1.bias": torch.zeros(7).to_sparse()}, "a dense tensor for each"),
        ({**state, "1.bias": torch.zeros(7, device="meta")}, "a dense tensor for each"),
        ({3: torch.zeros(7)}, "not a plain state dict"),
        ([1, 2], "not a plain state dict"),
        ({"name": "x"}, "not a plain state dict"),
        (Command(), "holds more than tensors and is not read"),
    ]
    for content, words in cases:
        torch.save(content, tmp_path / "weights.pt")
        with pytest.raises(RunFailed, match=words):
            fitting.load_weights(model, tmp_path, "mine.pt")
    assert "owned" not in capsys.readouterr().out
    for content in (b"", b"nonsense" * 100):
        for name in ("weights.pt", "weights.safetensors"):
            for other in tmp_path.glob("weights.*"):
                other.unlink()
            (tmp_path / name).write_bytes(content)
            with pytest.raises(RunFailed, match=r"model\.weights: .*"):
                fitting.load_weights(model, tmp_path, "mine.pt")


def test_weights_that_are_not_there_are_refused_before_anything_is_written(tmp_path):
    from lockstep import parameters
    from lockstep.orchestration import inputs

    for name, words in (
        ("absent.pt", "found no file"),
        ("net.onnx", r"allowed: a file that ends in \.safetensors"),
    ):
        wanted = parameters.read(None, [f"model.weights={name}"])
        with pytest.raises(UsageError, match=words):
            inputs.require(wanted, tmp_path)


@pytest.mark.parametrize(
    ("what", "words"),
    [
        ("tuple", "the model returned tuple, allowed: one tensor of logits"),
        ("mapping", "the model returned dict, allowed: one tensor of logits"),
        ("attribute", "cannot take a sample of synthetic .*AttributeError: .*no_such_thing"),
    ],
)
def test_a_model_that_returns_no_logits_or_fails_in_its_own_way_says_so_in_words(
    server, tmp_path, what, words
):
    with pytest.raises(RunFailed, match=words):
        train(server, tmp_path, "model=own_models:returning", f"model.what={what}", *ALONE)


@pytest.mark.parametrize("strategy", ["single", "fsdp", "parameter_server"])
def test_a_model_with_nothing_to_train_is_refused_in_words(server, tmp_path, strategy):
    words = ("model=own_models:frozen", f"distributed.strategy={strategy}", "distributed.world_size=1")
    with pytest.raises(RunFailed, match="the model has no parameter to train"):
        train(server, tmp_path, *words)


def test_a_model_that_cannot_take_its_data_says_so_in_words(server, tmp_path):
    with pytest.raises(RunFailed, match=r"the model mlp cannot take a sample of own_data:echo \(6, int64\)"):
        train(server, tmp_path, "data=own_data:echo", "model=mlp", *ALONE)


@pytest.mark.slow
def test_labels_for_every_place_of_a_users_own_data_are_learnt(server, tmp_path):
    words = (
        "data=own_data:echo",
        "model={name: gpt, dim: 8, depth: 1, heads: 1}",
        "training.learning_rate=0.05",
        "training.epochs=12",
        "checkpoint.every_epochs=12",
    )
    run = train(server, tmp_path, *words, *ALONE)
    assert results(run)["epochs"][-1]["validation"]["accuracy"] > 0.9


@pytest.mark.parametrize(("share", "parts", "samples"), [(1, 1, 10), (4, 1, 10), (3, 2, 7), (1, 3, 1)])
def test_judging_in_small_passes_sees_every_sample_once_on_every_rank(share, parts, samples, monkeypatch):
    monkeypatch.setattr(judging, "MOST_ROWS", 1)
    torch.manual_seed(3)
    model = nn.Linear(4, 3, dtype=torch.float64)
    features, labels = torch.randn(samples, 4, dtype=torch.float64), torch.randint(3, (samples,))
    whole, passes, seen = judging.evaluate(model, features, labels), [], []
    for rank in range(parts):
        calls = []
        hook = model.register_forward_hook(lambda *_, calls=calls: calls.append(1))
        part = judging.evaluate(
            model, features, labels, shard=Shard(rank, rank + 1, parts), trained_rows=share
        )
        hook.remove()
        passes.append(len(calls))
        seen.append(part)
    assert len(set(passes)) == 1  # a model that is spread over the ranks needs them all for every pass
    assert passes[0] == math.ceil(math.ceil(samples / parts) / share)
    assert sum(part.samples for part in seen) == samples
    assert sum(part.correct for part in seen) == whole.correct
    assert sum(part.loss for part in seen) == pytest.approx(whole.loss, abs=1e-12)
