"""What the strict reader of YAML promises."""

import ast
import os
import tracemalloc
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from lockstep import strict_yaml
from lockstep.errors import ParametersError

LAUGHS = "a: &a [x, x]\nb: &b [*a, *a]\nc: &c [*b, *b]\nd: [*c, *c]\n"

REFUSED = {
    "empty": (b"", "it is empty"),
    "only a comment": (b"# nothing\n", "empty"),
    "only a document mark": (b"---\n", "empty"),
    "list": (b"- 1\n- 2\n", ":1: found a list at the top level"),
    "single value": (b"hello", ":1: found a single value at the top level"),
    "not UTF-8": (b"a: 1\nb: \xff\n", ":2: found the byte 0xff, which is not UTF-8"),
    "UTF-16": ("a: 1".encode("utf-16"), "not UTF-8"),
    "NUL": (b"a: 1\nb: x\x00y\n", r":2: found the control character U\+0000"),
    "escape character": (b"a: \x1b[31m", r"control character U\+001B"),
    "escaped NUL": (b'\na: "\\0"', r":2: found the control character U\+0000"),
    "anchor": (b"a: &x 1\n", ":1: found the anchor &x"),
    "alias bomb": (LAUGHS.encode(), ":1: found the anchor &a"),
    "alias": (b"a: 1\nb: *x\n", r":2: found the alias \*x"),
    "tag of Python": (b"a: !!python/object/apply:os.system [ls]\n", ":1: found the tag .*python/object"),
    "own tag": (b"a: !x 1\n", ":1: found the tag !x"),
    "duplicate key": (b"a:\n  b: 1\n  b: 2\n", r":3: found the key a\.b a second time.*line 2"),
    "two documents": (b"a: 1\n---\nb: 1\n", ":2: found the start of another document"),
    "number as key": (b"1: 2\n", r":1: found the key 1 \(int\), allowed: a name"),
    "boolean as key": (b"true: 2\n", r":1: found the key true \(bool\)"),
    "null as key": (b"~: 2\n", ":1: found the key ~"),
    "list as key": (b"? [a]\n: 1\n", ":1: found a list or a mapping as a key"),
    "too deep": (b"a: " + b"[" * 30 + b"]" * 30, ":1: found more than 20 levels"),
    "million brackets": (b"[" * 999_999, ":1: found more than 20 levels"),
    "million open mappings": (b"{a: " * 249_999, ":1: found more than 20 levels"),
    "half a million values": (b"a: [" + b"1," * 499_990 + b"]", ":1: found more than 10,000 values"),
    "above 1 MB": (b"a: 1\n" + b"#" * 1_000_000, "found more than 1,000,000 bytes"),
    "NaN": (b"x:\n  a: .nan\n", r":2: x\.a: found \.nan, allowed: finite numbers"),
    "infinity": (b"a: -.inf\n", r":1: a: found -\.inf, allowed: finite"),
    "overflow": (b"a: 1e999\n", ":1: a: found 1e999, allowed: finite"),
    "endless digits": (b"a: " + b"9" * 100_000, "allowed: whole numbers of at most 64 bits"),
    "syntax": (b"a: 1\nb: [1\n", r":\d: not valid YAML: "),
    "tab": (b"a:\n\tb: 1\n", ":2: not valid YAML: found character that cannot start any token"),
}


