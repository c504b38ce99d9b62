"""Options that a compile has no use for: harmless, and yet whoever gives one expects something of it."""

from __future__ import annotations

from memoptc import registry
from memoptc.option_fields import default_of, flags_of, options_of
from memoptc.options import Options
from memoptc.pipeline import Pipeline
from memoptc.runtime.devices import load_device


def idle_options(options: Options, steps: Pipeline) -> list[str]:
    """Say which options nothing comes of, and what they would do something with.

    Args:
        options: The options in force.
        steps: The pipeline that they stand for.
    """
    fitted = any(pass_.name == "fit" for pass_ in steps.passes())
    own = options.passes is not None
    found = [
        _sentence(name, mode)
        for name, idle, mode in (
            (
                "max_slowdown",
                not options.measure and (own or not fitted),
                "without measuring, but in the pass fit of -O2 and -O3",
            ),
            ("max_error", options.verify == "off", "without a proof"),
            ("device", own or options.target == "float32", "but for a --target, or where it loads plain ONNX only"),
        )
        if idle and getattr(options, name) != default_of(options_of(Options)[name][0]) and not _is_plain(name, options)
    ]
    running = {pass_.name for pass_ in steps.passes()}
    for plugin in options.plugins:
        names = registry.names_in(plugin)
        if not running & set(names):
            found.append(
                f"No pass of this pipeline is one of {plugin} ({', '.join(names)}), so nothing of it runs. "
                f"Name it in --passes; --print-pipeline prints the pipeline to add it to."
            )
    return found


def _is_plain(name: str, options: Options) -> bool:
    return name == "device" and load_device(options.device).plain


def _sentence(name: str, mode: str) -> str:
    field, how = options_of(Options)[name]
    return f"{flags_of(name, default_of(field), how)[0]} does nothing {mode}."
