"""Test whether the inside of the object's box decides the prediction. Zhang et al., CVIU 2024, https://arxiv.org/abs/2301.07002

    python -m interpretable_training.recipes box_study

masks images by the box, by its outside, and by the map of each method: whole, inside and outside of the box. The
network is small and trained on generated shapes. `box_study_imagenet` is the study of the paper: Table 2.5 of the first
author's thesis. If the box were enough, the network would use the object alone; the paper finds that it is not.
"""

from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor
from torchvision.transforms import v2

from interpretable_training.attribution import ExtremalPerturbation, FakeCAM, explain, normalize
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.data import ImageNetDataModule, ShapesDataModule
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.files import save_picture
from interpretable_training.metrics import AverageDrop, AverageGain, AverageIncrease, box_rows
from interpretable_training.metrics.core.regions import pixels
from interpretable_training.modules import Classifier
from interpretable_training.recipes.ca_stream import trained_backbone
from interpretable_training.recipes.opti_cam_study import cams
from interpretable_training.recipes.recipe import EvaluationRecipe
from interpretable_training.visual import denormalize, draw_sheet, overlay


def box_study(
    network: str = "tiny_cnn",
    weights: str | None = None,
    image_size: int = 64,
    n_train: int = 6000,
    backbone_epochs: int = 8,
    max_images: int | None = 96,
    seed: int = 0,
    output: str = "runs",
) -> EvaluationRecipe:
    """Study the boxes of shapes; without extremal perturbation, which is slow.

    Args:
        network: "tiny_cnn", "tiny_vit" or the name of a network of timm.
        weights: File with the weights of the network. If it does not exist, the network is trained and written there;
            by default in the output folder.
        image_size: Side of the images.
        n_train: Number of training images, if it is trained.
        backbone_epochs: Epochs of training, if it is trained.
        max_images: How many validation images; None takes all.
        seed: Seed of weights, pictures and choice of images.
        output: Folder for the results.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(image_size, n_train=n_train, batch_size=32, seed=seed, annotations=True)
    weights = weights or f"{output}/ca_stream/{network}.pt"
    backbone = trained_backbone(weights, network, image_size, n_train, backbone_epochs, seed=seed)
    methods = {"fakecam": FakeCAM(), **cams(data.mean, data.std)}
    return _study(Classifier(backbone, data.num_classes), data, methods, max_images, seed, output)


def box_study_imagenet(
    folder: str = "imagenet",
    network: str = "vgg16_bn.tv_in1k",
    max_images: int | None = None,
    num_workers: int = 8,
    seed: int = 0,
    output: str = "runs",
) -> EvaluationRecipe:
    """Study all validation images of ImageNet with their boxes, scaled to 224 x 224, as in the paper.

    Args:
        folder: See the root of `ImageNetDataModule`; the XML files of the boxes are there.
        network: A name of timm; its trained weights are downloaded.
        max_images: How many validation images; by default all.
        num_workers: Processes that load batches.
        seed: Seed of the choice of images.
        output: Folder for the results.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    options: dict[str, Any] = {"annotations": True, "eval_transform": v2.Resize([224, 224]), "batch_size": 8}
    data = ImageNetDataModule(folder, num_workers=num_workers, seed=seed, **options)
    module = Classifier(network, 1000, pretrained=True)
    methods = {"fakecam": FakeCAM(), **cams(data.mean, data.std), "extremalperturbation": ExtremalPerturbation()}
    return _study(module, data, methods, max_images, seed, output)


def _study(
    module: Classifier,
    data: ShapesDataModule | ImageNetDataModule,
    methods: dict[str, Attribution],
    max_images: int | None,
    seed: int,
    output: str,
) -> EvaluationRecipe:
    """Return the study of both functions: the rows, the metrics, and the label as target."""
    metrics = {
        "average_drop": AverageDrop(),
        "average_gain": AverageGain(),
        "average_increase": AverageIncrease(),
    }
    options = {"methods": box_rows(methods), "metrics": metrics, "target": "label", "max_images": max_images}
    options |= {"reference": "box", "seed": seed}
    trainer = EvaluationTrainer(logger=CSVLogger(output, name="box_study"), enable_model_summary=False)
    return EvaluationRecipe(trainer, module, data, options)


def draw_parts(study: EvaluationRecipe, path: str, names: tuple[str, ...] = ("gradcam", "opticam")) -> None:
    """Draw the maps of two methods, whole, inside and outside of the boxes."""
    images, target, annotations = study.examples()
    pictures = denormalize(images, study.data.mean, study.data.std)  # type: ignore[attr-defined]
    inside = inside_of(annotations["boxes"], images)
    rows = {"image": (255 * pictures).byte().permute(0, 2, 3, 1), "box": overlay(pictures, inside)}
    methods = {name: study.options["methods"][name] for name in names}
    for name, raw in explain(methods, study.module, images, target).items():
        S = normalize(raw)
        rows |= {name: overlay(pictures, S), f"{name} inside": overlay(pictures, S * inside)}
        rows |= {f"{name} outside": overlay(pictures, S * (1 - inside))}
    save_picture(draw_sheet(rows), path)


def inside_of(boxes: list[Tensor], images: Tensor) -> Tensor:
    """Return (B, H, W): 1 inside of the boxes (n, 4) of each image, 0 elsewhere."""
    size = (len(images), *images.shape[2:])
    return pixels({"boxes": boxes}, "boxes", size).to(images)  # as the metrics see them


def box_study_report(study: EvaluationRecipe) -> str:
    """Run the study, draw its maps, and return where the picture is."""
    study.run()
    draw_parts(study, f"{study.folder()}/maps.png")
    return f"picture   {study.folder()}/maps.png"