@pytest.fixture(params=["libyaml", "python"])
def any_parser(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both parsers of PyYAML: not every build has libyaml."""
    if request.param == "python":
        monkeypatch.setattr(strict_yaml, "_LOADER", yaml.SafeLoader)
    return str(request.param)


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused_names_file_line_and_what_was_found(name: str, tmp_path: Path) -> None:
    content, message = REFUSED[name]
    path = tmp_path / "file.yaml"
    path.write_bytes(content)
    with pytest.raises(ParametersError, match=message) as caught:
        strict_yaml.read(path)
    assert str(caught.value).startswith(str(path))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, (content, _) in REFUSED.items() if len(content) < 10_000])
def test_both_parsers_refuse_the_same(name: str, any_parser: str) -> None:
    with pytest.raises(ParametersError):
        strict_yaml.parse(REFUSED[name][0], "file.yaml")


def test_what_is_no_readable_file_is_refused(tmp_path: Path) -> None:
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)  # reading it would wait for ever
    for path, message in (
        (tmp_path / "absent.yaml", "there is no such file"),
        (tmp_path, "not a file"),
        (fifo, "not a file"),
        (Path("/dev/zero"), "not a file"),
        (tmp_path / ("n" * 300), "cannot be read: File name too long"),
        (tmp_path / "x\0y", "found|cannot be read|no such file"),
    ):
        with pytest.raises(ParametersError, match=message):
            strict_yaml.read(path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root reads everything")
def test_a_file_without_permission_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "file.yaml"
    path.touch(mode=0)
    with pytest.raises(ParametersError, match="cannot be read: Permission denied"):
        strict_yaml.read(path)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("1.5", 1.5),
        (".5", 0.5),
        ("-2", -2),
        ("+2", 2),
        ("010", 10),
        ("0x1f", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1:30", "1:30"),
        ("yes", "yes"),
        ("on", "on"),
        ("No", "No"),
        ("true", True),
        ("False", False),
        ("tRue", "tRue"),
        ("2026-11-20", "2026-11-20"),
        ("null", None),
        ("~", None),
        ("", None),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'.nan'", ".nan"),
        ("=", "="),
        ("[64, 1e2, a]", [64, 100.0, "a"]),
        ("{name: sgd, momentum: 0.5}", {"name": "sgd", "momentum": 0.5}),
        ("package.module:name", "package.module:name"),
        ("18446744073709551615", 2**64 - 1),
    ],
)
def test_scalars_follow_yaml_1_2(text: str, value: object, any_parser: str) -> None:
    found = strict_yaml.parse_value(text, "command line")
    assert found == value
    assert type(found) is type(value)
    document = strict_yaml.parse(f"key: {text}", "file.yaml")
    assert document.value == {"key": value}


def test_every_path_knows_its_line(any_parser: str) -> None:
    document = strict_yaml.parse(
        "# first\na: 1\nb:\n  c:\n    - x\n    - {d: 1}\n  e: [1,\n    2]\n", "file.yaml"
    )
    assert document.value == {"a": 1, "b": {"c": ["x", {"d": 1}], "e": [1, 2]}}
    assert document.lines == {
        (): 2,
        ("a",): 2,
        ("b",): 3,
        ("b", "c"): 4,
        ("b", "c", 0): 5,
        ("b", "c", 1): 6,
        ("b", "c", 1, "d"): 6,
        ("b", "e"): 7,
        ("b", "e", 0): 7,
        ("b", "e", 1): 8,
    }


def test_a_byte_order_mark_is_let_through() -> None:
    assert strict_yaml.parse(b"\xef\xbb\xbfa: 1", "file.yaml").value == {"a": 1}


@pytest.mark.parametrize(
    "text", ["a: 1", "- 1", "a\nb", "--- a", "*x", "&x 1", "!!str 1", "[1", "{a: 1, a: 2}", "x\udc80"]
)
def test_a_value_of_the_command_line_is_one_plain_value(text: str) -> None:
    with pytest.raises(ParametersError, match=r"^command line: "):
        strict_yaml.parse_value(text, "command line")


def test_a_bomb_costs_little_memory() -> None:
    tracemalloc.start()
    try:
        with pytest.raises(ParametersError):
            strict_yaml.parse(b"[" * 999_999, "file.yaml")
        assert tracemalloc.get_traced_memory()[1] < 20_000_000
    finally:
        tracemalloc.stop()


PIECES = st.lists(
    st.sampled_from(
        [*"[]{}:,-?&*!|>'\"%@`# \n\t~a1", ": ", "- ", "\n  ", "---", "...", "!!", "\\x", "<<", ".inf", "1e9"]
    )
).map("".join)


@settings(max_examples=150, deadline=None)
@given(
    st.one_of(
        st.binary(), PIECES.map(str.encode), st.text().map(lambda text: text.encode("utf-8", "replace"))
    )
)
def test_any_bytes_give_a_mapping_or_a_message(content: bytes) -> None:
    try:
        assert isinstance(strict_yaml.parse(content, "file.yaml").value, dict)
    except ParametersError as error:
        assert "\n" not in str(error)


@settings(max_examples=150, deadline=None)
@given(st.one_of(st.text(), PIECES))
def test_any_text_gives_a_value_or_a_message(text: str) -> None:
    try:
        strict_yaml.parse_value(text, "command line")
    except ParametersError as error:
        assert "\n" not in str(error)


def test_no_module_calls_a_loader_that_makes_objects() -> None:
    for path in Path(strict_yaml.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "yaml"
            ):
                assert node.attr not in {"load", "unsafe_load", "full_load", "load_all"}, path
