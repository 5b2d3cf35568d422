"""Compare Opti-CAM's maps with those of other methods. Zhang et al., CVIU 2024, https://arxiv.org/abs/2301.07002

    python -m interpretable_training.recipes opti_cam_study

measures the methods of the paper on a small network, which is first trained on generated shapes unless its weights
exist, and ends with a table, curves, the seconds of each method and a picture of its maps.
`opti_cam_study_imagenet` is the study of the paper: Tables 2.1 to 2.4 of the first author's thesis.
"""

import csv
import time
from collections.abc import Sequence
from itertools import islice
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger
from torchvision.transforms import v2

from interpretable_training.attribution import (
    AblationCAM,
    AttentionRollout,
    ExtremalPerturbation,
    GradCAM,
    GradCAMPlusPlus,
    LayerCAM,
    OptiCAM,
    RawAttention,
    ScoreCAM,
    TransformerAttribution,
    XGradCAM,
)
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.batches.read import pick
from interpretable_training.data import ImageNetDataModule, ShapesDataModule
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.files import whole_file
from interpretable_training.metrics import (
    ADCC,
    AOPC,
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Deletion,
    Insertion,
    MaxSensitivity,
)
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.modules import Classifier
from interpretable_training.recipes.ca_stream import trained_backbone
from interpretable_training.recipes.recipe import EvaluationRecipe

Kind = Literal["cnn", "transformer"]


def opti_cam_study(
    network: str = "tiny_cnn",
    weights: str | None = None,
    image_size: int = 64,
    n_train: int = 6000,
    backbone_epochs: int = 8,
    kind: Kind = "cnn",
    max_images: int = 24,
    steps: int = 100,
    draws: int = 3,
    seed: int = 0,
    output: str = "runs",
) -> EvaluationRecipe:
    """Measure the methods on shapes, with fewer images and fewer steps of the slow methods.

    Args:
        network: "tiny_cnn", "tiny_vit" or the name of a network of timm.
        weights: File with the weights of the network. If it does not exist, the network is trained and written there;
            by default in the output folder.
        image_size: Side of the images.
        n_train: Number of training images, if it is trained.
        backbone_epochs: Epochs of training, if it is trained.
        kind: Whether it is a convolutional network or a transformer: which methods are compared.
        max_images: How many validation images.
        steps: Of extremal perturbation; the paper has 800, and fewer of them are longer here.
        draws: Changed images of max-sensitivity; the paper has 10.
        seed: Seed of weights, pictures and choice of images.
        output: Folder for the results.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(image_size=image_size, n_train=n_train, batch_size=8, seed=seed)
    weights = weights or f"{output}/ca_stream/{network}.pt"
    backbone = trained_backbone(weights, network, image_size, n_train, backbone_epochs, seed=seed)
    module = Classifier(backbone, data.num_classes)
    scale = image_size / 224  # what the paper says in pixels
    cells: dict[str, Any] = {"step": max(1, round(7 * scale)), "sigma": float(round(21 * scale))}
    longer = 800 / steps
    ascent = {"steps": steps, "lr": round(0.01 * longer, 4), "growth": round(1.0035**longer, 4)}
    perturbation = ExtremalPerturbation(**ascent, blur_sigma=float(round(20 * scale)), **cells)
    return _study(module, data, kind, "auto", perturbation, draws, max_images, seed, output)


def opti_cam_study_imagenet(
    folder: str = "imagenet",
    network: str = "resnet50.tv_in1k",
    kind: Kind = "cnn",
    layer: str = "auto",
    max_images: int | None = None,
    num_workers: int = 8,
    seed: int = 0,
    output: str = "runs",
) -> EvaluationRecipe:
    """Measure the methods on ImageNet as in the paper: all validation images, 224 x 224; timm has the weights.

    Args:
        folder: See the root of `ImageNetDataModule`.
        network: A name of timm. The paper has "resnet50.tv_in1k" and "vgg16_bn.tv_in1k", whose weights are
            torchvision's, and of kind "transformer" "vit_base_patch16_224" and "deit_base_patch16_224.fb_in1k".
        kind: Whether it is a convolutional network or a transformer: which methods are compared.
        layer: Layer of all CAMs, such as "network.layer4.2.conv3".
        max_images: How many validation images; by default all.
        num_workers: Processes that load batches.
        seed: Seed of the choice of images.
        output: Folder for the results.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    whole = v2.Resize([224, 224])
    data = ImageNetDataModule(folder, eval_transform=whole, batch_size=8, num_workers=num_workers, seed=seed)
    module = Classifier(network, 1000, pretrained=True)
    return _study(module, data, kind, layer, ExtremalPerturbation(), 10, max_images, seed, output)


