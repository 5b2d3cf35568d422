"""Watching callbacks without a line of code: `INTERPRETABLE_TRAINING=watch python train.py`.

Lightning calls `callbacks_of_environment` for every Trainer, because of the entry points in pyproject.toml. Without the
variable it returns no callbacks and imports nothing.
"""

import os
from pathlib import Path
from typing import Any

VARIABLE = "INTERPRETABLE_TRAINING"


def callbacks_of_environment() -> list[Any]:
    """Return the callbacks for which the variable INTERPRETABLE_TRAINING asks.

    "watch" is the three usual ones. A path to a YAML file is those in the file: a list of class paths, alone or as the
    `callbacks`, `trainer.callbacks` or `trainer.callbacks+` of a configuration.

    >>> callbacks_of_environment()
    []
    """
    value = os.environ.get(VARIABLE, "").strip()
    if not value:
        return []
    if value == "watch":
        from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics

        return [ExplanationLogger(), InterpretabilityMetrics(), ExplanationDrift()]
    if not value.lower().endswith((".yaml", ".yml")):
        raise ValueError(f"expected {VARIABLE} to be 'watch' or the path of a YAML file, got {value!r}; unset it.")
    return callbacks_of_file(Path(value))


def callbacks_of_file(path: Path) -> list[Any]:
    """Return the callbacks of a YAML file."""
    import yaml  # type: ignore[import-untyped]
    from jsonargparse import ArgumentParser

    import interpretable_training.callbacks  # noqa: F401, whose classes need no paths then
    from interpretable_training.callbacks.watching._compat import AnyCallback

    if not path.is_file():
        raise FileNotFoundError(f"expected {VARIABLE} to name a file that exists, got {str(path)!r}.")
    content = yaml.safe_load(path.read_text(encoding="utf-8"))
    for key in ("trainer", "callbacks", "callbacks+"):
        content = content.get(key, content) if isinstance(content, dict) else content
    if not isinstance(content, list):
        raise ValueError(
            f"expected a list of callbacks in {str(path)!r}, alone or below 'callbacks', got {type(content).__name__}; "
            "docs/existing-project.md shows one."
        )
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--callbacks", type=list[AnyCallback])
    built = parser.instantiate_classes(parser.parse_object({"callbacks": content}))
    return list(built.callbacks)
