"""`interpretable-training explain`: overlays, a sheet and a page for pictures and a trained network."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor
from tqdm.auto import tqdm  # type: ignore[import-untyped]

from interpretable_training.attribution.core.base import name_methods
from interpretable_training.batches.read import Picked
from interpretable_training.callbacks.watching.explanation_memo import explain_images
from interpretable_training.callbacks.watching.explanations import Explained, check_target, joined
from interpretable_training.callbacks.watching.image_logging import Gallery, as_bytes
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.data.pictures import BROKEN
from interpretable_training.files import save_picture
from interpretable_training.mistakes import MistakeError, closest, require_writable
from interpretable_training.report.journal import Journal, safe_name
from interpretable_training.report.page import write_report
from interpretable_training.tasks.network import plain_reading
from interpretable_training.visual.overlay import overlay
from interpretable_training.visual.sheet import draw_sheet

from .errors import printable
from .explained_network import Subject, find_subject, import_modules

ENDINGS = {".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff", ".webp"}
BATCH = 16
ON_PAGE = 64  # pictures on the sheet and the page


def explain_pictures(
    model: str,
    images: Sequence[str],
    methods: Sequence[str] = ("GradCAM",),
    target: str = "pred",
    output: str = "explanations",
    class_names: Sequence[str] | None = None,
    pretrained: bool = False,
    imports: Sequence[str] = (),
) -> Path:
    """Explain pictures, and write overlays, a contact sheet and a page.

    Args:
        model: A checkpoint of one of our modules, or the name of a timm model.
        images: Files and folders.
        methods: Names of methods, such as GradCAM.
        target: "pred", "topk:K" or the number or name of a class.
        output: Folder for the results.
        class_names: Names of the classes, where the checkpoint has none.
        pretrained: Whether to download the trained weights of a timm model.
        imports: Modules to import first, whose classes the checkpoint names.

    Returns:
        The page.
    """
    import_modules(imports)
    files = find_files(images)
    chosen = name_methods(list(methods))
    require_writable(output)
    subject = find_subject(model, pretrained, class_names)
    wanted, reading = target_of(target, subject), plain_reading(subject.network, None, subject.multilabel)
    gallery, names = Gallery(chosen, "image"), overlay_names(files)
    shown: list[Explained] = []
    bar = tqdm(desc="explain", unit=" pictures", total=len(files))
    size = BATCH if len(files) > BATCH else 1  # so that the bar moves where a method takes long
    for batch in batches(files, subject, size):
        indices, pictures = zip(*batch)
        picked = Picked(torch.stack(pictures), None, None, None, {})
        explained = explain_images(chosen, reading, picked, wanted, list(indices))
        for reason in explained.errors.values():
            sys.stderr.write(f"{reason}\n")
        for index, title in zip(indices, gallery.titles(explained, subject.class_names)):
            tqdm.write(printable(f"  {files[index].name}  {title}"))
        write_overlays(draw_overlays(subject, explained), [names[i] for i in indices], Path(output))
        shown += [explained] if sum(len(part.ids) for part in shown) < ON_PAGE else []
        bar.update(len(indices))
    bar.close()
    if not shown or not any(shown[0].maps.values()):
        raise MistakeError(f"expected maps of at least one picture, got none of {len(files)} files.")
    return write_page(subject, gallery, joined(shown), files, Path(output))


def draw_overlays(subject: Subject, explained: Explained) -> dict[str, Tensor]:
    """Return name -> overlays, uint8 (n, H, W, 3)."""
    pictures = subject.colors.pictures(explained.images)
    one = len(explained.maps) == 1
    maps = {m if one else f"{m} {view}": S for view, methods in explained.maps.items() for m, S in methods.items()}
    return {name: overlay(pictures, S) for name, S in maps.items()}


def write_overlays(rows: dict[str, Tensor], names: list[str], folder: Path) -> None:
    """Write a file for each picture and method."""
    for row, overlays in rows.items():
        for name, drawn in zip(names, overlays):
            save_picture(Image.fromarray(drawn.numpy()), folder / f"{name}-{safe_name(row.lower())}.png")


def write_page(subject: Subject, gallery: Gallery, explained: Explained, files: Sequence[Path], folder: Path) -> Path:
    """Write a contact sheet and a page of the first pictures."""
    pictures = subject.colors.pictures(explained.images)
    rows = {"image": as_bytes(pictures), **draw_overlays(subject, explained)}
    save_picture(draw_sheet(rows, gallery.titles(explained, subject.class_names)), folder / "sheet.png")
    journal = Journal(folder / "journal")
    journal.write("run", classes=subject.class_names, model=subject.name, settings={}, probe=[])
    names = [file.name for file in files]
    ids = names if len({*names}) == len(names) else [str(file) for file in files]
    by_name = replace(explained, ids=[ids[i] for i in explained.ids])
    gallery.keep(journal, subject.class_names, "panel", by_name, pictures, rows, ExplanationStep("explain", 0, 0, 0))
    page = write_report(journal.folder, folder / "index.html", run=journal.run)
    sys.stdout.write(f"Overlays, sheet.png and the page: {page}\n")
    return page


def find_files(images: Sequence[str]) -> list[Path]:
    """Return the files, and those of folders, in the order of their names."""
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


def batches(files: Sequence[Path], subject: Subject, size: int) -> Iterator[list[tuple[int, Tensor]]]:
    """Yield batches of numbers and images (C, H, W); name files that cannot be read, and leave them out."""
    batch: list[tuple[int, Tensor]] = []
    for number, file in enumerate(files):
        try:
            if not file.is_file():  # to open a pipe waits for ever
                raise OSError("expected a regular file, got something else")
            with Image.open(file) as picture:
                batch.append((number, subject.prepare(picture.convert("RGB"))))
        except (*BROKEN, MemoryError, RuntimeError) as error:  # torch says so of memory
            sys.stderr.write(printable(f"left out {file}: {error}") + "\n")
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def overlay_names(files: Sequence[Path]) -> list[str]:
    """Return a different name for the overlays of each file."""
    stems = [safe_name(file.stem.lower()) for file in files]
    return [f"{stem}-{stems[:i].count(stem) + 1}" if stem in stems[:i] else stem for i, stem in enumerate(stems)]


def target_of(target: str, subject: Subject) -> str | int:
    """Return the number of a class given by number or name, or the rule as it is."""
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
