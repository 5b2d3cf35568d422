"""`interpretable-training explain`: the panels of the callbacks, for anybody's pictures and a trained network."""

import math
import sys
from argparse import ArgumentError
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jsonargparse import ArgumentParser
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from tqdm.auto import tqdm  # type: ignore[import-untyped]

import interpretable_training.attribution as attribution
from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.base import name_methods
from interpretable_training.callbacks.watching.explanation_memo import explain_images
from interpretable_training.callbacks.watching.explanations import Explained, check_target, joined
from interpretable_training.callbacks.watching.image_logging import Gallery, as_bytes
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.data.pictures import BROKEN
from interpretable_training.evaluation.trainer import read_checkpoint
from interpretable_training.files import save_picture
from interpretable_training.models.build import build_network
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier
from interpretable_training.modules.class_paths import check_hyper_parameters
from interpretable_training.modules.classifier import PICTURES
from interpretable_training.report.journal import Journal, safe_name
from interpretable_training.report.page import write_report
from interpretable_training.visual.colors import Colors
from interpretable_training.visual.overlay import overlay
from interpretable_training.visual.sheet import draw_sheet

from .errors import MistakeError, closest, printable, require_writable

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
MODULES = {module.__name__: module for module in (Classifier, CAStreamClassifier, GuidedGradientClassifier)}
NEEDED = ("network", "num_classes", "network_kwargs", "pretrained", "weights", "stream", "multilabel")
MOST_CLASSES = 1_000_000
BATCH = 16
ON_PAGE = 64  # pictures on the sheet and the page


@dataclass(frozen=True)
class Subject:
    """A network, and how a picture becomes what it takes."""

    network: nn.Module
    name: str
    shape: tuple[int, int, int]
    colors: Colors
    class_names: list[str] | None
    multilabel: bool

    def prepare(self, picture: Image.Image) -> Tensor:
        """A picture as an image (C, H, W): scaled so that it covers the size, cut in the middle, normalized."""
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


def explain_pictures(
    model: str,
    images: Sequence[str],
    methods: Sequence[str] = ("GradCAM",),
    target: str = "pred",
    output: str = "explanations",
    class_names: Sequence[str] | None = None,
    pretrained: bool = False,
) -> Path:
    """Explain pictures, and write overlays, a contact sheet and a page.

    Args:
        model: A checkpoint of one of our modules, or the name of a timm model.
        images: Files and folders.
        methods: Names of methods, such as GradCAM.
        target: "pred", "topk:K" or the number or name of a class.
        output: Folder for the results.
        class_names: Names of the classes, where the model does not know them.
        pretrained: Whether a timm model gets its trained weights, which are downloaded.

    Returns:
        The page.
    """
    files = find_files(images)
    chosen = name_methods([method_of(name) for name in methods])
    require_writable(output)
    subject = find_subject(model, pretrained, class_names)
    wanted = target_of(target, subject)
    gallery, names = Gallery(chosen, "image"), names_of(files)
    shown: list[Explained] = []
    bar = tqdm(desc="explain", unit=" pictures", total=len(files), disable=len(files) <= BATCH)
    for batch in batches(files, subject):
        indices, pictures = zip(*batch)
        options = {"multilabel": subject.multilabel, "ids": list(indices)}
        found = explain_images(chosen, subject.network, torch.stack(pictures), None, wanted, **options)
        for why in found.errors.values():
            sys.stderr.write(f"{why}\n")
        for index, title in zip(indices, gallery.titles(found, subject.class_names)):
            tqdm.write(printable(f"  {files[index].name}  {title}"))
        write_overlays(draw(subject, found), [names[i] for i in indices], Path(output))
        shown += [found] if sum(len(part.ids) for part in shown) < ON_PAGE else []
        bar.update(len(indices))
    bar.close()
    if not shown or not any(shown[0].maps.values()):
        raise MistakeError(f"expected maps of at least one picture, got none of {len(files)} files.")
    return write_page(subject, gallery, joined(shown), files, Path(output))


