"""Write into docs/metrics.md how much the conventions of metrics matter, on the same maps of the same network.

python docs/make_metrics_table.py    # two minutes: a small network is trained on generated shapes first

Peers get our maps, so that nothing differs but the metric.
"""

import contextlib
import tempfile
import warnings
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from interpretable_training.attribution import GradCAM, normalize
from interpretable_training.data import ShapesDataModule
from interpretable_training.metrics import (
    ADCC,
    AOPC,
    ROAD,
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Insertion,
    InsertionDeletion,
    MaxSensitivity,
)
from interpretable_training.recipes import shortcut

FILE = Path(__file__).parent / "metrics.md"
MARK = "<!-- numbers -->"
CAM = GradCAM()
N = 64
STEPS = 28


def variants(mean: tuple[float, ...], std: tuple[float, ...]) -> dict[str, dict[str, object]]:
    """Our metrics: what differs -> metric. The first of each is the default, with the data's mean and std."""
    space = {"mean": mean, "std": std}
    curves = {
        kind.__name__: {
            "28 steps": kind(STEPS),
            "default: one row per step": kind(),
            'ties="index"': kind(STEPS, ties="index"),
            "`ca_stream`: eight rows per step": kind(preset="ca_stream"),
            "`ca_stream`, 28 steps": kind(STEPS, "ca_stream"),
            "`polycam`, 28 steps": kind(STEPS, "polycam"),
            "`tgrad`, 28 steps": kind(STEPS, "tgrad"),
            "`torchcam`, 28 steps": kind(STEPS, "torchcam"),
            'substrate="black"': kind(STEPS, substrate="black", **space),
            'score="logit"': kind(STEPS, score="logit"),
        }
        for kind in (Insertion, Deletion)
    }
    return {
        "AverageDrop": {
            "default": AverageDrop(**space),
            "`adcc`, `polycam`: mean color instead of black": AverageDrop("adcc"),
            "`pytorch_grad_cam`: absolute difference": AverageDrop("pytorch_grad_cam"),
            "`torchcam`: logits": AverageDrop("torchcam"),
            "topk=30": AverageDrop(topk=30, **space),
        },
        "AverageIncrease": {
            "default": AverageIncrease(**space),
            "`adcc`: mean color instead of black": AverageIncrease(preset="adcc"),
            "`torchcam`: logits": AverageIncrease(preset="torchcam"),
        },
        "AverageGain": {
            "default": AverageGain(**space),
            "`adcc`: mean color instead of black": AverageGain(preset="adcc"),
        },
        "AverageDropInDeletion": {
            "default": AverageDropInDeletion(**space),
            "clamp=True": AverageDropInDeletion(clamp=True, **space),
        },
        **curves,
        "InsertionDeletion": {"28 steps": InsertionDeletion(STEPS)},
        "AOPC": {
            "default, patch=8": AOPC(8),
            'substrate="mean"': AOPC(8, substrate="mean"),
            'substrate="uniform"': AOPC(8, substrate="uniform"),
        },
        "ROAD": {"default": ROAD(), 'score="accuracy"': ROAD(score="accuracy"), "noise=0": ROAD(noise=0.0)},
        "Coherency": {
            "default": Coherency(CAM),
            "rescale=False": Coherency(CAM, rescale=False),
            'space="pixel"': Coherency(CAM, space="pixel", **space),
        },
        "Complexity": {"default": Complexity()},
        "ADCC": {
            "default": ADCC(CAM),
            'average="dataset"': ADCC(CAM, "dataset"),
            "`thesis`: black": ADCC(CAM, preset="thesis", **space),
        },
        "MaxSensitivity": {
            "default": MaxSensitivity(CAM),
            "raw=True": MaxSensitivity(CAM, raw=True),
            "radius=0.02": MaxSensitivity(CAM, radius=0.02),
        },
    }


class Fixed:
    """What torchcam's metrics take for an extractor: it returns maps that are there already."""

    def __init__(self, model: nn.Module, maps: Tensor) -> None:
        self.model, self.maps = model, maps

    def __call__(self, *_: object, **__: object) -> list[Tensor]:
        return [self.maps]

    def fuse_cams(self, cams: list[Tensor]) -> Tensor:
        return cams[0]

    def _hooks_off(self) -> contextlib.nullcontext[None]:
        return contextlib.nullcontext()


