"""Plain values as YAML text that readers of any version of YAML take for the same values."""

import re
from typing import Any

import yaml

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_.]*(:[A-Za-z_][A-Za-z0-9_.]*)?")

# Sections a line a key; the innermost lists and mappings in brackets.
_STYLE: dict[str, Any] = {
    "sort_keys": False,
    "allow_unicode": True,
    "width": 100,
    "default_flow_style": None,
}


class _Dumper(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:  # noqa: ARG002
        """Never write an anchor: equal values are written out twice."""
        return True


def _represent(dumper: yaml.SafeDumper, value: str) -> yaml.ScalarNode:
    # PyYAML knows the words of YAML 1.1 only, so whatever is not plainly a name is quoted.
    style = None if _NAME.fullmatch(value) else '"'
    return dumper.represent_scalar("tag:yaml.org,2002:str", value, style=style)


_Dumper.add_representer(str, _represent)


def text(value: dict[str, Any]) -> str:
    """A mapping as YAML, keys in the order given."""
    written: str = yaml.dump(value, Dumper=_Dumper, **_STYLE)
    return written
