"""Measure all methods and two controls that ignore the model, on a small network and generated shapes.

    python -m interpretable_training.recipes method_table
    python -m interpretable_training.recipes method_table --shortcut 0.95
    python -m interpretable_training.recipes method_table --metrics localization
    python -m interpretable_training.recipes method_table --metrics localization --shortcut 0.95

With a shortcut, most images have a small mark that names the class, and the network is trained on them. Localization is
then measured twice: at the object, and at the mark.
"""

from typing import Any, Literal

import lightning as L
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor

from interpretable_training import attribution as a
from interpretable_training import metrics as m
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.data import ShapesDataModule
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.modules import Classifier
from interpretable_training.recipes.ca_stream import trained_backbone
from interpretable_training.recipes.recipe import EvaluationRecipe


def method_table(
    metrics: Literal["faithfulness", "localization"] = "faithfulness",
    shortcut: float = 0.0,
    network: Literal["tiny_cnn", "tiny_vit"] = "tiny_cnn",
    weights: str | None = None,
    image_size: int = 64,
    n_train: int = 6000,
    backbone_epochs: int = 8,
    max_images: int | None = 24,
    seed: int = 0,
    output: str = "runs",
) -> EvaluationRecipe:
    """Measure every method that explains the network.

    Args:
        metrics: Faithfulness of the maps, or how well they locate the object.
        shortcut: Share of the images with a mark that names the class.
        network: A convolutional network, or a transformer.
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
    data = ShapesDataModule(image_size, n_train=n_train, batch_size=24, seed=seed, annotations=True, shortcut=shortcut)
    weights = weights or f"{output}/ca_stream/{'marked_' if shortcut else ''}{network}.pt"
    options: dict[str, Any] = {"shortcut": shortcut, "seed": seed}
    backbone = trained_backbone(weights, network, image_size, n_train, backbone_epochs, **options)
    measured = faithfulness() if metrics == "faithfulness" else localization(shortcut)
    trainer = EvaluationTrainer(logger=CSVLogger(output, name="method_table"), enable_model_summary=False)
    options = {"methods": all_methods(data, network), "metrics": measured, "target": "label", "max_images": max_images}
    options |= {"reference": "gradcam", "seed": seed}
    return EvaluationRecipe(trainer, Classifier(backbone, data.num_classes), data, options)


def all_methods(data: ShapesDataModule, network: str = "tiny_cnn") -> dict[str, Attribution]:
    """Return the methods by name; sizes in pixels are scaled from those for images of 224 x 224."""
    black: dict[str, Any] = {"mean": data.mean, "std": data.std}
    side = max(1, min(data.size) // 14)
    starts = baselines(min(data.size), seed=data.seed)
    expected = a.ExpectedGradCAM(baselines=starts, n=20)
    ascent: dict[str, Any] = {"steps": 100, "lr": 0.08, "growth": 1.0283}  # fewer and longer steps than the paper's
    cells: dict[str, Any] = {"step": max(1, side // 2), "sigma": 1.5 * side, "blur_sigma": 1.5 * side}
    methods: dict[str, Attribution] = {
        "gradcam": a.GradCAM(),
        "gradcamplusplus": a.GradCAMPlusPlus(),
        "smoothgradcamplusplus": a.SmoothGradCAMPlusPlus(),
        "xgradcam": a.XGradCAM(),
        "hirescam": a.HiResCAM(),
        "layercam": a.LayerCAM(),
        "eigencam": a.EigenCAM(),
        "scorecam": a.ScoreCAM(**black),
        "ablationcam": a.AblationCAM(),
        "opticam": a.OptiCAM(**black),
        "polycam": a.PolyCAM(**black),
        "expectedgradcam": expected,
        "expectedgradcamplusplus": a.ExpectedGradCAMPlusPlus(baselines=starts, n=20),
        "hyperexpectedgradcam": a.HyperExpectedGradCAM(expected, local_draws=2),
        "guidedexpectedgradcam": a.GuidedExpectedGradCAM(expected),
        "guidedgradcam": a.GuidedGradCAM(),
        "gradient": a.Gradient(),
        "inputxgradient": a.InputXGradient(**black),
        "smoothgrad": a.SmoothGrad(),
        "integratedgradients": a.IntegratedGradients(),
        "expectedgradients": a.ExpectedGradients(baselines=starts, n=20),
        "guidedbackprop": a.GuidedBackprop(),
        "deconvnet": a.DeconvNet(),
        "fullgrad": a.FullGrad(),
        "tgrad": a.TGrad(),
        "rise": a.RISE(n=300, **black),
        "occlusion": a.Occlusion(patch=2 * side, stride=side),
        "extremalperturbation": a.ExtremalPerturbation(**ascent, **cells),
    }
    if network == "tiny_vit":
        attention = [a.RawAttention(), a.AttentionRollout(), a.TransformerAttribution()]
        return methods | {type(method).__name__.lower(): method for method in attention}
    return {"cam": a.CAM(relu=True), **methods}


def baselines(image_size: int = 64, n: int = 50, seed: int = 0) -> Tensor:
    """Return training images without marks, (n, 3, H, W), from which expected gradients start.

    Args:
        image_size: Side of the images.
        n: Number of images.
        seed: Seed of the pictures.
    """
    data = ShapesDataModule(image_size, n_train=n, n_val=1, n_test=1, seed=seed)
    data.setup("fit")
    return a.sample_baselines(data.splits["train"], n)


def faithfulness() -> dict[str, ImageMetric]:
    """Return metrics that mask, insert and remove pixels and compare the probability of the class."""
    return {
        "average_drop": m.AverageDrop(),
        "average_gain": m.AverageGain(),
        "average_increase": m.AverageIncrease(),
        "insertion": m.Insertion(steps=28),
        "deletion": m.Deletion(steps=28),
        "adcc": m.ADCC(),
    }


def localization(shortcut: float = 0.0) -> dict[str, ImageMetric]:
    """Return metrics that compare maps, their boxes and highest points with the object, and with the mark."""
    metrics: dict[str, ImageMetric] = {
        "official_metric": m.OfficialMetric(),
        "localization_error": m.LocalizationError(),
        "energy_localization_error": m.EnergyLocalizationError(),
        "box_accuracy": m.BoxAccuracy(),
        "pixel_f1": m.PixelF1(),
        "pointing_game": m.PointingGame(),
        "energy_pointing_game": m.EnergyPointingGame(),
        "saliency_metric": m.SaliencyMetric(),
    }
    if shortcut:
        metrics["pointing_game_on_mark"] = m.PointingGame(region="shortcut_mask")
        metrics["energy_on_mark"] = m.EnergyPointingGame(region="shortcut_mask")
    return metrics


def method_table_report(study: EvaluationRecipe) -> str:
    """Run the study, draw its maps, and return where the picture is."""
    study.run()
    study.draw(study.folder() / "maps.png", blocks=2)
    return f"picture   {study.folder() / 'maps.png'}"
