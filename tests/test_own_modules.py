"""A module of the user's own is trained as it stands in its file, and recorded by the bytes that were loaded."""

import sys

import pytest

from lockstep import own_modules, plugins
from lockstep.errors import ParametersError
from lockstep.files import sha256_of


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    for name in ("nets_edited", "helper_edited", "other_edited"):
        sys.modules.pop(name, None)
        own_modules._loaded.pop(name, None)


def test_what_was_edited_between_two_runs_of_a_process_is_loaded_again(folder):
    (folder / "helper_edited.py").write_text("def width():\n    return 1\n")
    (folder / "nets_edited.py").write_text(
        "from helper_edited import width\n\n\ndef net(input_shape, num_classes):\n    return width()\n"
    )
    (folder / "other_edited.py").write_text("state = []\n")
    import other_edited

    first = plugins.load("models", "nets_edited:net")
    assert first((1,), 2) == 1
    assert own_modules.forget_changed() == []
    before = plugins.origin("nets_edited:net")
    (folder / "helper_edited.py").write_text("def width():\n    return 22\n")
    assert own_modules.forget_changed() == ["helper_edited", "nets_edited"]
    assert plugins.load("models", "nets_edited:net")((1,), 2) == 22
    assert plugins.origin("nets_edited:net") == before
    assert sys.modules["other_edited"] is other_edited


def test_the_digest_that_is_recorded_is_that_of_the_code_that_was_loaded(folder):
    file = folder / "nets_edited.py"
    file.write_text("def net(input_shape, num_classes):\n    return 1\n")
    loaded = sha256_of(file)
    plugins.load("models", "nets_edited:net")
    file.write_text("def net(input_shape, num_classes):\n    return 2\n")
    assert plugins.origin("nets_edited:net")["sha256"] == loaded


@pytest.mark.parametrize("name", ["__main__:net", "builtins:print"])
def test_what_stands_in_no_file_ends_in_no_traceback(name):
    if name.startswith("__main__"):
        with pytest.raises(ParametersError, match="put net into a file"):
            plugins.schema("models", name)
    else:
        assert plugins.origin(name) is None
