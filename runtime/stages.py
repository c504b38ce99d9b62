"""A model that was cut into stages (`memoptc stages`), run one stage after the other."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import onnxruntime as ort

from memoptc.ir.diagnostics import InputError
from memoptc.runtime.external_weights import input_names

MANIFEST = "stages.json"


class Stages:
    """Runs the stages of a folder in stock onnxruntime, one or two of them in memory at a time.

    The numbers are the model's; where a cut separates what onnxruntime's optimizer would fuse, to the last bits only.

    Args:
        folder: What `memoptc stages` wrote.
        keep: Keep all stages loaded: as fast as the whole model. Otherwise a stage is loaded while the one before it
            runs, and given back when it has run; a run then takes the time of loading, too.
        ahead: Load the next stage while one runs; without, one stage is in memory at a time.
        options: Of every session; onnxruntime's own, without its second block of activations, when not given.

    Raises:
        InputError: the folder holds no stages.
    """

    def __init__(
        self,
        folder: str | os.PathLike[str],
        *,
        keep: bool = False,
        ahead: bool = True,
        options: ort.SessionOptions | None = None,
    ) -> None:
        self.folder = Path(os.path.abspath(folder))  # stages are loaded later, wherever the process is then
        self._keep, self._ahead, self._options = keep, ahead and not keep, options
        try:
            manifest = json.loads((self.folder / MANIFEST).read_text(encoding="utf-8"))
            self._files = [self.folder / name for name in manifest["stages"]]
            self._outputs: list[str] = manifest["outputs"]
            self._inputs: list[str] | None = manifest.get("inputs")  # those that no stage reads, too
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"{folder} holds no stages: {error}.", hint="Make some with memoptc stages MODEL -o FOLDER."
            ) from error
        self._last = {name: number for number, file in enumerate(self._files) for name in input_names(file)}
        """Value -> the last stage that reads it."""
        self._kept = [self._load(file) for file in self._files] if keep else []

    def run(
        self,
        output_names: Sequence[str] | None,
        input_feed: Mapping[str, Any],
        run_options: ort.RunOptions | None = None,
    ) -> list[Any]:
        """Run all stages; arguments and result as those of `onnxruntime.InferenceSession.run`.

        Args:
            output_names: Outputs wanted; all when not given.
            input_feed: An array per input.
            run_options: Of the run of every stage; `terminate` ends the run in whichever stage is at work.

        Raises:
            InputError: no output or no input has such a name, or an input is missing.
        """
        wanted = list(output_names or self._outputs)
        for name in wanted:
            if name not in self._outputs:
                raise InputError(f"There is no output {name!r}.", hint=f"Outputs are {', '.join(self._outputs)}.")
        for name in input_feed:
            if self._inputs is not None and name not in self._inputs:
                raise InputError(f"There is no input {name!r}.", hint=f"Inputs are {', '.join(self._inputs)}.")
        values: dict[str, Any] = dict(input_feed)
        with ThreadPoolExecutor(1) as loader:
            following: Future[ort.InferenceSession] | None = None
            for number, file in enumerate(self._files):
                session = self._kept[number] if self._keep else following.result() if following else self._load(file)
                if self._ahead and number + 1 < len(self._files):
                    following = loader.submit(self._load, self._files[number + 1])
                self._run_stage(session, values, run_options)
                del session
                for name in [n for n in values if self._last.get(n, -1) <= number and n not in wanted]:
                    del values[name]
        return [values[name] for name in wanted]

    def _run_stage(
        self, session: ort.InferenceSession, values: dict[str, Any], run_options: ort.RunOptions | None
    ) -> None:
        names = [port.name for port in session.get_inputs()]
        missing = [name for name in names if name not in values]
        if missing:
            raise InputError(f"The input {missing[0]!r} is missing.", hint="Give every input of the model.")
        names += [port.name for port in session.get_overridable_initializers() if port.name in values]
        outputs = [port.name for port in session.get_outputs()]
        feed = {name: values[name] for name in names}
        values |= zip(outputs, session.run(outputs, feed, run_options), strict=True)

    def _load(self, file: Path) -> ort.InferenceSession:
        options = self._options
        if options is None:
            options = ort.SessionOptions()
            options.enable_mem_pattern = False
        return ort.InferenceSession(file, options, providers=["CPUExecutionProvider"])
