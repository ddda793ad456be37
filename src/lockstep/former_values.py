"""Values of parameters that were renamed: files and records of before hold them, and mean the same."""

# Ranks were never started by torch's spawn: they are forked from a server (docs/adr/0002).
FORMER = {"distributed.launcher": {"spawn": "fork_server"}}


def current(key: str, value: object) -> object:
    """What a value is called today; ``key`` is dotted."""
    return FORMER.get(key, {}).get(value, value) if isinstance(value, str) else value
