"""Adapters of experiment trackers, by the class of `logger.experiment`, and the text and keys that trackers take.

The class of the experiment, and not of the logger, decides: loggers of `lightning.pytorch` and `pytorch_lightning`,
their subclasses and a project's own loggers write to the same experiments.
"""

import json
import re
from collections.abc import Mapping, Sequence
from hashlib import sha1
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from interpretable_training.callbacks.watching._compat import key_prefix
from interpretable_training.files import csv_text

Checked = Mapping[str, Sequence[tuple[np.ndarray, str]]]  # by key that is fit for file names: picture, caption

LONGEST = 100  # characters of a key, to which loggers add steps and digests for a file name of 255 at most
REPORT = "xai/report"


class Adapter:
    """Adapter of a kind of logger; the base sends nothing."""

    def __init__(self, logger: Any) -> None:
        self.logger: Any = logger

    @property
    def experiment(self) -> Any:
        """Return the logger's own object of the tracker."""
        return self.logger.experiment

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None: ...

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None: ...

    def facts(self, facts: dict[str, Any]) -> None: ...

    def summary(self, values: dict[str, Any]) -> None: ...

    def directions(self, wants_high: dict[str, bool]) -> None: ...

    def report(self, page: Path, facts: dict[str, Any], step: int) -> None: ...

    def alert(self, title: str, text: str) -> None: ...

    def prefixed(self, key: str) -> str:
        """Return the key with the prefix that the logger puts before all of its keys."""
        prefix = key_prefix(self.logger)
        return f"{prefix}{getattr(self.logger, 'LOGGER_JOIN_CHAR', '-')}{key}" if prefix else key


