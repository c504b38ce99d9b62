"""`memoptc run --generate`: tokens of a language model, printed as they come."""

from __future__ import annotations

import time
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from memoptc.cli.options import Talk, print_json


def read_prompts(path: Path) -> list[list[int]]:
    """Read numbers of tokens, a row for each prompt.

    Args:
        path: `.npy`, `.npz` with one array, or text with numbers apart by blanks or commas.

    Raises:
        InputError: it cannot be read, or holds something else.
    """
    import numpy as np

    from memoptc.ir.diagnostics import InputError

    try:
        if path.suffix in (".npy", ".npz"):
            loaded = np.load(path)
            array = np.asarray(loaded if path.suffix == ".npy" else loaded[loaded.files[0]])
            if array.dtype.kind not in "iu" or not array.size:
                raise ValueError(f"it holds {array.dtype} {array.shape}")
            rows = np.atleast_1d(array)
            return [[int(n) for n in row] for row in rows.reshape(-1, rows.shape[-1])]
        lines = path.read_text("utf-8").replace(",", " ").splitlines()
        prompts = [[int(word) for word in line.split()] for line in lines if line.strip()]
        if not prompts:
            raise ValueError("it is empty")
        return prompts
    except OSError as error:
        raise InputError(f"{path}: {error.strerror or error}.") from None
    except (ValueError, IndexError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(
            f"{path} holds no token numbers: {error}.", hint="Write whole numbers, the prompts in lines of their own."
        ) from None


def print_tokens(
    model: Path,
    prompt_ids: Path,
    options: Mapping[str, Any],
    sampling: Mapping[str, Any],
    outputs: Path | None,
    talk: Talk,
) -> None:
    """Generate, and print tokens to stdout, a line for each prompt; how fast that was to stderr.

    Args:
        model: The model.
        prompt_ids: File of the prompts.
        options: Of `Decoder`.
        sampling: Of `Decoder.generate`.
        outputs: Where to write the tokens, too, if anywhere: `ids`, -1 behind the end of a sequence.
        talk: How much to print besides the tokens.
    """
    import numpy as np

    from memoptc.runtime.decoding import Decoder
    from memoptc.runtime.npz import save_feed

    prompts = read_prompts(prompt_ids)
    with Decoder(model, **options) as decoder:
        started = time.perf_counter()
        steps = decoder.generate(prompts if len(prompts) > 1 else prompts[0], **sampling)
        ready = time.perf_counter()
        made: list[list[int | None]] = []
        for step in steps:
            made.append(step if isinstance(step, list) else [step])
            if len(prompts) == 1 and not talk.as_json:
                click.echo(f"{' ' if len(made) > 1 else ''}{step}", nl=False)
        ended = time.perf_counter()
        notes = list(decoder.notes)
    count = sum(map(len, prompts))
    rows = [[token for token in row if token is not None] for row in zip(*made, strict=True)] or [[] for _ in prompts]
    if talk.as_json:
        rate = (len(made) - 1) * len(prompts) / (ended - ready) if len(made) > 1 else None
        print_json({"tokens": rows, "prompt_per_s": count / (ready - started), "per_s": rate, "notes": notes})
    elif len(prompts) == 1:
        click.echo()
    else:
        for row in rows:
            click.echo(" ".join(map(str, row)))
    if outputs is not None:
        array = np.asarray([[-1 if t is None else t for t in step] for step in made], np.int64)
        save_feed(outputs, {"ids": array.reshape(-1, len(prompts)).T})
    if not talk.quiet:
        click.echo(f"prompt: {count} tokens, {count / (ready - started):.1f} a second", err=True)
        if len(made) > 1:  # the first one came with the prompt
            rate = (len(made) - 1) * len(prompts) / (ended - ready)
            click.echo(f"generated: {len(made)} tokens a sequence, {rate:.1f} a second", err=True)
        for note in notes:
            click.echo(f"note: {note}", err=True)
