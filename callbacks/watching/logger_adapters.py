"""Send pictures, tables, facts and alerts of watching callbacks to the loggers of a Trainer, whichever they are.

`adapter(logger)` returns the adapter of a logger; platform_adapters.py has those of experiment trackers. CSV, no
logger, `fast_dev_run` and loggers without an adapter get nothing, because the journal on disk has it all. For another
logger:

    class MyAdapter(Adapter):
        def images(self, images, step, epoch, file_type): ...

    adapter.register(MyLogger, MyAdapter)

Ranks other than zero send nothing, and no rank waits for another. An error of a logger is raised to the caller after
all loggers had their turn; W&B raises at once when its service has died. In a session a thread sends, the next call
raises the error, and a logger that does not answer is given up after a while.
"""

import json
from collections.abc import Mapping, Sequence
from functools import singledispatch
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
from torch import Tensor

from interpretable_training.callbacks.watching._compat import logged_step
from interpretable_training.callbacks.watching.background_sender import SENDERS
from interpretable_training.callbacks.watching.platform_adapters import Adapter, platform_of, safe_key

Pictures = Sequence[np.ndarray | Tensor]

TITLE = 63  # characters that W&B allows the title of an alert


def log_images(
    trainer: L.Trainer,
    images: Mapping[str, tuple[Pictures, Sequence[str]]],
    step: int,
    epoch: int,
    file_type: str = "jpg",
) -> None:
    """Send all pictures of an event.

    Args:
        trainer: Whose loggers get them.
        images: By key, such as "xai/gradcam": pictures, uint8 (H, W, 3), and as many captions. W&B shows pictures of a
            key side by side and wants them of one size.
        step: See `logged_step`.
        epoch: Logged beside the pictures where the logger has rows.
        file_type: "jpg" or "png", for W&B; the other loggers write PNG.
    """
    checked: dict[str, Sequence[tuple[np.ndarray, str]]] = {}
    for key, (pictures, captions) in images.items():
        if len(pictures) != len(captions):
            raise ValueError(
                f"expected a caption for each of {len(pictures)} pictures of {key!r}, got {len(captions)}."
            )
        if len(pictures):
            checked[safe_key(key)] = [(checked_picture(p, key), plain_text(c)) for p, c in zip(pictures, captions)]
    if checked:
        send(trainer, "images", checked, step, epoch, file_type)


def log_table(trainer: L.Trainer, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Send a table; once, at the end of a run, for loggers keep every version of it."""
    texts = [[plain_text(cell) if isinstance(cell, str) else cell for cell in row] for row in rows]
    send(trainer, "table", safe_key(key), [plain_text(column) for column in columns], texts, logged_step(trainer))


def log_facts(trainer: L.Trainer, facts: Mapping[str, Any]) -> None:
    """Send settings and passports: a name, for example that of a callback, and the facts under it."""
    send(trainer, "facts", json.loads(plain_text(json.dumps(dict(facts), default=str, ensure_ascii=False))))


def log_summary(trainer: L.Trainer, values: Mapping[str, Any]) -> None:
    """Send values of the whole run, for example the best value of a metric; under keys that no row has."""
    send(trainer, "summary", dict(values))


def log_directions(trainer: L.Trainer, wants_high: Mapping[str, bool]) -> None:
    """Send which values are better when they are high, for loggers that show the best value of a run."""
    send(trainer, "directions", dict(wants_high))


def log_report(trainer: L.Trainer, page: Path, facts: Mapping[str, Any]) -> None:
    """Send the page of the run, with facts about it."""
    send(trainer, "report", page, dict(facts), logged_step(trainer))


def alert(trainer: L.Trainer, title: str, text: str) -> None:
    """Send an alert to the loggers that have alerts."""
    send(trainer, "alert", plain_text(title)[:TITLE], plain_text(text))


@singledispatch
def adapter(logger: Any) -> Adapter:
    """Return the adapter of a logger: of its own experiment, else of a logger that it holds."""
    held = [value for value in vars(logger).values() if hasattr(type(value), "log_metrics")]
    for holder in (logger, *held):
        kind = platform_of(holder)
        if kind is not None:
            return kind(holder)
    return Adapter(logger)


def picture_line(trainer: L.Trainer) -> tuple[str, str]:
    """Return the line of the start-up report that says which loggers show pictures."""
    names: dict[bool, list[str]] = {True: [], False: []}
    for logger in trainer.loggers:
        names[type(adapter(logger)).images is not Adapter.images].append(type(logger).__name__)
    shown, missing = (", ".join(dict.fromkeys(names[shows])) for shows in (True, False))
    parts = ["in the folder explanations"] + [f"sent to {shown}"] * bool(shown)
    return "pictures", "; ".join([*parts, *[f"{missing} gets numbers only"] * bool(missing)])


def send(trainer: L.Trainer, what: str, *args: Any) -> None:
    """Send to each logger, in the background where a session has opened a sender; raise for those that failed."""
    adapters = [adapter(logger) for logger in trainer.loggers] if trainer.is_global_zero else []
    adapters = [chosen for chosen in adapters if getattr(type(chosen), what) is not getattr(Adapter, what)]
    if not adapters:
        return
    sender = SENDERS.get(trainer)
    if sender is None:
        deliver(adapters, what, args)
    else:
        sender.put(lambda: deliver(adapters, what, args))


def deliver(adapters: Sequence[Adapter], what: str, args: Sequence[Any]) -> None:
    """Call each adapter, then raise for those that failed."""
    failed = []
    for chosen in adapters:
        try:
            getattr(chosen, what)(*args)
        except Exception as error:
            failed.append((chosen.logger, error))
    if failed:
        reasons = "; ".join(f"{type(logger).__name__}: {type(error).__name__}: {error}" for logger, error in failed)
        raise RuntimeError(f"expected every logger to take the {what}, got from {reasons}") from failed[0][1]


def checked_picture(picture: np.ndarray | Tensor, key: str) -> np.ndarray:
    """Return the picture as an array; loggers make black images or errors of anything but bytes."""
    array = picture.detach().cpu().numpy() if isinstance(picture, Tensor) else np.asarray(picture)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3 or 0 in array.shape:
        raise ValueError(
            f"expected pictures of {key!r} as uint8 (H, W, 3), got {array.dtype} {array.shape}; "
            "scale to 0...255 and put the channels last."
        )
    return np.ascontiguousarray(array)


def plain_text(text: str) -> str:
    """Return text that every encoder takes: a name that was read from a file system may hold halves of characters."""
    return text.encode(errors="replace").decode()