def draw(subject: Subject, found: Explained) -> dict[str, Tensor]:
    """Name -> overlays, uint8 (n, H, W, 3)."""
    pictures = subject.colors.pictures(found.images)
    one = len(found.maps) == 1
    maps = {m if one else f"{m} {view}": S for view, methods in found.maps.items() for m, S in methods.items()}
    return {name: overlay(pictures, S) for name, S in maps.items()}


def write_overlays(rows: dict[str, Tensor], names: list[str], folder: Path) -> None:
    """A file for each picture and method."""
    for row, overlays in rows.items():
        for name, drawn in zip(names, overlays):
            save_picture(Image.fromarray(drawn.numpy()), folder / f"{name}-{safe_name(row.lower())}.png")


def write_page(subject: Subject, gallery: Gallery, found: Explained, files: Sequence[Path], folder: Path) -> Path:
    """A contact sheet and a page, of the first pictures."""
    pictures = subject.colors.pictures(found.images)
    rows = {"image": as_bytes(pictures), **draw(subject, found)}
    save_picture(draw_sheet(rows, gallery.titles(found, subject.class_names)), folder / "sheet.png")
    journal = Journal(folder / "journal")
    journal.write("run", classes=subject.class_names, model=subject.name, settings={}, probe=[])
    names = [file.name for file in files]
    own = names if len({*names}) == len(names) else [str(file) for file in files]
    by_name = replace(found, ids=[own[i] for i in found.ids])
    gallery.keep(journal, subject.class_names, "panel", by_name, pictures, rows, Moment("explain", 0, 0, 0))
    page = write_report(journal.folder, folder / "index.html", run=journal.run)
    sys.stdout.write(f"Overlays, sheet.png and the page: {page}\n")
    return page


def find_files(images: Sequence[str]) -> list[Path]:
    """The files, and those of folders, in the order of their names."""
    files: list[Path] = []
    for given in map(Path, images):
        if given.is_dir():
            files += sorted(path for path in given.rglob("*") if path.suffix.lower() in ENDINGS and not path.is_dir())
        elif given.exists():
            files.append(given)
        else:
            near = [path.name for path in given.parent.iterdir()] if given.parent.is_dir() else []
            raise MistakeError(
                f"expected images as files or folders that exist, got {str(given)!r}; closest: "
                f"{closest(given.name, near)}."
            )
    if not files:
        raise MistakeError(f"expected at least one picture ({', '.join(sorted(ENDINGS))}), got none in {list(images)}.")
    return files


def batches(files: Sequence[Path], subject: Subject) -> Iterator[list[tuple[int, Tensor]]]:
    """Images (C, H, W) with their numbers, some at a time; what cannot be read is named and left out."""
    batch: list[tuple[int, Tensor]] = []
    for number, file in enumerate(files):
        try:
            if not file.is_file():  # to open a pipe waits for ever
                raise OSError("expected a regular file, got something else")
            with Image.open(file) as picture:
                batch.append((number, subject.prepare(picture.convert("RGB"))))
        except (*BROKEN, MemoryError, RuntimeError) as error:  # torch says so of memory
            sys.stderr.write(printable(f"left out {file}: {error}") + "\n")
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def names_of(files: Sequence[Path]) -> list[str]:
    """Names for the overlays, each its own."""
    stems = [safe_name(file.stem.lower()) for file in files]
    return [f"{stem}-{stems[:i].count(stem) + 1}" if stem in stems[:i] else stem for i, stem in enumerate(stems)]


def method_of(name: str) -> Attribution:
    """A method by the name of its class, in any case."""
    known = {
        key.lower(): value
        for key, value in vars(attribution).items()
        if isinstance(value, type) and issubclass(value, Attribution) and value is not Attribution
    }
    if name.lower() not in known:
        names = [value.__name__ for value in known.values()]
        raise MistakeError(f"expected the name of a method, got {name!r}; closest: {closest(name, names)}.")
    try:
        return known[name.lower()]()
    except TypeError as error:
        raise MistakeError(f"expected a method that needs no options, got {name!r}: {error}") from error


