"""Send pictures, tables, facts and alerts of watching callbacks to the loggers of a Trainer, whichever they are.

`adapter(logger)` returns the adapter of a kind of logger: W&B, TensorBoard and MLflow have one each. CSV, no logger,
`fast_dev_run` and loggers without an adapter get nothing, because the journal on disk has it all. For
another logger:

    class MyAdapter(Adapter):
        def images(self, images, step, epoch, file_type): ...

    adapter.register(MyLogger, MyAdapter)

Ranks other than zero send nothing, and no rank waits for another. An error of a logger is raised to the caller after
all loggers had their turn; W&B raises at once when its service has died. A service that is stopped, but alive, makes
the caller wait, as in Lightning's logging of numbers.
"""

import json
import re
from collections.abc import Mapping, Sequence
from functools import singledispatch
from hashlib import sha1
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger, MLFlowLogger, TensorBoardLogger, WandbLogger
from torch import Tensor

from interpretable_training.callbacks.watching._compat import key_prefix, logged_step
from interpretable_training.files import csv_text

Pictures = Sequence[np.ndarray | Tensor]
Checked = Mapping[str, Sequence[tuple[np.ndarray, str]]]  # by key that is fit for file names: picture, caption

TITLE = 63  # characters that W&B allows the title of an alert
LONGEST = 100  # characters of a key, to which loggers add steps and digests for a file name of 255 at most


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


def alert(trainer: L.Trainer, title: str, text: str) -> None:
    """Send an alert to the loggers that have alerts."""
    send(trainer, "alert", plain_text(title)[:TITLE], plain_text(text))


class Adapter:
    """Adapter of a kind of logger; the base sends nothing."""

    def __init__(self, logger: Logger) -> None:
        self.logger: Any = logger

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None: ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None: ...

    def facts(self, facts: dict[str, Any]) -> None: ...

    def summary(self, values: dict[str, Any]) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def prefixed(self, key: str) -> str:
        """Return the key with the prefix that the logger puts before all of its keys."""
        prefix = key_prefix(self.logger)
        return f"{prefix}{self.logger.LOGGER_JOIN_CHAR}{key}" if prefix else key


@singledispatch
def adapter(logger: Logger) -> Adapter:
    """Return the adapter of a logger."""
    return Adapter(logger)


@adapter.register(WandbLogger)
class WandbAdapter(Adapter):
    """W&B: one row for an event, which Lightning's `log_metrics` files under the step of the other values."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        import wandb
        from PIL import Image

        row: dict[str, Any] = {"epoch": epoch}
        most = wandb.Image.MAX_ITEMS  # W&B drops those of a key that are more
        for key, shown in images.items():
            files = [wandb.Image(Image.fromarray(p), caption=caption, file_type=file_type) for p, caption in shown]
            for start in range(0, len(files), most):
                row[f"{key}/from_{start}" if start else key] = files[start : start + most]
        self.logger.log_metrics(row, step=step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import wandb

        self.logger.log_metrics({key: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)}, step=step)

    def facts(self, facts: dict[str, Any]) -> None:
        config = self.logger.experiment.config
        old = config.get("xai", {})
        old = old if isinstance(old, Mapping) else {"config": old}  # a value that others set under this key
        config.update({"xai": {**old, **facts}}, allow_val_change=True)

    def summary(self, values: dict[str, Any]) -> None:
        self.logger.experiment.summary.update({self.prefixed(key): value for key, value in values.items()})

    def alert(self, title: str, text: str) -> None:
        self.logger.experiment.alert(title=title, text=text, level="WARN")


@adapter.register(TensorBoardLogger)
class TensorBoardAdapter(Adapter):
    """TensorBoard: a tag for each place in a panel, so that its slider shows that place over the steps."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        writer = self.logger.experiment
        for key, shown in images.items():
            tag = self.prefixed(key)
            for i, (picture, _) in enumerate(shown):
                writer.add_image(f"{tag}/{i}", picture, step, dataformats="HWC")
            lines = [f"{i}: {' '.join(caption.split())}" for i, (_, caption) in enumerate(shown)]
            writer.add_text(f"{tag}/captions", verbatim([f"epoch {epoch}", *lines]), step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.logger.experiment.add_text(self.prefixed(key), verbatim(csv_text([columns, *rows]).splitlines()), step)

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            text = verbatim(json.dumps(fact, indent=2, ensure_ascii=False).splitlines())
            self.logger.experiment.add_text(self.prefixed(safe_key(f"xai/{name}")), text)


@adapter.register(MLFlowLogger)
class MLFlowAdapter(Adapter):
    """MLflow: a key for each place in a panel; what has no place in its run as files that its pages show.

    Facts are files, because a parameter of a run cannot be changed and holds 250 characters.
    """

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        client, run = self.logger.experiment, self.logger.run_id
        for key, shown in images.items():
            tag = safe_key(self.prefixed(key))
            for i, (picture, _) in enumerate(shown):
                client.log_image(run, picture, key=f"{tag}/{i}", step=step)
            captions = {"step": step, "epoch": epoch, "captions": [caption for _, caption in shown]}
            client.log_dict(run, captions, f"{tag}/captions_{step}.json")

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.logger.experiment.log_text(
            self.logger.run_id, csv_text([columns, *rows]), f"{safe_key(self.prefixed(key))}.csv"
        )

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            file = f"{safe_key(self.prefixed(f'xai/{name}'))}.json"
            self.logger.experiment.log_dict(self.logger.run_id, fact, file)


def send(trainer: L.Trainer, what: str, *args: Any) -> None:
    """Send to each logger, then raise for those that failed."""
    if not trainer.is_global_zero:
        return
    failed = []
    for logger in trainer.loggers:
        try:
            getattr(adapter(logger), what)(*args)
        except Exception as error:
            failed.append((logger, error))
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


def safe_key(key: str) -> str:
    """Return the key if it is fit for file names everywhere, otherwise a similar unique one that is."""
    parts = [re.sub(r"[^\w .-]", "_", part, flags=re.ASCII).strip(" .") for part in key.split("/")]
    safe = "/".join(part for part in parts if part)
    if safe and safe == key and len(key) <= LONGEST:
        return key
    suffix = "-" + sha1(key.encode(errors="replace")).hexdigest()[:6]
    return safe[: LONGEST - len(suffix)].rstrip(" ./") + suffix


def plain_text(text: str) -> str:
    """Return text that every encoder takes: a name that was read from a file system may hold halves of characters."""
    return text.encode(errors="replace").decode()


def verbatim(lines: Sequence[str]) -> str:
    """Return Markdown that shows the lines as they are, whatever is in them."""
    return "\n".join(f"    {line}" for line in lines)
