"""Train a small network in one of several ways, and measure it: one run of `configs/sweeps/training_methods.yaml`.

    python -m interpretable_training.recipes.evidence.training_run --data marks --method background_swap --seed 0

A rival that this package does not have otherwise is `SaliencyGuided`: Ismail, Corrada Bravo and Feizi, NeurIPS 2021,
https://arxiv.org/abs/2111.14338.

    L = L_C(y, c) + KL(p || p'),  p = softmax f(x),  p' = softmax f(x')    (1)

x': x with random values in the half of its pixels where |d y_c / d x|, summed over channels, is smallest.
"""

import json
import os
import sys
import time
from functools import partial
from typing import Any, Literal

import lightning as L
import torch
import torch.nn.functional as F
from jsonargparse import auto_cli
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training import metrics as m
from interpretable_training.attribution import GradCAM
from interpretable_training.data import DigitsDataModule, SeededDataModule, ShapesDataModule
from interpretable_training.data.shortcuts import CueSplit
from interpretable_training.evaluation import evaluate
from interpretable_training.metrics.sanity.parameter_randomization import ParameterRandomization
from interpretable_training.models import CAStream
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier
from interpretable_training.recipes.evidence.believable import LogitsTimes
from interpretable_training.recipes.remedies import (
    CUES,
    Kind,
    Remedy,
    accuracies,
    callbacks_of,
    digits_network,
    retrain_on,
)
from interpretable_training.regularization import GuidedGradientRegularizer
from interpretable_training.sweeps.metric import FILE, append_line

Pictures = Literal["shapes", "marks", "textures", "digits", "decoy_digits"]
TrainingMethod = Literal[
    "plain",
    "guided_gradient_0.0075",
    "guided_gradient_0.03",
    "guided_gradient_0.1",
    "ca_stream",
    "energy",
    "background_swap",
    "last_layer",
    "saliency_guided",
]
CLEAN = ("shapes", "digits")
ALIKE: dict[Pictures, Kind] = {  # data with the same remedies
    "shapes": "marks",
    "marks": "marks",
    "textures": "textures",
    "digits": "decoy_digits",
    "decoy_digits": "decoy_digits",
}
EPOCHS, LAYER = 8, "stage2"
MEASURED = 100  # images that are explained
PROBABILITY = 0.8  # mean of the predicted class, to which all networks are scaled


class SaliencyGuided(Classifier):
    """Classifier that is to give the same answer where the pixels that matter least are random (1)."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        images, target = self.read(batch).pair()
        logits, other = self(images), self(without_least(images, self.sensitivity(images, target)))
        loss = self.criterion(logits, target, batch_idx)
        divergence = F.kl_div(other.log_softmax(1), logits.softmax(1), reduction="batchmean")
        self.log_step(self.train_metrics, logits, target, loss)
        return loss + divergence  # (1)

    def sensitivity(self, images: Tensor, target: Tensor) -> Tensor:
        """Return |d y_c / d x|, summed over channels, (B, H, W)."""
        x = images.detach().requires_grad_()
        self.network.eval()
        y = self.network(x).gather(1, target[:, None])
        (d,) = torch.autograd.grad(y.sum(), x)
        self.network.train()
        return d.abs().sum(1)


def without_least(x: Tensor, d: Tensor) -> Tensor:
    """Return x' (1): random values between the lowest and the highest of each channel, where d is below its median."""
    low, high = x.amin((2, 3), keepdim=True), x.amax((2, 3), keepdim=True)
    least = d < d.flatten(1).median(1).values[:, None, None]
    return torch.where(least[:, None], low + (high - low) * torch.rand_like(x), x)


def pictures(data: Pictures, seed: int, cues: CueSplit = "same", shortcut: float = 0.95) -> SeededDataModule:
    """Return small images with masks, and cues for their class in "marks", "textures" and "decoy_digits"."""
    options: dict[str, Any] = {"batch_size": 32, "seed": seed, "annotations": True}
    if data not in CLEAN:
        options |= {"shortcut": shortcut, "shortcut_val": cues}
    if "digits" in data:
        return DigitsDataModule(16, margin=0.125, **options)
    cue: Literal["mark", "background"] = "background" if data == "textures" else "mark"
    return ShapesDataModule(32, n_train=3000, n_val=600, n_test=600, cue=cue, **options)


def fit(module: L.LightningModule, data: SeededDataModule, callbacks: list[L.Callback]) -> None:
    """Train a module quietly, without validation."""
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "limit_val_batches": 0}
    L.Trainer(max_epochs=EPOCHS, accelerator="cpu", callbacks=callbacks, **quiet).fit(module, data)


