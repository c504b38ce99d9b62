"""`python -m memoptc`: the command line."""

from memoptc.cli import main

raise SystemExit(main())
