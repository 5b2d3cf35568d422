"""Train a CA-Stream next to a network that is trained already, and compare the two poolings.

    python -m interpretable_training.recipes ca_stream

trains a small network on generated shapes, unless its weights exist, then the stream, and ends with a table of the
poolings and a picture of their maps. `ca_stream_imagenet` is the experiment of the paper.
"""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.attribution import GradCAM, GradCAMPlusPlus, RawAttention, ScoreCAM
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.callbacks import TrainingCurves
from interpretable_training.data import ImageNetDataModule, ShapesDataModule
from interpretable_training.files import save_picture, whole_file, write_whole
from interpretable_training.metrics import (
    AverageDrop,
    AverageGain,
    AverageIncrease,
    Deletion,
    Insertion,
    Table,
    evaluate,
    join,
)
from interpretable_training.models import CAStream, build_network
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier
from interpretable_training.recipes.baseline import baseline
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.regularization import GuidedGradientRegularizer
from interpretable_training.visual import denormalize, draw_sheet, overlay


def ca_stream(
    network: str = "tiny_cnn",
    weights: str | None = None,
    image_size: int = 64,
    n_train: int = 6000,
    batch_size: int = 32,
    learning_rate: float = 0.1,
    max_epochs: int = 8,
    backbone_epochs: int = 8,
    guided_weight: float = 0.0,
    start: int = 0,
    class_specific: bool = False,
    projected: bool = False,
    heads: int = 1,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a stream next to a network that is trained on the shapes.

    Args:
        network: "tiny_cnn" or the name of a convolutional network of timm.
        weights: File with the weights of the backbone. If it does not exist, the backbone is trained and written there;
            by default in the output folder.
        image_size: Side of the images.
        n_train: Number of training images.
        batch_size: Images per batch.
        learning_rate: Step size of SGD for 256 images per step, which is scaled to the batch.
        max_epochs: Epochs for the stream.
        backbone_epochs: Epochs for the backbone, if it is trained.
        guided_weight: Weight of the guided-gradient regularizer in the training of the backbone; 0 trains without it.
        start: First stage of the stream.
        class_specific: See `CAStream`.
        projected: See `CAStream`.
        heads: See `CAStream`.
        seed: Seed of weights, pictures and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ShapesDataModule(image_size=image_size, n_train=n_train, batch_size=batch_size, seed=seed)
    weights = weights or f"{output}/ca_stream/{'guided_' if guided_weight else ''}{network}.pt"
    module = CAStreamClassifier(
        trained_backbone(weights, network, image_size, n_train, backbone_epochs, guided_weight, seed=seed),
        data.num_classes,
        stream={"start": start, "class_specific": class_specific, "projected": projected, "heads": heads},
        optimizer=partial(torch.optim.SGD, lr=learning_rate, momentum=0.9, weight_decay=1e-4),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
    )
    return Recipe(_trainer(max_epochs, output), module, data)


def ca_stream_imagenet(
    folder: str = "imagenet",
    network: str = "resnet50",
    batch_size: int = 256,
    num_workers: int = 8,
    max_epochs: int = 90,
    start: int = 0,
    class_specific: bool = False,
    projected: bool = False,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a stream on ImageNet as in the paper; the weights of the network come from timm.

    Args:
        folder: See the root of `ImageNetDataModule`.
        network: The name of a convolutional network of timm.
        batch_size: Images per batch and process; the learning rate is meant for 256 in all and scaled to them.
        num_workers: Processes that load batches.
        max_epochs: Number of epochs.
        start: First stage of the stream.
        class_specific: See `CAStream`.
        projected: See `CAStream`.
        seed: Seed of weights and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    data = ImageNetDataModule(folder, batch_size=batch_size, num_workers=num_workers, seed=seed)
    stream = {"start": start, "class_specific": class_specific, "projected": projected}
    module = CAStreamClassifier(network, 1000, pretrained=True, stream=stream)
    return Recipe(_trainer(max_epochs, output), module, data)


def _trainer(max_epochs: int, output: str) -> L.Trainer:
    """Return the trainer of both experiments."""
    return L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="ca_stream"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/accuracy", mode="max"), TrainingCurves()],
    )


def trained_backbone(
    weights: str = "runs/ca_stream/tiny_cnn.pt",
    network: str = "tiny_cnn",
    image_size: int = 64,
    n_train: int = 6000,
    max_epochs: int = 8,
    guided_weight: float = 0.0,
    shortcut: float = 0.0,
    seed: int = 0,
) -> nn.Module:
    """Return a network that is trained on the shapes: read from the file, or trained as `baseline` and written there.

    Args:
        weights: File with the weights.
        network: "tiny_cnn", "tiny_vit" or the name of a network of timm.
        image_size: Side of the images.
        n_train: Number of training images.
        max_epochs: Number of epochs.
        guided_weight: Weight of the guided-gradient regularizer; 0 trains without it.
        shortcut: Share of the training images with a mark that names the class.
        seed: Seed of weights, pictures and order.
    """
    path = Path(weights)
    options: dict[str, Any] = {
        "image_size": image_size,
        "n_train": n_train,
        "max_epochs": max_epochs,
        "guided_weight": guided_weight,
    }
    options |= {"shortcut": shortcut, "seed": seed}
    with isolate_rng():  # the random numbers after it are the same in both cases
        if path.exists():
            return read_backbone(path, network, options)
        recipe = baseline(
            network, image_size, n_train, max_epochs=max_epochs, seed=seed, output=str(path.parent / "backbone")
        )
        module, data = recipe.module, recipe.data
        assert isinstance(module, Classifier)
        if guided_weight:
            regularizer, like = GuidedGradientRegularizer(weight=guided_weight), module
            schedule: dict[str, Any] = {"optimizer": like.optimizer, "scheduler": like.scheduler}
            module = GuidedGradientClassifier(network, like.num_classes, regularizer, **schedule)
        if shortcut:
            data = ShapesDataModule(image_size, n_train=n_train, batch_size=32, seed=seed, shortcut=shortcut)
        recipe.trainer.fit(module, data)
        backbone = module.get_submodule("network").cpu()
        path.parent.mkdir(parents=True, exist_ok=True)
        write_whole(path.with_suffix(".json"), json.dumps(options))
        with whole_file(path) as beside:  # half a file would be read the next time
            torch.save(backbone.state_dict(), beside)
        return backbone


def read_backbone(path: Path, network: str, options: dict[str, Any]) -> nn.Module:
    """Return a network with the weights of a file; warn where they were trained with other options."""
    backbone = build_network(network, ShapesDataModule.num_classes)
    way_out = "remove the file to train again, or pass another one as weights"
    try:
        backbone.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    except (OSError, EOFError, AttributeError, TypeError, RuntimeError, UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise RuntimeError(f"expected weights of {network!r} in {path}, got: {reason} {way_out}.") from error
    known = path.with_suffix(".json")
    made: dict[str, Any] = json.loads(known.read_text(encoding="utf-8")) if known.exists() else {}
    other = [f"{name}={made[name]} instead of {options[name]}" for name in made if made[name] != options.get(name)]
    if other:
        rank_zero_warn(f"The network of {path} was trained with {', '.join(other)}; {way_out}.")
    return backbone


def compare_poolings(recipe: Recipe, max_images: int | None = None) -> Table:
    """Measure how faithful the maps of both poolings are on the validation images."""
    data = recipe.data
    assert isinstance(data, ShapesDataModule)
    methods = explained_by(data)
    metrics = [AverageDrop(), AverageGain(), AverageIncrease(), Insertion(), Deletion()]
    net = recipe.module.get_submodule("network")
    assert isinstance(net, CAStream)
    options: dict[str, Any] = {"max_images": max_images, "controls": False}
    return join(
        {
            "GAP": evaluate(net.backbone, methods, metrics, data, **options),
            "CA": evaluate(net, methods, metrics, data, **options),
        }
    )


def explained_by(data: ShapesDataModule) -> dict[str, Attribution]:
    """Return the methods of the paper, which mask with black."""
    masked = ScoreCAM(mean=data.mean, std=data.std)
    return {"gradcam": GradCAM(), "gradcamplusplus": GradCAMPlusPlus(), "scorecam": masked}


def differences(table: Table) -> str:
    """Return CA minus GAP for each method and metric, with the 95 % interval over the same images."""
    lines = [f"{'CA - GAP':<17}" + "".join(f"{metric:>28}" for metric in table.metrics)]
    for method in dict.fromkeys(name.split("/")[1] for name in table.values):
        pair = replace(table, reference=f"GAP/{method}", _cells={})
        cells = [pair[f"CA/{method}", metric] for metric in table.metrics]
        shown = [f"{c.difference:+.3f} [{c.difference_low:+.3f}, {c.difference_high:+.3f}]" for c in cells]
        lines.append(f"{method:<17}" + "".join(f"{text:>28}" for text in shown))
    return "\n".join(lines)


def draw_attention(recipe: Recipe, path: str | Path, count: int = 6) -> None:
    """Draw the attention of the stream and the maps of both poolings, for the first image of each class."""
    data = recipe.data
    assert isinstance(data, ShapesDataModule)
    data.setup("validate")
    items: dict[int, Tensor] = {}
    for images, target in data.val_dataloader():
        for image, c in zip(images, target.tolist()):
            items.setdefault(c, image)
    target = torch.tensor(sorted(items)[:count])
    images = torch.stack([items[c] for c in target.tolist()])
    net = recipe.module.get_submodule("network").cpu()
    assert isinstance(net, CAStream)
    pictures = denormalize(images, data.mean, data.std)
    rows = {"image": (255 * pictures).byte().permute(0, 2, 3, 1)}
    rows["raw attention"] = overlay(pictures, RawAttention()(net, images, target))
    for method, cam in explained_by(data).items():
        rows[f"{method}, GAP"] = overlay(pictures, cam(net.backbone, images, target))
        rows[f"{method}, CA"] = overlay(pictures, cam(net, images, target))
    save_picture(draw_sheet(rows), path)


def ca_stream_report(recipe: Recipe, max_images: int | None = 300) -> str:
    """Load the best stream, write table and picture next to its log, and return the results as text."""
    folder = Path(recipe.trainer.log_dir or ".")
    best = recipe.trainer.checkpoint_callback
    assert isinstance(best, ModelCheckpoint)
    state = torch.load(best.best_model_path, map_location="cpu", weights_only=True)["state_dict"]
    recipe.module.load_state_dict(state)
    logged = L.Trainer(logger=False, enable_checkpointing=False, enable_model_summary=False).validate(
        recipe.module, recipe.data, verbose=False
    )[0]
    table = compare_poolings(recipe, max_images)
    table.save(folder / "faithfulness")
    draw_attention(recipe, folder / "attention.png")
    own = next(value for name, value in logged.items() if name in ("val/gap_accuracy", "val/own_accuracy"))
    accuracy = f"accuracy   GAP {own:.1%}   CA {logged['val/accuracy']:.1%}"
    return "\n\n".join([accuracy, table.to_text(), differences(table), f"picture   {folder / 'attention.png'}"])