def of_torchcam(model: nn.Module, images: Tensor, maps: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    softmax = partial(torch.softmax, dim=-1)
    found: dict[str, dict[str, float]] = {"AverageDrop": {}, "AverageIncrease": {}}
    for name, logits_fn in (("torchcam, its default (logits)", None), ("torchcam, softmax", softmax)):
        metric = ClassificationMetric(Fixed(model, maps), logits_fn)
        metric.update(images, target.tolist())
        found["AverageDrop"][name] = 100 * metric.summary()["avg_drop"]
        found["AverageIncrease"][name] = 100 * metric.summary()["conf_increase"]
    curves = DeletionInsertionMetric(Fixed(model, maps), softmax, steps=STEPS)
    curves.update(images, target.tolist())
    for kind in ("Insertion", "Deletion"):
        found[kind] = {"torchcam, softmax": 100 * curves.summary()[f"{kind.lower()}_auc"]}
    return found


def of_pytorch_grad_cam(model: nn.Module, images: Tensor, maps: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    from pytorch_grad_cam.metrics.cam_mult_image import DropInConfidence, IncreaseInConfidence
    from pytorch_grad_cam.metrics.road import ROADCombined
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputSoftmaxTarget

    targets = [ClassifierOutputSoftmaxTarget(int(c)) for c in target]
    call = {"input_tensor": images, "cams": maps.numpy(), "targets": targets, "model": model}
    return {
        "AverageDrop": {"pytorch-grad-cam, softmax": 100 * float(np.mean(DropInConfidence()(**call)))},
        "AverageIncrease": {"pytorch-grad-cam, softmax": 100 * float(np.mean(IncreaseInConfidence()(**call)))},
        "ROAD": {"pytorch-grad-cam, softmax": 100 * float(np.mean(ROADCombined()(**call)))},
    }


def of_quantus(model: nn.Module, images: Tensor, maps: Tensor, target: Tensor) -> dict[str, dict[str, float]]:
    import quantus

    def again(model: nn.Module, inputs: np.ndarray, targets: np.ndarray, **_: object) -> np.ndarray:
        x = torch.as_tensor(inputs).view(-1, *images.shape[1:])
        return normalize(CAM(model, x, torch.as_tensor(targets))).numpy()[:, None]

    data = {"x_batch": images.numpy(), "y_batch": target.numpy(), "a_batch": maps[:, None].numpy(), "device": "cpu"}
    quiet = {"disable_warnings": True, "display_progressbar": False}
    flipping = quantus.PixelFlipping(features_in_step=256, perturb_baseline="black", **quiet)
    regions = quantus.RegionPerturbation(patch_size=8, regions_evaluation=10, order="morf", **quiet)
    sensitivity = quantus.MaxSensitivity(nr_samples=10, lower_bound=0.2, normalise=False, **quiet)
    flipped = np.array(flipping(model, **data))
    flipped = np.concatenate([model(images).softmax(1).gather(1, target[:, None]).detach().numpy(), flipped], 1)
    return {
        "Deletion": {
            "Quantus pixel flipping (48 steps of features, not pixels; lowest value)": 100 * trapezoid(flipped)
        },
        "AOPC": {"Quantus region perturbation, mean of its curve": 100 * float(np.mean(regions(model, **data)))},
        "MaxSensitivity": {"Quantus": float(np.mean(sensitivity(model, **data, explain_func=again)))},
    }


def trapezoid(curves: np.ndarray) -> float:
    """The mean area; Quantus' own calls a function that numpy no longer has."""
    return float(np.trapezoid(curves, axis=1).mean() / (curves.shape[1] - 1))


def main() -> None:
    data = ShapesDataModule(image_size=64, n_val=N, shortcut=0.95)
    data.setup("validate")
    images, labels = next(iter(torch.utils.data.DataLoader(data.splits["val"], batch_size=N)))
    with tempfile.TemporaryDirectory() as folder:
        recipe = shortcut(output=folder)
        recipe.trainer.fit(recipe.module, recipe.data)
    model = recipe.module.network.eval().requires_grad_(True)
    maps = normalize(CAM(model, images, labels))
    rows = {name: {} for name in variants(data.mean, data.std)}
    for name, metrics in variants(data.mean, data.std).items():
        for what, metric in metrics.items():
            metric.collect(model=model, images=images, saliency=maps, target=labels)
            rows[name][what] = float(metric.compute())
    for peer in (of_torchcam, of_pytorch_grad_cam, of_quantus):
        for name, found in peer(model, images, maps, labels).items():
            rows[name] |= found
    lines = ["| metric | with | value |", "|---|---|---:|"]
    for name, found in rows.items():
        lines += [
            f"| {f'`{name}`' if i == 0 else ''} | {what} | {x:.4g} |" for i, (what, x) in enumerate(found.items())
        ]
    before, _, after = FILE.read_text().split(MARK)
    FILE.write_text(f"{before}{MARK}\n" + "\n".join(lines) + f"\n{MARK}{after}")


if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    main()