def target_of(target: str, subject: Subject) -> str | int:
    """A class by its number or name, or a rule."""
    if target.isdigit():
        return int(target)
    if subject.class_names is not None and target in subject.class_names:
        return subject.class_names.index(target)
    if target in ("label", "both"):
        raise MistakeError(f"expected a target that needs no labels, got {target!r}; pass pred, topk:3 or a class.")
    try:
        check_target(target)
    except ValueError as error:
        names = subject.class_names or []
        raise MistakeError(f"{error} Closest among the names of the classes: {closest(target, names)}.") from error
    return target


def find_subject(model: str, pretrained: bool, class_names: Sequence[str] | None) -> Subject:
    """The network of a checkpoint, or of timm."""
    path = Path(model)
    if path.suffix == ".ckpt" or path.is_file():
        return from_checkpoint(path, class_names)
    return from_timm(model, pretrained, class_names)


def from_checkpoint(path: Path, class_names: Sequence[str] | None) -> Subject:
    """The network of one of our modules, which knows how pictures become images."""
    if not path.is_file():
        near = [file.name for file in path.parent.glob("*.ckpt")] if path.parent.is_dir() else []
        raise MistakeError(
            f"expected a checkpoint that exists, got {str(path)!r}; closest: {closest(path.name, near)}."
        )
    checkpoint = read_checkpoint(path)
    told: dict[str, Any] = checkpoint.get(PICTURES, {})
    if told.get("module") not in MODULES or not told.get("image_shape"):
        raise MistakeError(
            f"expected a checkpoint of {list(MODULES)} that was written in a training, got {str(path)!r}; explain "
            "other models in Python: interpretable_training.attribution.explain(methods, model, images)."
        )
    module = rebuild(MODULES[told["module"]], checkpoint, path)
    mean, std = told.get("mean"), told.get("std")
    known = mean is not None and std is not None
    colors = Colors(tuple(mean), tuple(std), "checkpoint") if known else Colors(None, None, "checkpoint")  # type: ignore
    names = list(class_names) if class_names else told.get("class_names")
    return Subject(module.network, path.name, tuple(told["image_shape"]), colors, names, module.multilabel)


def rebuild(cls: type[Classifier], checkpoint: dict[str, Any], path: Path) -> Classifier:
    """A module with what it needs to show its network pictures, and nothing else that the checkpoint names."""
    told = {key: value for key, value in checkpoint.get("hyper_parameters", {}).items() if key in NEEDED}
    check_hyper_parameters(told)
    if not isinstance(told.get("num_classes"), int) or not 1 <= told["num_classes"] <= MOST_CLASSES:
        raise MistakeError(
            f"expected a checkpoint of 1 to {MOST_CLASSES} classes, got {str(path)!r} with "
            f"num_classes={told.get('num_classes')!r}; pass one that was written in a training."
        )
    try:
        if isinstance(told.get("network"), dict):  # from the command line
            parser = ArgumentParser(exit_on_error=False)
            parser.add_argument("--network", type=nn.Module)
            told["network"] = parser.instantiate(parser.parse_object({"network": told["network"]})).network
        module = cls(**told)
        weights = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith("loss.")}
        module.load_state_dict(weights, strict=module.strict_loading)
    except (ArgumentError, KeyError, RuntimeError, TypeError, MemoryError) as error:
        raise MistakeError(
            f"expected a checkpoint from which a {cls.__name__} can be rebuilt, got {str(path)!r}: "
            f"{' '.join(str(error).split())[:400]}"
        ) from error
    return module


def from_timm(name: str, pretrained: bool, class_names: Sequence[str] | None) -> Subject:
    """A model of timm, and the images that its configuration names."""
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