class WandbAdapter(Adapter):
    """W&B: one row for an event, filed under the step of Lightning's own values."""

    def log(self, row: Mapping[str, Any], step: int) -> None:
        """Log a row under a step of the trainer; W&B's own steps would refuse earlier ones."""
        self.experiment.log({self.prefixed(key): value for key, value in row.items()} | {"trainer/global_step": step})

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        import wandb

        row: dict[str, Any] = {"epoch": epoch}
        most = wandb.Image.MAX_ITEMS  # W&B drops those of a key that are more
        for key, shown in images.items():
            files = [wandb.Image(Image.fromarray(p), caption=caption, file_type=file_type) for p, caption in shown]
            for start in range(0, len(files), most):
                row[f"{key}/from_{start}" if start else key] = files[start : start + most]
        self.log(row, step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import wandb

        self.log({key: wandb.Table(columns=list(columns), data=rows, allow_mixed_types=True)}, step)

    def facts(self, facts: dict[str, Any]) -> None:
        config = self.experiment.config
        old = config.get("xai", {})
        old = old if isinstance(old, Mapping) else {"config": old}  # a value that others set under this key
        config.update({"xai": {**old, **facts}}, allow_val_change=True)

    def summary(self, values: dict[str, Any]) -> None:
        self.experiment.summary.update({self.prefixed(key): value for key, value in values.items()})

    def directions(self, wants_high: dict[str, bool]) -> None:
        for key, high in wants_high.items():
            options = {"step_metric": "trainer/global_step", "step_sync": True}
            self.experiment.define_metric(self.prefixed(key), summary="max" if high else "min", **options)

    def report(self, page: Path, facts: dict[str, Any], step: int) -> None:
        import wandb

        self.log({REPORT: wandb.Html(page.read_text(encoding="utf-8"), inject=False)}, step)
        artifact = wandb.Artifact(f"report-{self.experiment.id}", type="report", metadata=facts)
        artifact.add_file(str(page), name="report.html")
        self.experiment.log_artifact(artifact)

    def alert(self, title: str, text: str) -> None:
        self.experiment.alert(title=title, text=text, level="WARN")


class TensorBoardAdapter(Adapter):
    """TensorBoard: a tag for each place in a panel, so that its slider shows that place over the steps."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        writer = self.experiment
        for key, shown in images.items():
            tag = self.prefixed(key)
            for i, (picture, _) in enumerate(shown):
                writer.add_image(f"{tag}/{i}", picture, step, dataformats="HWC")
            lines = [f"{i}: {' '.join(caption.split())}" for i, (_, caption) in enumerate(shown)]
            writer.add_text(f"{tag}/captions", verbatim([f"epoch {epoch}", *lines]), step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.experiment.add_text(self.prefixed(key), verbatim(csv_text([columns, *rows]).splitlines()), step)

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            text = verbatim(json.dumps(fact, indent=2, ensure_ascii=False).splitlines())
            self.experiment.add_text(self.prefixed(safe_key(f"xai/{name}")), text)


class MLFlowAdapter(Adapter):
    """MLflow: a key for each place in a panel; the rest as files of the run, which its pages show.

    Facts are files, because a parameter of a run cannot be changed and holds 250 characters.
    """

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        client, run = self.experiment, self.logger.run_id
        for key, shown in images.items():
            tag = safe_key(self.prefixed(key))
            for i, (picture, _) in enumerate(shown):
                client.log_image(run, picture, key=f"{tag}/{i}", step=step)
            captions = {"step": step, "epoch": epoch, "captions": [caption for _, caption in shown]}
            client.log_dict(run, captions, f"{tag}/captions_{step}.json")

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        file = f"{safe_key(self.prefixed(key))}.csv"
        self.experiment.log_text(self.logger.run_id, csv_text([columns, *rows]), file)

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            file = f"{safe_key(self.prefixed(f'xai/{name}'))}.json"
            self.experiment.log_dict(self.logger.run_id, fact, file)

    def report(self, page: Path, facts: dict[str, Any], step: int) -> None:
        self.experiment.log_artifact(self.logger.run_id, str(page), "xai")


class CometAdapter(Adapter):
    """Comet: a name for each place in a panel, with its caption beside it."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        for key, shown in images.items():
            for i, (picture, caption) in enumerate(shown):
                facts, file = (
                    {"caption": caption, "epoch": epoch},
                    Image.fromarray(picture),
                )  # arrays may overflow there
                self.experiment.log_image(file, name=f"{self.prefixed(key)}/{i}", step=step, metadata=facts)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        self.experiment.log_table(f"{self.prefixed(key)}.csv", tabular_data=rows, headers=columns)

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            self.experiment.log_asset_data(fact, name=f"{self.prefixed(safe_key(f'xai/{name}'))}.json")

    def summary(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.experiment.log_other(self.prefixed(key), value)

    def report(self, page: Path, facts: dict[str, Any], step: int) -> None:
        self.experiment.log_asset(str(page), file_name=f"{self.prefixed(REPORT)}.html", step=step)


class AimAdapter(Adapter):
    """Aim: the pictures of a panel side by side, with their captions."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        import aim

        for key, shown in images.items():
            files = [aim.Image(Image.fromarray(picture), caption=caption) for picture, caption in shown]
            self.experiment.track(files, name=self.prefixed(key), step=step, epoch=epoch)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import aim

        self.experiment.track(aim.Text(csv_text([columns, *rows])), name=self.prefixed(key), step=step)

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            self.experiment["xai", name] = fact

    def summary(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.experiment["xai", "summary", self.prefixed(key)] = value


class TrackioAdapter(Adapter):
    """Trackio: a key for each place in a panel."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        import trackio

        row: dict[str, Any] = {"epoch": epoch}
        for key, shown in images.items():
            for i, (picture, caption) in enumerate(shown):
                row[f"{self.prefixed(key)}/{i}"] = trackio.Image(picture, caption=caption)
        self.experiment.log(row, step=step)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        import trackio
        from pandas import DataFrame  # of which trackio makes its tables

        table = trackio.Table(dataframe=DataFrame(rows, columns=columns))
        self.experiment.log({self.prefixed(key): table}, step=step)

    def alert(self, title: str, text: str) -> None:
        self.experiment.alert(title, text)


class NeptuneAdapter(Adapter):
    """Neptune: a series for each place in a panel, with its captions."""

    def images(self, images: Checked, step: int, epoch: int, file_type: str) -> None:
        from neptune.types import File

        for key, shown in images.items():
            for i, (picture, caption) in enumerate(shown):
                file = File.as_image(Image.fromarray(picture))
                self.experiment[f"{self.prefixed(key)}/{i}"].append(file, step=step, description=caption)

    def table(self, key: str, columns: list[str], rows: list[list[Any]], step: int) -> None:
        from neptune.types import File

        self.experiment[self.prefixed(key)].upload(File.from_content(csv_text([columns, *rows]), extension="csv"))

    def facts(self, facts: dict[str, Any]) -> None:
        for name, fact in facts.items():
            self.experiment[self.prefixed(safe_key(f"xai/{name}"))] = json.dumps(fact, ensure_ascii=False)

    def summary(self, values: dict[str, Any]) -> None:
        for key, value in values.items():
            self.experiment[self.prefixed(key)] = value

    def report(self, page: Path, facts: dict[str, Any], step: int) -> None:
        self.experiment[self.prefixed(REPORT)].upload(str(page))


PLATFORMS: dict[tuple[str, str], type[Adapter]] = {  # by package and name of a class of the experiment
    ("wandb", "Run"): WandbAdapter,
    ("torch", "SummaryWriter"): TensorBoardAdapter,
    ("tensorboardX", "SummaryWriter"): TensorBoardAdapter,
    ("mlflow", "MlflowClient"): MLFlowAdapter,
    ("comet_ml", "CometExperiment"): CometAdapter,
    ("aim", "Run"): AimAdapter,
    ("trackio", "Run"): TrackioAdapter,
    ("neptune", "Run"): NeptuneAdapter,
}


def platform_of(logger: Any) -> type[Adapter] | None:
    """Return the adapter of the tracker to which a logger writes."""
    classes = type(getattr(logger, "experiment", None)).__mro__
    kinds = [PLATFORMS.get((cls.__module__.partition(".")[0], cls.__name__)) for cls in classes]
    return next(filter(None, kinds), None)


def safe_key(key: str) -> str:
    """Return the key if it is fit for file names everywhere, otherwise a similar unique one that is."""
    parts = [re.sub(r"[^\w .-]", "_", part, flags=re.ASCII).strip(" .") for part in key.split("/")]
    safe = "/".join(part for part in parts if part)
    if safe and safe == key and len(key) <= LONGEST:
        return key
    suffix = "-" + sha1(key.encode(errors="replace")).hexdigest()[:6]
    return safe[: LONGEST - len(suffix)].rstrip(" ./") + suffix


def verbatim(lines: Sequence[str]) -> str:
    """Return Markdown that shows the lines as they are, whatever is in them."""
    return "\n".join(f"    {line}" for line in lines)
