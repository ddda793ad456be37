"""The bandwidth table: our all-reduce and gloo's own in turn, in one go (`lockstep collectives bench`).

uv run benchmarks/collectives.py --ranks 2 --transports shm,tcp --json
"""

from lockstep.bench.collectives import main

if __name__ == "__main__":
    raise SystemExit(main())
