"""The main job: `uv run pipeline.py [--parameters FILE] [--resume RUN] [key.path=value ...]`."""

import sys

from lockstep.cli import main

if __name__ == "__main__":
    raise SystemExit(main(["run", *sys.argv[1:]]))
