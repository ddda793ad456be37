"""The parameter files under examples/: each is read, and each trains on data cut small."""

import shutil

import pytest
import yaml

from conftest import ROOT
from disk_formats import write_cifar_binary, write_images
from lockstep import parameters, plugins
from lockstep.files import read_json_lines
from training import run_of_parameters

FILES = sorted((ROOT / "examples" / "parameters").glob("*.yaml"))
LONG = ("cifar10", "image_folder", "text")


def test_every_strategy_has_an_example_on_digits():
    used = {
        parameters.read(file, []).distributed.strategy.name
        for file in FILES
        if parameters.read(file, []).data.name == "digits"
    }
    assert used == set(plugins.names("strategies"))


def cut(file, folder):
    """What to override so that the example is over in a moment: the data is small, the rest stays as it is."""
    wanted = yaml.safe_load(file.read_text())
    words = ["training.epochs=2", "checkpoint.every_epochs=null"]
    match wanted["data"]["name"]:
        case "cifar10":
            write_cifar_binary(folder / "cifar", each=8)
            words += [f"data.folder={folder / 'cifar'}", "training.global_batch_size=16", "model.width=8"]
        case "image_folder":
            write_images(folder / "images", each=4, size=40)
            words += [f"data.folder={folder / 'images'}", "data.image_size=32", "data.resize=36"]
            words += ["training.global_batch_size=4", "training.micro_batch_size=2"]
            words += ["model.dim=16", "model.depth=2", "model.heads=2", "training.schedule.warmup_steps=1"]
        case "text":
            (folder / "text").mkdir()
            shutil.copy(ROOT / "README.md", folder / "text" / "readme.txt")
            words += [
                f"data.path={folder / 'text'}",
                "data.context_length=32",
                "model.dim=16",
                "model.depth=2",
            ]
            words += ["model.heads=2", "training.epochs=1", "training.global_batch_size=32"]
    return words


@pytest.mark.parametrize(
    "file",
    [
        pytest.param(file, id=file.stem, marks=[pytest.mark.slow] * file.stem.startswith(LONG))
        for file in FILES
    ],
)
def test_the_example_trains(server, tmp_path, file):
    run = run_of_parameters(server, tmp_path / "catalog", parameters.read(file, cut(file, tmp_path)))
    steps = [line for line in read_json_lines(run.metrics_file(0)) if line["kind"] == "step"]
    assert len(steps) >= 2
    assert run.results.is_file() and list(run.checkpoints.glob("step-*"))
