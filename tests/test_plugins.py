"""What the registry of plugins promises."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from lockstep import parameters, plugins
from lockstep.errors import MissingPackage, ParametersError
from lockstep.messages import allowed
from lockstep.plugins import REQUIRED, Option

MODEL = """
import a_package_that_is_not_installed
from typing import Annotated, Literal
from collections.abc import Sequence
from pydantic import Field

def _helper(*, not_an_option: int): ...

def wide(
    input_shape, num_classes, *,
    sizes: list[Annotated[int, Field(ge=1)]] = [2, -3],
    steps: Sequence[int] = (1, 2),
    rate: Annotated[float, Field(ge=0, lt=1)] = 0.5,
    kind: Literal["a", "b"] = "a",
    limit: int | None = None,
    depth: int,
): ...
"""
STRATEGY = """
import torch_of_another_world

class _Private: ...

class Ring:
    def other(self, *, not_an_option: int): ...
    def __init__(self, group, *, bucket_mb: float = 4.0): ...
"""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A package of plugins, none of which can be imported."""
    for kind in plugins.KINDS:
        (tmp_path / kind).mkdir()
        for name in ("__init__", "_private", "base"):
            (tmp_path / kind / f"{name}.py").touch()
    (tmp_path / "models" / "wide.py").write_text(MODEL)
    (tmp_path / "strategies" / "ring.py").write_text(STRATEGY)
    (tmp_path / "strategies" / "plain.py").write_text("class Plain: ...\n")
    return tmp_path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder from which the user's own modules are imported; they are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.setattr(sys, "path", [*sys.path])
    plugins.importable_from(tmp_path)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def test_a_plugin_is_a_file_in_its_folder(root: Path) -> None:
    assert plugins.names("models", root) == ["wide"]
    assert plugins.names("strategies", root) == ["plain", "ring"]
    assert plugins.names("datasets", root) == []


def test_options_are_the_keyword_only_arguments_and_nothing_is_imported(root: Path) -> None:
    schema = plugins.schema("models", "wide", root)
    assert {name: option.default for name, option in schema.items()} == {
        "sizes": [2, -3],
        "steps": [1, 2],
        "rate": 0.5,
        "kind": "a",
        "limit": None,
        "depth": REQUIRED,
    }
    assert {name: allowed(option.annotation) for name, option in schema.items()} == {
        "sizes": "a list, each value a whole number of 1 or more",
        "steps": "a list, each value a whole number",
        "rate": "a number of 0 or more and below 1",
        "kind": "a, b",
        "limit": "a whole number, or null",
        "depth": "a whole number",
    }
    assert plugins.schema("strategies", "ring", root) == {"bucket_mb": Option(float, 4.0)}
    assert plugins.schema("strategies", "plain", root) == {}


@pytest.mark.parametrize(
    "source",
    [
        "def net(input_shape, num_classes, *, name: str = 'x'): ...",
        "def net(input_shape, *, num_classes: int = 1): ...",
        "def net(input_shape, num_classes, *, untyped=1): ...",
        "def other(input_shape, num_classes): ...",
    ],
)
def test_a_faulty_plugin_of_ours_is_our_fault(source: str, root: Path) -> None:
    (root / "models" / "net.py").write_text(source)
    with pytest.raises(AssertionError):
        plugins.schema("models", "net", root)


@pytest.mark.parametrize("kind", plugins.KINDS)
def test_every_plugin_that_comes_with_the_package_has_a_schema(kind: str) -> None:
    assert plugins.names(kind)
    for name in plugins.names(kind):
        assert all(option.default is not REQUIRED for option in plugins.schema(kind, name).values())


