"""Remedies against cues, the data and the network on which they are compared, and what is measured."""

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import ConcatDataset, DataLoader

from interpretable_training.attribution import GradCAM
from interpretable_training.batches.read import Picked
from interpretable_training.callbacks import BackgroundSwap, ExplanationGuidance
from interpretable_training.data import DigitsDataModule, SeededDataModule, ShapesDataModule
from interpretable_training.data.base import collate
from interpretable_training.data.shortcuts import CueSplit
from interpretable_training.evaluation import evaluate, find_shortcuts
from interpretable_training.metrics import EnergyPointingGame, PointingGame, WorstGroupAccuracy
from interpretable_training.modules import Classifier, retrain_last_layer
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.regularization import SwapBackgrounds

Kind = Literal["marks", "textures", "decoy_digits"]
Remedy = Literal["nothing", "random_swap", "background_swap", "energy", "input_gradient", "not_here"]
FEWEST = 4  # images of a group on which the last layer is retrained
CUES: tuple[CueSplit, ...] = ("same", "none", "swapped")  # of test images: as in training, none, of another class


class RandomSwap(BackgroundSwap):
    """Control: swap what is outside of regions of the same shape at random places."""

    def objects_of(self, picked: Picked, batch: Any) -> Tensor | None:
        """Return the masks of the batch, all moved by half of the image."""
        objects = super().objects_of(picked, batch)
        return None if objects is None else objects.roll([side // 2 for side in objects.shape[1:]], (1, 2))


# A margin of the old background must not reach the cue: textures begin at the object, patches close to digits.
SWAPS: dict[Kind, SwapBackgrounds] = {
    "marks": SwapBackgrounds(),
    "textures": SwapBackgrounds(share=0.8, widen=0),
    "decoy_digits": SwapBackgrounds(widen=1),
}


def swap_of(data: Kind, annotated: float) -> SwapBackgrounds:
    """Return the swap; where few images have masks it changes all of these, since the others keep their cue."""
    return replace(SWAPS[data], share=1.0) if annotated < 1 else SWAPS[data]


def callbacks_of(remedy: Remedy, layer: str, data: Kind = "marks", annotated: float = 1.0) -> list[L.Callback]:
    """Return the callbacks of a remedy, for training images of which a share is annotated."""
    swap = swap_of(data, annotated)
    late: dict[str, Any] = {"start_step": 200, "method": GradCAM(layer=layer)}
    remedies: dict[Remedy, list[L.Callback]] = {
        "nothing": [],
        "random_swap": [RandomSwap(swap)],
        "background_swap": [BackgroundSwap(swap)],
        "energy": [ExplanationGuidance("energy", weight=1.0, **late)],
        "input_gradient": [ExplanationGuidance("input_gradient", weight=0.01, **late)],
        "not_here": [ExplanationGuidance("energy", region="not_here", weight=1.0, **late)],
    }
    return remedies[remedy]


def make_data(
    data: Kind, shortcut: float, n_train: int = 6000, n_test: int = 1000, image_size: int = 64, **options: Any
) -> SeededDataModule:
    """Return images with a cue, with masks of object and cue, and groups."""
    if data == "decoy_digits":
        return DigitsDataModule(16, margin=0.125, annotations=True, shortcut=shortcut, **options)
    cue: Literal["mark", "background"] = "mark" if data == "marks" else "background"
    options |= {"n_train": n_train, "n_test": n_test, "annotations": True}
    return ShapesDataModule(image_size, shortcut=shortcut, cue=cue, **options)


def digits_network() -> nn.Sequential:
    """Return a small network that uses patches: unlike one with average pooling it sees which corner they are in."""
    stages = {
        "stage1": nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)),
        "stage2": nn.Sequential(nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()),
        "pool": nn.MaxPool2d(2),
        "flat": nn.Flatten(),
        "head": nn.Linear(32 * 4 * 4, 10),
    }
    return nn.Sequential(OrderedDict(stages))


def erase_found_cues(recipe: Recipe, cheating: nn.Module, layer: str) -> None:
    """Exchange what `find_shortcuts` finds in the training images at random; needs no annotation.

    Where no shortcut is found the images stay as they are.
    """
    splits = recipe.data.splits  # type: ignore[attr-defined]
    recipe.data.setup("fit")
    shortcuts = find_shortcuts(cheating, splits["train"], GradCAM(layer=layer), max_images=None)
    splits["train"] = shortcuts.erase(splits["train"])