def _study(
    module: Classifier,
    data: ShapesDataModule | ImageNetDataModule,
    kind: Kind,
    layer: str,
    perturbation: ExtremalPerturbation,
    draws: int,
    max_images: int | None,
    seed: int,
    output: str,
) -> EvaluationRecipe:
    """Return the study of both functions: methods, metrics, black as mask, and the label as target."""
    metrics: dict[str, ImageMetric] = {
        "average_drop": AverageDrop(),  # Tables 2.1 and 2.2
        "average_gain": AverageGain(),
        "average_increase": AverageIncrease(),
        "insertion": Insertion(),  # Table 2.4: as many steps as the image has rows
        "deletion": Deletion(),
        "aopc": AOPC(patch=max(1, data.size[0] // 16), steps=10),  # Table 2.3, with Quantus' parameters
        "max_sensitivity": MaxSensitivity(radius=0.2, n=draws),
        "adcc": ADCC(),
    }
    methods = cams(data.mean, data.std, layer)
    if kind == "transformer":
        del methods["ablationcam"]
        methods |= {"rawattention": RawAttention(), "attentionrollout": AttentionRollout()}
        methods |= {"transformerattribution": TransformerAttribution()}
    methods |= {"extremalperturbation": perturbation}
    options = {"methods": {"opticam": methods.pop("opticam"), **methods}, "metrics": metrics, "target": "label"}
    options |= {"max_images": max_images, "reference": "opticam", "seed": seed}
    trainer = EvaluationTrainer(logger=CSVLogger(output, name="opti_cam_study"), enable_model_summary=False)
    return EvaluationRecipe(trainer, module, data, options)


def cams(mean: Sequence[float], std: Sequence[float], layer: str = "auto") -> dict[str, Attribution]:
    """Return the CAMs of the paper; those that mask images use black."""
    return {
        "gradcam": GradCAM(layer=layer),
        "gradcamplusplus": GradCAMPlusPlus(layer=layer),
        "scorecam": ScoreCAM(layer=layer, mean=mean, std=std),
        "ablationcam": AblationCAM(layer=layer),
        "xgradcam": XGradCAM(layer=layer),
        "layercam": LayerCAM(layer=layer),
        "opticam": OptiCAM(layer=layer, mean=mean, std=std),
    }


def seconds(study: EvaluationRecipe) -> dict[str, float]:
    """Return the seconds of each method for 8 images at its second call, as in Tables 2.1 and 2.2."""
    study.data.setup("validate")
    parts = [pick(batch, strict=True).pair() for batch in islice(study.data.val_dataloader(), 8)]
    device = study.module.device
    images, target = (torch.cat(part)[:8].to(device) for part in zip(*parts))
    times = {}
    for name, method in study.options["methods"].items():
        for _ in range(2):
            _wait(device)
            start = time.perf_counter()
            method(study.module, images, target)
            _wait(device)
            times[name] = time.perf_counter() - start
    return times


def _wait(device: torch.device) -> None:
    """Wait until the accelerator has finished."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def opti_cam_study_report(study: EvaluationRecipe) -> str:
    """Run the study, write its results, and return those that the table does not have."""
    study.run()
    folder = study.folder()
    times = seconds(study)
    with whole_file(folder / "seconds.csv") as beside, beside.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["method", "seconds for 8 images"], *times.items()])
    study.draw(folder / "maps.png")
    lines = [f"  {name:<22} {value:>9.3f}" for name, value in times.items()]
    return "\n".join(["", "seconds for 8 images", *lines, "", f"picture   {folder / 'maps.png'}"])
