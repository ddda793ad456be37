"""One process, the reference that every exact strategy is held against."""

from lockstep.strategies.base import Strategy


class Single(Strategy):
    """The base's defaults, and nothing else."""
