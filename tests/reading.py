"""Reading texts as parameter files, for the tests of parameters and overrides."""

from collections.abc import Callable
from pathlib import Path

import pytest

from lockstep import parameters
from lockstep.errors import ParametersError
from lockstep.parameters import Parameters

Reader = Callable[..., Parameters]


def reader(folder: Path) -> Reader:
    """A function that reads a text as a file named p.yaml, with overrides."""

    def read(text: str, *overrides: str) -> Parameters:
        path = folder / "p.yaml"
        path.write_text(text)
        return parameters.read(path, overrides)

    return read


def refused(read: Reader, text: str, *overrides: str) -> list[str]:
    """The lines of the message, without the file's folder."""
    with pytest.raises(ParametersError) as caught:
        read(text, *overrides)
    return [line.rpartition("/")[2] if "/p.yaml" in line else line for line in str(caught.value).split("\n")]
