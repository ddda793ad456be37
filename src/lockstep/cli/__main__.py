"""`python -m lockstep.cli`, for where the script is not on the path."""

from lockstep.cli import main

raise SystemExit(main())
