"""The command line: `memoptc MODEL ...` compiles; the subcommands look, check and run."""

from memoptc.cli.main import main

__all__ = ["main"]