def test_the_users_own_plugin_is_read_by_its_signature(own: Path) -> None:
    (own / "mine.py").write_text(
        "from __future__ import annotations\n"
        "def net(shape, classes, *, width: int = 3, sizes: tuple[int, ...] = (1, 2), rate=0.5, free): ...\n"
        "class Own:\n"
        "    def __init__(self, group, *, every: int | None = None): ...\n"
    )
    assert plugins.schema("models", "mine:net") == {
        "width": Option(int, 3),
        "sizes": Option(list[int], [1, 2]),
        "rate": Option(float, 0.5),
        "free": Option(Any),
    }
    (name,) = plugins.schema("strategies", "mine:Own")
    assert name == "every"
    assert plugins.load("models", "mine:net").__name__ == "net"


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("absent_module:net", "found 'absent_module:net', but there is no module absent_module"),
        ("broken.absent:net", "there is no module broken.absent"),
        ("broken:absent", "but broken has no absent"),
        ("broken:number", "which is int, not a function or class"),
        ("broken:clash", "whose option 'num_classes' has a name that is taken"),
        ("broken:odd", "whose option what has the type <class 'bytes'>, allowed: bool, int"),
        ("broken:unknown", "whose signature cannot be read .*NameError"),
        ("broken:few", r"takes \(input_shape\); allowed: .* called with \(input_shape, num_classes\), and"),
        ("broken:three", r"takes \(a, b, c\); allowed"),
        ("os:system", r"takes \(command\); allowed"),
        ("raises:net", r"whose import failed at .*raises\.py:2: ZeroDivisionError"),
        ("needs:net", r"whose import failed at .*needs\.py:1: ModuleNotFoundError"),
        ("leaves:net", r"whose import failed at .*SystemExit"),
        ("syntax:net", r"whose import failed at .*syntax\.py:1: SyntaxError"),
        (":net", "allowed: package.module:name"),
        ("a b:net", "allowed: package.module:name"),
        ("..up:net", "allowed: package.module:name"),
        ("broken:a:b", "allowed: package.module:name"),
    ],
)
def test_the_users_own_plugin_that_cannot_be_used_is_told_in_one_line(
    name: str, message: str, own: Path
) -> None:
    (own / "broken").mkdir()
    (own / "broken" / "__init__.py").write_text(
        "number = 1\n"
        "def clash(a, b, *, num_classes: int): ...\n"
        "def odd(a, b, *, what: bytes): ...\n"
        "def unknown(*, what: 'Unknown'): ...\n"
        "def few(input_shape): ...\n"
        "def three(a, b, c): ...\n"
    )
    (own / "raises.py").write_text("\nnet = 1 / 0\n")
    (own / "needs.py").write_text("import absent_module\n")
    (own / "leaves.py").write_text("raise SystemExit('bye\\nbye')\n")
    (own / "syntax.py").write_text("def (\n")
    with pytest.raises(ParametersError, match=message) as caught:
        plugins.schema("models", name)
    assert "\n" not in str(caught.value)


def test_an_option_without_a_default_is_asked_for(own: Path) -> None:
    (own / "asks.py").write_text("def net(shape, classes, *, width: int, depth: int = 2): ...\n")
    message = "command line: model.width: found nothing, but it has no default; allowed: a whole number"
    with pytest.raises(ParametersError, match=f"^{message}$"):
        parameters.read(None, ["model=asks:net"])
    assert parameters.read(None, ["model=asks:net", "model.width=3"]).model.options == {
        "width": 3,
        "depth": 2,
    }


def test_load_returns_the_function_or_the_only_public_class() -> None:
    assert plugins.load("datasets", "synthetic").__name__ == "synthetic"


@pytest.mark.slow
def test_load_returns_the_class_of_a_strategy() -> None:
    assert plugins.load("strategies", "single").__name__ == "Single"


def test_a_missing_package_names_the_extra_that_installs_it() -> None:
    assert plugins.require("json", package="json", extra="none", wanted_by="a test") is sys.modules["json"]
    with pytest.raises(
        MissingPackage, match=r"data\.name: x needs the package absent-package.*--extra vision"
    ):
        plugins.require("absent_package.part", "absent-package", "vision", "data.name: x")


def test_validation_imports_neither_torch_nor_numpy() -> None:
    code = (
        "import sys; from lockstep import parameters; parameters.read(None, ['data=synthetic'])\n"
        "assert not {'torch', 'numpy', 'runnable', 'sklearn'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
