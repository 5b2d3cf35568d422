"""Pictures in files, read on access, with their annotations."""

import os
import random
import struct
import warnings
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms.v2 import functional as TF
from torchvision.tv_tensors import BoundingBoxes, Mask

from .base import seed_of

# Errors that PIL and the readers of annotations raise for broken files.
BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)
IN_A_ROW = 100  # unreadable files, after which the reason is not the files
Transform = Callable[..., Any]


class Pictures(Dataset):
    """Items (image, target), or dicts with `image`, `target` and the other entries of `facts`.

    A file that cannot be read is replaced by the next readable one, so that every process keeps its number of items.
    Random changes of an item depend on the seed, the epoch and its index, in every worker.

    Args:
        root: Folder that the names of the files are relative to.
        files: Names of the files.
        target: Class of each.
        transform: Function from a picture, or with annotations from a pair, to the same of the network's size.
        mean: Mean of each channel; one channel makes the pictures gray.
        std: Standard deviation of each channel.
        seed: Seed of random changes.
        strict: Whether a file that cannot be read is an error.
        foreign: Whether the transform may draw from the generators of numpy and python, besides torch's.
    """

    def __init__(
        self,
        root: Path,
        files: Sequence[str],
        target: Sequence[int],
        transform: Transform,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        seed: int = 0,
        strict: bool = False,
        foreign: bool = False,
    ) -> None:
        # Arrays, because workers would copy a list of a million objects as they count its references.
        self.root, self.files = root, np.array([os.fsencode(name) for name in files])
        self.target = np.array(target, dtype=np.int64)
        self.transform, self.seed, self.strict, self.foreign = transform, seed, strict, foreign
        self.mean, self.std = list(mean), list(std)
        self.first_epoch, self.epoch = 0, torch.zeros((), dtype=torch.int64).share_memory_()  # workers see it change
        self.unreadable = torch.zeros(len(self.files), dtype=torch.bool).share_memory_()

    def __len__(self) -> int:
        return len(self.files)

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch that begins."""
        self.epoch.fill_(max(epoch, self.first_epoch))

    def file(self, index: int) -> str:
        """Return the name of a file."""
        return os.fsdecode(self.files[index].item())

    def read(self, index: int) -> Image.Image:
        """Return the picture as it is on the disk, in color or gray."""
        return read_picture(self.root / self.file(index), "RGB" if len(self.mean) == 3 else "L")

    def facts(self, index: int) -> dict[str, Any]:
        """Return the target and annotations of a picture.

        Annotated pictures have `target` and `boxes` (n, 4), maybe `box_target` (n,), and maybe `mask` (H, W) of uint8:
        1 + class of each pixel, 0 outside objects. Items hold further entries as they are.
        """
        return {"target": int(self.target[index])}

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | dict[str, Any]:
        index = range(len(self))[index]  # an IndexError ends what iterates
        picture, facts = self.readable(index)
        with own_random_numbers(seed_of(self.seed, int(self.epoch), index), self.foreign):
            if "boxes" not in facts:
                return self.normalized(self.transform(picture)), facts["target"]
            boxes = BoundingBoxes(facts["boxes"], format="XYXY", canvas_size=TF.get_size(picture))
            moved = {"boxes": boxes, **({"mask": Mask(facts["mask"])} if "mask" in facts else {})}
            picture, moved = self.transform(picture, moved)
        return annotated(self.normalized(picture), facts, moved)

    def readable(self, index: int) -> tuple[Image.Image, dict[str, Any]]:
        """Return the picture of an index, or of the next one that can be read."""
        for step in range(min(len(self), IN_A_ROW)):
            row = (index + step) % len(self)
            try:
                return self.read(row), self.facts(row)
            except BROKEN as error:
                reason = f"got {self.file(row)!r} ({type(error).__name__}: {error})"
                if self.strict:
                    raise ValueError(f"expected a picture that can be read, {reason}; mend or remove it.") from error
                if not self.unreadable[row]:
                    self.unreadable[row] = True
                    message = f"expected a picture that can be read, {reason}; the next one replaces it."
                    warnings.warn(message, stacklevel=2)
        raise RuntimeError(
            f"expected a picture that can be read among {step + 1} in a row, {reason}; check {self.root}."
        )

    def normalized(self, picture: Any) -> Tensor:
        """Return the result of a transform as a tensor (C, H, W); floating numbers stay as they are."""
        image = TF.to_image(picture) if isinstance(picture, Image.Image) else picture
        if image.dtype == torch.uint8:
            image = TF.normalize(TF.to_dtype(image, torch.float32, scale=True), self.mean, self.std)
        return image.as_subclass(Tensor)


def annotated(image: Tensor, facts: dict[str, Any], moved: dict[str, Tensor]) -> dict[str, Any]:
    """Return an item with the annotations as the transform left them, without boxes outside the image."""
    height, width = image.shape[-2:]
    boxes = moved["boxes"].as_subclass(Tensor).float()
    boxes = boxes.clamp(min=0).minimum(torch.tensor([width, height, width, height]))
    seen = (boxes[:, 2:] > boxes[:, :2]).all(1)
    per_box_or_pixel = ("boxes", "box_target", "mask")
    item = {"image": image, **{name: fact for name, fact in facts.items() if name not in per_box_or_pixel}}
    item["boxes"] = boxes[seen]
    if "box_target" in facts:
        item["box_target"] = facts["box_target"][seen]
    if "mask" in moved:
        mask = moved["mask"].as_subclass(Tensor)
        item |= {"mask": mask > 0, "mask_target": mask.long() - 1}
    return item


def read_picture(path: Path, mode: str) -> Image.Image:
    """Return a picture in color ("RGB") or gray ("L")."""
    with Image.open(path) as picture:
        if picture.mode.startswith("I"):  # 16 bits, which PIL would cut off above 255
            return Image.fromarray((np.asarray(picture).clip(0, 65535) // 257).astype(np.uint8)).convert(mode)
        return picture.convert(mode)


@contextmanager
def own_random_numbers(seed: int, foreign: bool) -> Iterator[None]:
    """Seed the global generators inside of the block, and restore their states afterwards.

    That is torch's generator of the CPU and, if `foreign`, those of numpy and python, which take far longer.
    """
    ours = torch.get_rng_state()
    theirs = (random.getstate(), np.random.get_state()) if foreign else None
    torch.default_generator.manual_seed(seed)
    if theirs is not None:
        random.seed(seed)
        np.random.seed(seed % 2**32)
    try:
        yield
    finally:
        torch.set_rng_state(ours)
        if theirs is not None:
            random.setstate(theirs[0])
            np.random.set_state(theirs[1])