def trained(data: Pictures, method: TrainingMethod, seed: int) -> tuple[nn.Module, float]:
    """Return a trained network, and the seconds of a processor that it took.

    "ca_stream" and "last_layer" begin with a plain training.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    images = pictures(data, seed)
    images.setup("fit")
    scheduler = partial(CosineAnnealingLR, T_max=EPOCHS)
    network = digits_network() if "digits" in data else "tiny_cnn"
    start, n = time.process_time(), images.num_classes
    kind: Any = SaliencyGuided if method == "saliency_guided" else Classifier
    if method.startswith("guided_gradient"):
        regularizer = GuidedGradientRegularizer(weight=float(method.split("_")[-1]))
        kind = partial(GuidedGradientClassifier, regularizer=regularizer)
    module = kind(network, n, optimizer=partial(torch.optim.AdamW, lr=2e-3), scheduler=scheduler)
    module.to(memory_format=torch.channels_last)
    remedy: Remedy = method if method in ("energy", "background_swap") else "nothing"
    fit(module, images, callbacks_of(remedy, LAYER, ALIKE[data]))
    if method == "ca_stream":
        cells = "digits" in data  # whose last layer reads cells, not an average: the stream gets one of its own
        own: dict[str, Any] = {"num_classes": n, "image_size": 16} if cells else {"image_size": 32}
        sgd = partial(torch.optim.SGD, lr=0.4 if cells else 0.1, momentum=0.9, weight_decay=1e-4)
        module = CAStreamClassifier(CAStream(module.network, **own), n, optimizer=sgd, scheduler=scheduler)
        fit(module, images, [])
    elif method == "last_layer":
        mixed = [pictures(data, seed, cue, shortcut=0.5) for cue in (CUES[:1] if data in CLEAN else CUES)]
        retrain_on(mixed, module.network, seed)
    return module.network.eval(), time.process_time() - start


def confidence_factor(logits: Tensor) -> float:
    """Return the factor with which the mean probability of the predicted class is PROBABILITY, by bisection."""
    low, high = -10.0, 10.0  # of the logarithm
    for _ in range(60):
        middle = (low + high) / 2
        sure = float((logits.double() * torch.tensor(middle).exp()).softmax(1).amax(1).mean()) > PROBABILITY
        low, high = (low, middle) if sure else (middle, high)
    return float(torch.tensor(low).exp())


def accuracies_and_confidence(network: nn.Module, data: Pictures, seed: int) -> dict[str, float]:
    """Return accuracies by cues and of the worst group, the confidence, and the factor that makes it equal."""
    tests = {cue: pictures(data, seed, cue) for cue in (CUES[:1] if data in CLEAN else CUES)}
    numbers, logits = accuracies(network, tests)
    confidence = 100 * float(logits["same"].softmax(1).amax(1).mean())
    return {**numbers, "confidence": confidence, "factor": confidence_factor(logits["same"])}


def map_metrics(network: nn.Module, data: Pictures, seed: int, factor: float) -> dict[str, float]:
    """Return metrics of Grad-CAM of the network with its logits times a factor."""
    layer = next(name for name, _ in network.named_modules() if name.split(".")[-1] == LAYER)
    metrics: dict[str, Any] = {
        "drop": m.AverageDrop(),
        "gain": m.AverageGain(),
        "insertion - deletion": m.InsertionDeletion(steps=16),
        "energy on object": m.EnergyPointingGame(region="mask"),
    }
    options: dict[str, Any] = {"split": "test", "max_images": MEASURED, "controls": False, "progress": False}
    method = {"gradcam": GradCAM(layer=f"network.{layer}")}
    table = evaluate(LogitsTimes(network, factor), method, metrics, pictures(data, seed), resamples=1, **options)
    numbers = {name: table["gradcam", name].mean for name in metrics}
    test = pictures(data, seed)
    test.setup("test")
    x = torch.stack([test.splits["test"][i]["image"] for i in range(24)])
    (check,) = ParameterRandomization()(network, {"gradcam": GradCAM(layer=layer)}, x)
    return {**numbers, "randomization": check.similarity["ssim"]}


def training_run(data: Pictures = "shapes", method: TrainingMethod = "plain", seed: int = 0) -> None:
    """Train one network and measure it; in a sweep the numbers become those of the run, else they are printed.

    Args:
        data: Clean "shapes" and "digits"; "marks", "textures" and "decoy_digits" with cues for 95 % of the images.
        method: How the network is trained.
        seed: Seed of pictures, weights and order.
    """
    torch.set_num_threads(1)  # runs side by side do not slow each other down
    network, seconds = trained(data, method, seed)
    numbers = {**accuracies_and_confidence(network, data, seed), "seconds": seconds}
    numbers |= map_metrics(network, data, seed, numbers["factor"])
    if FILE in os.environ:
        append_line(os.environ[FILE], numbers)
    else:
        sys.stdout.write(json.dumps(numbers) + "\n")


if __name__ == "__main__":
    auto_cli(training_run, prog="python -m interpretable_training.recipes.evidence.training_run")
