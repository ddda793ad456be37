"""`lockstep collectives bench`: our all-reduce and gloo's own in turn, on processes of this machine."""

from lockstep.bench.collectives import configure, run

__all__ = ["configure", "run"]
