"""Whatever a file or a command line holds: taken, or refused in words; and what is written is read back."""

import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import parameters, strict_yaml, yaml_dump
from lockstep.errors import ParametersError
from lockstep.parameters import Parameters

FINITE = st.floats(allow_nan=False, allow_infinity=False)
SOUND = st.fixed_dictionaries(
    {},
    optional={
        "seed": st.integers(0, 2**63 - 1),
        "data": st.one_of(
            st.just("digits"),
            st.fixed_dictionaries({"name": st.just("synthetic"), "num_samples": st.integers(2, 10**9)}),
            st.fixed_dictionaries({"test_fraction": st.floats(1e-300, 0.8)}),
        ),
        "model": st.fixed_dictionaries(
            {}, optional={"hidden_sizes": st.lists(st.integers(1, 9)), "dropout": st.floats(0, 0.9)}
        ),
        "training": st.fixed_dictionaries(
            {},
            optional={
                "learning_rate": st.floats(0, exclude_min=True, allow_infinity=False),
                "max_grad_norm": st.none() | st.floats(5e-324, 1e308),
                "optimizer": st.sampled_from(["adam", "sgd", {"name": "adamw", "epsilon": 1e-300}]),
                "schedule": st.sampled_from(["linear", {"name": "cosine", "final_fraction": 1}]),
            },
        ),
    },
)


@settings(max_examples=60, deadline=None)
@given(SOUND)
def test_what_is_written_is_read_back_equal(value: dict[str, Any]) -> None:
    p = parameters.from_value(value)
    written = strict_yaml.parse(parameters.dump(p), "p.yaml").value
    assert parameters.from_value(written) == p
    assert parameters.from_value(p.to_value()) == p
    assert written == p.to_value()


TEXT = st.text(st.characters(exclude_categories=["Cs", "Cc"], exclude_characters="\ufffe\uffff"))
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63)
    | FINITE
    | TEXT
    | st.sampled_from(["yes", "1e3", "0o7", "~", "a\nb"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3),
    max_leaves=8,
)


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(TEXT, PLAIN, min_size=1, max_size=3))
def test_any_plain_value_is_written_so_that_it_is_read_back(value: dict[str, Any]) -> None:
    text = yaml_dump.text(value)
    assert repr(strict_yaml.parse(text, "p.yaml").value) == repr(value)


KEYS = sorted(
    {
        key
        for section in Parameters.model_fields.values()
        for key in getattr(section.annotation, "model_fields", {})
    }
    | set(Parameters.model_fields)
    | {"name", "betas", "momentum", "num_samples", "x"}
)
VALUES = st.sampled_from(
    [
        "",
        "1",
        "0",
        "-1",
        "2.5",
        "true",
        "null",
        "ddp",
        "single",
        "sgd",
        "synthetic",
        "[1]",
        "{}",
        "{name: adam}",
        "{name: 1}",
        "{name: {}}",
        "[",
        "'",
        "*a",
    ]
)
OVERRIDES = st.builds(
    lambda path, value: f"{'.'.join(path)}={value}",
    st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
    VALUES | st.text(max_size=6),
)


@settings(max_examples=120, deadline=None)
@given(st.lists(OVERRIDES | st.text(max_size=12), max_size=4))
def test_any_override_is_taken_or_refused_in_words(arguments: list[str]) -> None:
    try:
        p = parameters.read(None, arguments)
    except ParametersError as error:
        assert "command line" in str(error)
        assert "pydantic" not in str(error).lower() or "pydantic" in str(arguments).lower()
        return
    assert parameters.from_value(p.to_value()) == p


NESTED = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 300)
    | st.just(math.pi)
    | st.sampled_from(["sgd", "ddp", "linear", "synthetic", "x"]),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS), NESTED, max_size=4))
def test_any_mapping_is_taken_or_refused_in_words(value: dict[str, Any]) -> None:
    try:
        p = parameters.from_value(value)
    except ParametersError as error:
        for line in str(error).split("\n"):
            assert "found" in line or line.startswith("and ")
        return
    assert parameters.from_value(p.to_value()) == p


@settings(max_examples=80, deadline=None)
@given(content=st.binary() | st.text().map(lambda text: f"training: {text}".encode("utf-8", "replace")))
def test_any_bytes_are_taken_or_refused_in_words(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "fuzz.yaml"
    path.write_bytes(content)
    try:
        parameters.read(path)
    except ParametersError as error:
        assert str(error).startswith(str(path))
