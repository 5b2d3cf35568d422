"""The command evaluate: a checkpoint, or any network, measured under a Lightning trainer and written into a folder."""

import sys
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import WandbLogger
from torch.utils.data import DataLoader

from interpretable_training.attribution import GradCAM, GradCAMPlusPlus, HiResCAM, LayerCAM, XGradCAM
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.batches.source import BatchSource, Split
from interpretable_training.evaluation.evaluate import Precision
from interpretable_training.metrics import (
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Insertion,
    Table,
    evaluate,
)
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.mistakes import MistakeError, closest, require_writable
from interpretable_training.visual import draw_faithfulness


class EvaluationTrainer(L.Trainer):
    """Lightning's trainer, which also evaluates explanations."""

    def evaluate(
        self,
        model: L.LightningModule,
        datamodule: L.LightningDataModule,
        ckpt_path: str | None = None,
        methods: dict[str, Attribution] | list[str] | None = None,
        metrics: dict[str, ImageMetric] | None = None,
        target: Literal["label", "pred", "least"] = "label",
        split: Split = "val",
        max_images: int | None = None,
        reference: str | None = None,
        chunk_size: int | None = None,
        precision: Precision = "fp32",
        compile: bool = False,
        output: str | None = None,
        image_key: int | str | None = None,
        label_key: int | str | Literal[False] | None = None,
        seed: int = 0,
    ) -> Table:
        """Measure how good a model's explanations are, and write table, curves and passports.

        Args:
            model: The model.
            datamodule: The images.
            ckpt_path: A checkpoint whose weights the model gets; without one it is measured as it is.
            methods: name -> method, or names such as GradCAM; by default five CAMs.
            metrics: name -> metric; by default seven metrics.
            target: Which class is explained and scored.
            split: Which images, "val" or "test".
            max_images: How many images, chosen by the seed; by default all.
            reference: The method that the others are compared with; by default the first.
            chunk_size: Images per pass; by default what suits the device and the image size.
            precision: Of passes without gradient: "bf16" is nearly twice as fast on processors that have bfloat16.
            compile: Whether torch compiles passes without gradient; for long evaluations.
            output: Folder for the results; one of an evaluation that was stopped goes on where it was. By default a
                new one beside the logs.
            image_key: Name or index of the images in a batch; by default they are found.
            label_key: The same of the labels; false if there are none.
            seed: Of the choice of images and of the bootstrap.
        """
        if ckpt_path is not None:
            load(model, ckpt_path)
        folder = Path(output or self.log_dir or self.default_root_dir)
        require_writable(folder)
        options: dict[str, Any] = {
            "target": target,
            "split": split,
            "max_images": max_images,
            "reference": reference,
            "chunk_size": chunk_size,
            "precision": precision,
            "compile": compile,
            "image_key": image_key,
            "label_key": label_key,
            "seed": seed,
        }
        datamodule.trainer = self
        options |= {"methods": methods or _default_methods(), "metrics": metrics or _default_metrics()}
        runner = Runner(model, datamodule, options, folder)
        if self.progress_bar_callback is not None:
            self.progress_bar_callback.disable()  # ours counts images
        # `predict` and not Fabric: this Trainer has strategy, precision, callbacks and loggers from the command line,
        # starts the processes and moves the model. Fabric would need all of these again, as objects of its own.
        self.predict(runner, DataLoader([0] * self.world_size), return_predictions=False)  # type: ignore[arg-type]
        assert runner.table is not None
        if self.is_global_zero:
            write(runner.table, folder, self)
        return runner.table


class Runner(L.LightningModule):
    """Runs `evaluate` where a strategy puts the model: one batch for each process, in which all the work is done."""

    def __init__(self, model: L.LightningModule, data: Any, options: dict[str, Any], folder: Path) -> None:
        super().__init__()
        self.model, self.data, self.options, self.folder = model, data, options, folder
        self.table: Table | None = None

    def prepare_data(self) -> None:
        self.data.prepare_data()

    def predict_step(self, batch: Any, batch_idx: int) -> Any:
        folder = self.trainer.strategy.broadcast(self.folder)  # loggers number theirs in each process
        dtype = torch.get_default_dtype()
        torch.set_default_dtype(torch.float32)  # images are not drawn in the half precision of a "bf16-true" model
        try:
            stream = BatchSource(self.data, split=self.options["split"]).plan is None
            cache = None if stream else folder / "cache"
            self.table = evaluate(self.model, data=self.data, cache=cache, **self.options)
        finally:
            torch.set_default_dtype(dtype)
        return batch  # Lightning warns of a step that returns nothing


def _default_methods() -> dict[str, Attribution]:
    """Return methods that need one pass together."""
    return {
        "gradcam": GradCAM(),
        "gradcamplusplus": GradCAMPlusPlus(),
        "xgradcam": XGradCAM(),
        "layercam": LayerCAM(),
        "hirescam": HiResCAM(),
    }


def _default_metrics() -> dict[str, ImageMetric]:
    """Return the thesis' metrics, with curves of 28 steps."""
    return {
        "average_drop": AverageDrop(),
        "average_increase": AverageIncrease(),
        "average_gain": AverageGain(),
        "insertion": Insertion(steps=28),
        "deletion": Deletion(steps=28),
        "coherency": Coherency(),
        "complexity": Complexity(),
    }


def load(model: L.LightningModule, ckpt_path: str) -> None:
    """Give the model the weights of a checkpoint."""
    path = Path(ckpt_path)
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise MistakeError(
            f"expected a checkpoint that exists, got {ckpt_path!r}; closest in {str(path.parent)!r}: "
            f"{closest(path.name, near)}."
        )
    checkpoint = read_checkpoint(path)
    if "state_dict" not in checkpoint:
        raise MistakeError(f"expected a checkpoint that Lightning wrote, got {ckpt_path!r}, which has no 'state_dict'.")
    model.on_load_checkpoint(checkpoint)
    try:
        model.load_state_dict(checkpoint["state_dict"], strict=model.strict_loading)
    except RuntimeError as error:
        raise MistakeError(
            f"expected a checkpoint of this {type(model).__name__}, got {ckpt_path!r}, whose weights do not fit "
            f"({' '.join(str(error).split())}); pass the model with which it was made."
        ) from error


def read_checkpoint(path: Path) -> dict[str, Any]:
    """Return the tensors and plain values of a checkpoint; class paths among them are text, and not yet checked."""
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # whatever another kind of file makes of torch.load
        reason = " ".join(str(error).split())[:200]
        raise MistakeError(f"expected a checkpoint of weights and plain values, got {str(path)!r}: {reason}") from error
    return checkpoint if isinstance(checkpoint, dict) else {}


def write(table: Table, folder: Path, trainer: L.Trainer) -> None:
    """Print, save and log the table."""
    files = table.save(folder)
    if any(table.curves.values()):
        files.append(folder / "curves.png")
        draw_faithfulness(table, files[-1])
    resumable = (folder / "cache").is_dir() and not table.complete
    go_on = "" if not resumable else f"\nThe same command with --output {folder} goes on from here.\n"
    sys.stdout.write(f"\n{table}\n{go_on}Written to {folder}: {', '.join(file.name for file in files)}\n")
    means = {f"xai/{method}/{metric}": cell.mean for (method, metric), cell in table.cells.items()}
    for logger in trainer.loggers:
        logger.log_metrics(means)
        if isinstance(logger, WandbLogger):
            logger.experiment.log({"xai/table": table.to_wandb()})
        logger.save()
