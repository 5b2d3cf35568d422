"""The network that `interpretable-training explain` explains: of a checkpoint or of timm."""

import importlib
import math
import sys
from argparse import ArgumentError
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2

from interpretable_training.evaluation.trainer import read_checkpoint
from interpretable_training.mistakes import MistakeError, closest
from interpretable_training.models.build import build_network
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier
from interpretable_training.modules.checks import MOST_CLASSES
from interpretable_training.modules.class_paths import check_hyper_parameters
from interpretable_training.modules.classifier import PICTURES
from interpretable_training.visual.colors import Colors

MODULES = {module.__name__: module for module in (Classifier, CAStreamClassifier, GuidedGradientClassifier)}
NEEDED = ("network", "num_classes", "network_kwargs", "pretrained", "weights", "stream", "multilabel")


@dataclass(frozen=True)
class Subject:
    """Network with the transform from pictures to its images."""

    network: nn.Module
    name: str
    shape: tuple[int, int, int]
    colors: Colors
    class_names: list[str] | None
    multilabel: bool

    def prepare(self, picture: Image.Image) -> Tensor:
        """Return a picture as an image (C, H, W): scaled to cover the size, cropped at the center, normalized."""
        channels, height, width = self.shape
        picture = picture.convert("L" if channels == 1 else "RGB")
        scale = max(height / picture.height, width / picture.width)
        size = [math.ceil(picture.height * scale - 1e-6), math.ceil(picture.width * scale - 1e-6)]
        steps = [v2.PILToTensor(), v2.Resize(size), v2.CenterCrop([height, width]), v2.ToDtype(torch.float32, True)]
        mean, std = self.colors.mean, self.colors.std
        if mean is not None and std is not None:
            steps.append(v2.Normalize(list(mean), list(std)))
        image = v2.Compose(steps)(picture)
        return image if channels in (1, 3) else image.mean(0, keepdim=True).expand(channels, -1, -1)


def import_modules(names: Sequence[str]) -> None:
    """Import modules that the user names, also from the working folder."""
    if names:
        sys.path.append(str(Path.cwd()))  # last, so that no file there takes the place of a package
    for name in names:
        try:
            importlib.import_module(name)
        except (ImportError, TypeError, ValueError) as error:
            raise MistakeError(
                f"expected the name of a module for --import, got {name!r} ({error}); write it as in an import, such "
                "as my_project.networks."
            ) from error


def find_subject(model: str, pretrained: bool, class_names: Sequence[str] | None) -> Subject:
    """Return the network of a checkpoint, or of timm."""
    path = Path(model)
    if path.suffix == ".ckpt" or path.is_file():
        return from_checkpoint(path, class_names)
    return from_timm(model, pretrained, class_names)


def from_checkpoint(path: Path, class_names: Sequence[str] | None) -> Subject:
    """Return the network of a checkpoint of `MODULES`, and how pictures become its images."""
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise MistakeError(
            f"expected a checkpoint that exists, got {str(path)!r}; closest: {closest(path.name, near)}."
        )
    checkpoint = read_checkpoint(path)
    facts: dict[str, Any] = checkpoint.get(PICTURES, {})
    if facts.get("module") not in MODULES or not facts.get("image_shape"):
        raise MistakeError(
            f"expected a checkpoint of {list(MODULES)} that was written in a training, got {str(path)!r}; explain "
            "other models in Python: interpretable_training.attribution.explain(methods, model, images)."
        )
    module = rebuild(MODULES[facts["module"]], checkpoint, path)
    mean, std = facts.get("mean"), facts.get("std")
    known = mean is not None and std is not None
    colors = Colors(tuple(mean), tuple(std), "checkpoint") if known else Colors(None, None, "checkpoint")  # type: ignore
    names = list(class_names) if class_names else facts.get("class_names")
    return Subject(module.network, path.name, tuple(facts["image_shape"]), colors, names, module.multilabel)


def rebuild(cls: type[Classifier], checkpoint: dict[str, Any], path: Path) -> Classifier:
    """Return a module built from the arguments in `NEEDED`; nothing else of the checkpoint is built."""
    values = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key in NEEDED}
    check_hyper_parameters(values)
    if not isinstance(values.get("num_classes"), int) or not 1 <= values["num_classes"] <= MOST_CLASSES:
        raise MistakeError(
            f"expected a checkpoint of 1 to {MOST_CLASSES} classes, got {str(path)!r} with "
            f"num_classes={values.get('num_classes')!r}; pass one that was written in a training."
        )
    try:
        if isinstance(values.get("network"), dict):  # from the command line
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--network", type=nn.Module)
            values["network"] = parser.instantiate(parser.parse_object({"network": values["network"]})).network
        module = cls(**values)
        weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("loss.")}
        module.load_state_dict(weights, strict=module.strict_loading)
    except (ArgumentError, KeyError, RuntimeError, TypeError, MemoryError) as error:
        raise MistakeError(
            f"expected a checkpoint from which a {cls.__name__} can be rebuilt, got {str(path)!r}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return module


def from_timm(name: str, pretrained: bool, class_names: Sequence[str] | None) -> Subject:
    """Return a model of timm, and how pictures become its images, by its configuration."""
    import timm
    from torchvision.models import ResNet50_Weights

    network = build_network(name, 1000, pretrained)
    config = timm.data.resolve_model_data_config(network)
    if not pretrained:
        sys.stderr.write(f"{name} has random weights; pass --pretrained to download those that were trained.\n")
    imagenet = list(ResNet50_Weights.DEFAULT.meta["categories"]) if pretrained else None
    names = list(class_names) if class_names else imagenet
    colors = Colors(tuple(config["mean"]), tuple(config["std"]), "timm")
    return Subject(network, name, tuple(config["input_size"]), colors, names, False)
