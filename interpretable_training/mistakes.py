"""Errors for mistakes of the user, which commands print as one paragraph."""

import difflib
import tempfile
from collections.abc import Iterable
from pathlib import Path


class MistakeError(Exception):
    """Error for a mistake of the user, described in one paragraph."""


def require_writable(folder: str | Path) -> None:
    """Raise before a training, not after it, where its results cannot be written."""
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise MistakeError(
            f"expected an output folder that can be written, got {str(folder)!r} ({error.strerror}); choose another "
            "(--output of the demo, --trainer.logger.init_args.save_dir or --trainer.default_root_dir otherwise)."
        ) from error


def closest(name: str, names: Iterable[str]) -> list[str]:
    """Return up to three names that look alike, ignoring case."""
    lower = {known.lower(): known for known in names}
    return [lower[match] for match in difflib.get_close_matches(name.lower(), lower, cutoff=0.5)]
