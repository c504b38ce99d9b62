"""Run the command at the head of the project's README and draw what it prints: `python examples/record_demo.py`."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.text import Text

EXAMPLES = Path(__file__).resolve().parent
WIDTH = 100


def command() -> str:
    """The first shell block of the README, its continued lines joined."""
    readme = (EXAMPLES.parent / "README.md").read_text()
    return readme.partition("```sh\n")[2].partition("```")[0]


def main() -> None:
    typed = command()
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(EXAMPLES / "models", Path(folder, "examples", "models"))
        script = [sys.executable, "-m", *shlex.split(typed.replace("\\\n", ""))]
        done = subprocess.run(
            script,
            cwd=folder,
            env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": str(WIDTH)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
    with open(os.devnull, "w") as nowhere:
        console = Console(record=True, width=WIDTH, file=nowhere, force_terminal=True, color_system="truecolor")
        console.print(f"$ {typed.rstrip()}", style="bold", highlight=False, markup=False)
        console.print(Text.from_ansi(done.stdout))
        drawn = console.export_svg(title="memoptc")
    # The picture must load nothing: without the web fonts, the viewer's own monospace font serves.
    (EXAMPLES / "demo.svg").write_text(re.sub(r"@font-face \{.*?\}", "", drawn, flags=re.DOTALL))


if __name__ == "__main__":
    main()