def retrain_head(module: Classifier, data: Kind, layer: str, found: bool, **options: Any) -> None:
    """Retrain the last layer on validation images, balanced by true groups, or by those that `find_shortcuts` finds.

    With true groups, the images have the cue of their class, of another, or none; else they are as in training.
    `options` are those of `make_data`.
    """
    seed = options.get("seed", 0)
    if found:
        images = make_data(data, 0.95, **options)
        shortcuts = find_shortcuts(module.network, images, GradCAM(layer=layer), None)
        groups = torch.full((len(shortcuts.indices),), -1)
        groups[shortcuts.indices] = shortcuts.groups()
        groups[groups.bincount()[groups] < FEWEST] = -1  # left out
        retrain_last_layer(module.network, images, groups, seed=seed)
        return
    retrain_on([make_data(data, 0.5, shortcut_val=cue, **options) for cue in CUES], module.network, seed)


def retrain_on(parts: Sequence[SeededDataModule], network: nn.Module, seed: int) -> None:
    """Retrain the last layer on the validation images of all parts, balanced by class and cue."""
    for part in parts:
        part.setup("validate")
    mixed: ConcatDataset[Any] = ConcatDataset([part.splits["val"] for part in parts])
    retrain_last_layer(network, DataLoader(mixed, batch_size=64, collate_fn=collate), agreement_groups, seed=seed)


def agreement_groups(batch: dict[str, Any]) -> Tensor:
    """Return groups of class and cue: 2 c with the cue of class c, 2 c + 1 with that of another class or none.

    Images of data without cues are in 2 c.
    """
    return 2 * batch["target"] + (batch.get("cue", batch["target"]) != batch["target"])


def measure_repair(
    recipe: Recipe, n_test: int = 1000, layer: str = "stage2", max_images: int = 300
) -> dict[str, float]:
    """Return accuracies by test cues, that of the worst group, and where the maps lie on images as in training."""
    data, network = recipe.data, recipe.module.network.eval()  # type: ignore[union-attr]
    assert isinstance(data, (ShapesDataModule, DigitsDataModule))  # what the recipe returns
    kind: Kind = "decoy_digits" if isinstance(data, DigitsDataModule) else "marks"
    kind = "textures" if getattr(data, "cue", None) == "background" else kind
    size: dict[str, Any] = {} if kind == "decoy_digits" else {"image_size": data.size}  # type: ignore[union-attr]
    options: dict[str, Any] = {"n_test": n_test, "seed": data.seed, **size}
    tests = {cue: make_data(kind, data.shortcut or 0.95, shortcut_val=cue, **options) for cue in CUES}
    numbers, _ = accuracies(network, tests)
    return {"same": numbers["same"], **where_maps_lie(network, tests["same"], layer, max_images), **numbers}


@torch.no_grad()
def accuracies(
    network: nn.Module, tests: Mapping[CueSplit, SeededDataModule]
) -> tuple[dict[str, float], dict[CueSplit, Tensor]]:
    """Return the accuracy on each test data and of the worst group of all, in percent, and the logits.

    The groups of images without cues are their classes.
    """
    device = next(network.parameters()).device
    worst, numbers, logits = WorstGroupAccuracy(min_images=5), dict[str, float](), dict[CueSplit, Tensor]()
    for cue, test in tests.items():
        test.setup("test")
        batches = list(test.test_dataloader())
        y = logits[cue] = torch.cat([network(batch["image"].to(device)).cpu() for batch in batches])
        target = torch.cat([batch["target"] for batch in batches])
        worst.update(y, target, torch.cat([batch.get("group", batch["target"]) for batch in batches]))
        numbers[cue] = 100 * float((y.argmax(1) == target).float().mean())
    return {**numbers, "worst group": 100 * float(worst.compute())}, logits


def where_maps_lie(network: torch.nn.Module, data: L.LightningDataModule, layer: str, n: int) -> dict[str, float]:
    """Return the share of Grad-CAM's energy on object and cue, and how often its peak lies there, in percent."""
    metrics = {
        "energy on object": EnergyPointingGame(region="mask"),
        "energy on cue": EnergyPointingGame(region="shortcut_mask"),
        "peak on object": PointingGame(region="mask"),
        "peak on cue": PointingGame(region="shortcut_mask"),
    }
    options: dict[str, Any] = {"split": "test", "max_images": n, "controls": False, "progress": False}
    table = evaluate(network, {"gradcam": GradCAM(layer=layer)}, metrics, data, target="label", **options)
    return {name: table["gradcam", name].mean for name in metrics}
