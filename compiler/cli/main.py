"""Entry point: subcommands, what goes to which stream, exit codes."""

from __future__ import annotations

import difflib
import errno
import gc
import importlib
import io
import os
import sys
from typing import Any

import click

from memoptc.ir.diagnostics import InputError, MemoptcError
from memoptc.version import __version__

EPILOG = (
    "Exit codes: 0 done; 1 a fault of memoptc (a reproducer is written); 2 bad usage or bad input; "
    "3 verification or accuracy gate failed; 4 memory budget out of reach; 130 interrupted, nothing written."
)

COMMANDS = {
    "compile": "memoptc.cli.compile",
    "show": "memoptc.cli.graph_view",
    "opt": "memoptc.cli.opt",
    "passes": "memoptc.cli.passes",
    "rules": "memoptc.cli.rules",
    "new-pass": "memoptc.cli.new_pass",
    "frontier": "memoptc.cli.frontier",
    "profile": "memoptc.cli.profile",
    "plan": "memoptc.cli.plan",
    "run": "memoptc.cli.run",
    "fits": "memoptc.cli.fits",
    "verify": "memoptc.cli.verify",
    "bisect": "memoptc.cli.bisect",
    "reduce": "memoptc.cli.reduce",
    "study": "memoptc.cli.study",
    "cascade": "memoptc.cli.cascade",
    "merge": "memoptc.cli.merge",
    "stages": "memoptc.cli.stages",
    "diff": "memoptc.cli.diff",
    "drift": "memoptc.cli.drift",
}

SUMMARIES = {
    "Compile": {
        "compile": "MODEL into one that needs less memory, and prove it",
        "frontier": "for smaller and smaller budgets: memory against latency",
        "study": "one change at a time against the original: which is worth it",
        "cascade": "SMALL and BIG into one that asks BIG only where needed",
    },
    "Look and run": {
        "profile": "where a model's memory goes, planned and recorded",
        "plan": "the arena of its activations: figures, C header, picture",
        "show": "its nodes, with types, bytes and what they come from",
        "run": "run it, and show outputs and the memory that it took",
        "fits": "the smallest memory limit in which it runs",
    },
    "Check": {
        "verify": "the numbers of two models against each other",
        "diff": "the nodes and reports of two models side by side",
        "drift": "whether live inputs are still those of the calibration",
        "bisect": "the pass and the rewrite that first break the numbers",
        "reduce": "the smallest model that still shows a failure",
    },
    "Deploy": {
        "merge": "several models in one folder over one file of weights",
        "stages": "one model cut into stages that run one after the other",
    },
    "Extend": {
        "passes": "every pass and rule, with its options",
        "opt": "run passes on a graph, and print it",
        "rules": "test rules: their examples and random instances",
        "new-pass": "write a package with a pass of your own and its tests",
    },
}
"""What each command does, in the words of `memoptc --help`, by what one wants to do."""


class _Commands(click.Group):
    """Loads a subcommand when it is asked for; anything that is no subcommand is a model to compile."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = importlib.import_module(COMMANDS[cmd_name]).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if args and args[0] not in COMMANDS and args[0] not in ("--help", "-h", "--version"):
            _refuse_unknown_word(args[0])
            args = ["compile", *args]
        return super().parse_args(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for section, commands in SUMMARIES.items():
            with formatter.section(section):
                formatter.write_dl(list(commands.items()))


def _refuse_unknown_word(word: str) -> None:
    """Tell a mistyped command from a model that is not there."""
    if word.startswith("-") or os.path.exists(word) or os.path.splitext(word)[1] or os.path.dirname(word):
        return
    near = difflib.get_close_matches(word, COMMANDS, n=1)
    hint = f"Did you mean `memoptc {near[0]}`?" if near else "`memoptc --help` lists the commands."
    raise InputError(f"{word}: no command and no file of that name.", hint=hint)


@click.command(
    cls=_Commands,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    no_args_is_help=True,
    subcommand_metavar="MODEL.onnx [OPTIONS] | COMMAND [ARGS]...",
)
@click.version_option(__version__, prog_name="memoptc")
def cli() -> None:
    """Make ONNX models run in far less memory, and prove what changed.

    `memoptc MODEL.onnx OUT.onnx -O2 --target int8` compiles; `memoptc compile --help` lists its options, `memoptc
    COMMAND --help` those of the others.
    """


def main(args: list[str] | None = None) -> int:
    """Run the command line and give its exit code.

    Args:
        args: Arguments without the program's name; the process's own when `None`.
    """
    arguments = sys.argv[1:] if args is None else args
    debug, as_json = "--debug" in arguments, "--json" in arguments
    # A graph is millions of long-lived objects in cycles: with Python's own thresholds, looking for garbage
    # takes half the time of a large compile.
    gc.set_threshold(200_000, 50, 1000)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # a console that has no box characters is no fault
    try:
        code: Any = cli.main(arguments, prog_name="memoptc", standalone_mode=False)
        sys.stdout.flush()
        return code if isinstance(code, int) else 0
    except click.exceptions.Abort:
        click.echo("interrupted", err=True)
        return 130
    except click.ClickException as e:
        e.show()
        if as_json:
            _error_as_json(e.format_message(), "", 2)
        return 2
    except BrokenPipeError:
        return _unread()
    except SystemExit as e:
        if isinstance(e.__context__, OSError) and e.__context__.errno == errno.EPIPE:  # click's own answer to that
            return _unread()
        raise
    except Exception as e:
        if debug:
            raise
        message, hint, status = error_report(e)
        report_error(message, hint)
        if as_json:
            _error_as_json(message, hint, status)
        return status
    finally:
        if args is None:
            gc.freeze()  # the process ends, and what it held with it: Python need not look through that for garbage


def _unread() -> int:
    """Whoever read our output has left: that is no fault, and Python must not complain while it shuts down."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def error_report(e: Exception) -> tuple[str, str, int]:
    """Give the message of an error, a hint how to go on, and the exit code."""
    if isinstance(e, MemoptcError):
        return e.message, e.hint, e.exit_code
    if isinstance(e, click.ClickException):
        return e.format_message(), "`memoptc compile --help` lists the options.", 2
    if isinstance(e, MemoryError):
        return f"There is not enough memory: {e or 'sizes are too large'}.", "Give smaller sizes with --dim.", 2
    if isinstance(e, OSError) and e.filename is not None:
        reason = (e.strerror or str(e)).lower()
        return f"{e.filename}: {reason}.", "Check the path, and what may be written there.", 2
    hint = "This is a fault of memoptc: run again with --debug and report what it prints."
    return f"{type(e).__name__}: {e}", hint, 1


def _error_as_json(message: str, hint: str, code: int) -> None:
    """Print an error where the result of a command was to be."""
    from memoptc.cli.options import print_json

    print_json({"error": message, "hint": hint, "exit_code": code})


def report_error(message: str, hint: str) -> None:
    """Print what is wrong and how to go on, on stderr."""
    from rich.console import Console
    from rich.markup import escape

    console = Console(stderr=True, highlight=False)
    console.print(f"[bold red]memoptc:[/] {escape(message)}", soft_wrap=True)
    if hint:
        console.print(escape(hint), soft_wrap=True)


if __name__ == "__main__":
    sys.exit(main())
