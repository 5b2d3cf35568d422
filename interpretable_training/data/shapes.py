"""Generated shapes: one labeled object per image, with its mask and box, on request with a shortcut."""

from collections.abc import Mapping
from typing import Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

from .base import SeededDataModule, at_least, seeded_generator
from .drawing import SHAPES
from .scenes import LUMA, draw_scenes, render
from .shortcuts import plant, side_of_mark

CHUNK = 252  # images per generator; a multiple of the six classes keeps every beginning of a split balanced
MEAN = (0.467, 0.467, 0.467)  # measured; the channels are drawn alike
STD = (0.223, 0.223, 0.223)
PIXELS = 2**20  # rendered at once: what stays in the cache is drawn faster


class Shapes(Dataset):
    """Images and targets held in memory, normalized when read; annotated ones are dicts."""

    def __init__(self, tensors: Mapping[str, Tensor], mean: tuple[float, ...], std: tuple[float, ...]) -> None:
        self.tensors = dict(tensors)
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.tensors["target"])

    def __getitem__(self, index: int) -> tuple[Tensor, int] | dict[str, Tensor | int]:
        item: dict[str, Tensor] = {name: values[index] for name, values in self.tensors.items()}
        image, target = (item["image"] / 255 - self.mean) / self.std, int(item["target"])
        return {**item, "image": image, "target": target} if "mask" in item else (image, target)


class ShapesDataModule(SeededDataModule):
    """Draw six shapes among distractors on textured backgrounds, in memory.

    >>> data = ShapesDataModule(image_size=16, n_train=12, n_val=12, n_test=12, batch_size=4, annotations=True)
    >>> data.setup("fit")
    >>> {name: tuple(values.shape) for name, values in next(iter(data.train_dataloader())).items()}
    {'image': (4, 3, 16, 16), 'target': (4,), 'mask': (4, 16, 16), 'boxes': (4, 1, 4)}

    Each image holds one circle, square, triangle, star, cross or ring; color, place, scale, rotation and
    background do not depend on the class. Image i of a split depends on `seed`, `image_size` and i alone.

    Args:
        image_size: Side of the images, or height and width; 16 or more.
        channels: 3, or 1 for the luma of the same pictures.
        n_train: Number of training images.
        n_val: Number of validation images.
        n_test: Number of test images.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the pictures and of the order of training.
        annotations: Whether items are dicts instead of pairs: `image`, `target`, `mask` (H, W), `boxes`
            (1, 4) in pixels and, with a shortcut, `shortcut_mask` (H, W).
        shortcut: Share of the training images with a small mark, apart from the object, that names the class.
        shortcut_val: Marks of validation and test images: "same" as in training, "none", or "swapped", the
            same share with the mark of a wrong class.
    """

    num_classes = len(SHAPES)

    def __init__(
        self,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        n_train: int = 6000,
        n_val: int = 1000,
        n_test: int = 1000,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        annotations: bool = False,
        shortcut: float = 0.0,
        shortcut_val: Literal["same", "none", "swapped"] = "same",
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        at_least(16, image_size=min(height, width))
        at_least(1, n_train=n_train, n_val=n_val, n_test=n_test)
        if channels not in (1, 3):
            raise ValueError(f"expected channels 1 (gray) or 3 (color), got {channels}; pass channels=1 or channels=3.")
        if not 0 <= shortcut <= 1:
            raise ValueError(
                f"expected shortcut as a share of images between 0 and 1, got {shortcut}; "
                "pass 0.0 for no shortcut or 1.0 for one in every image."
            )
        if shortcut_val not in ("same", "none", "swapped"):
            raise ValueError(
                f"expected shortcut_val 'same', 'none' or 'swapped', got {shortcut_val!r}; pass one of them."
            )
        self.size, self.channels = (height, width), channels
        self.counts = {"train": n_train, "val": n_val, "test": n_test}
        self.annotations, self.shortcut, self.shortcut_val = annotations, shortcut, shortcut_val
        self.class_names = list(SHAPES)
        self.mean, self.std = (MEAN, STD) if channels == 3 else (MEAN[:1], STD[:1])

    def setup(self, stage: str | None = None) -> None:
        for split in self.missing(stage):
            self.splits[split] = self.generate(split)

    def generate(self, split: str) -> Shapes:
        """Draw the images of one split."""
        chunks = [self.draw_chunk(split, start) for start in range(0, self.counts[split], CHUNK)]
        return Shapes({name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}, self.mean, self.std)

    def draw_chunk(self, split: str, start: int) -> dict[str, Tensor]:
        """Draw up to CHUNK images; random numbers always for CHUNK, so that counts change no image."""
        n = min(CHUNK, self.counts[split] - start)
        room = side_of_mark(self.size) + 1
        scene = draw_scenes(CHUNK, self.size, room, seeded_generator(self.seed, split, start, "scene"))[:n]
        step = max(1, PIXELS // (self.size[0] * self.size[1]))
        pictures, masks = zip(*(render(scene[i : i + step]) for i in range(0, n, step)))
        images, mask = torch.cat(pictures), torch.cat(masks)
        boxes = masks_to_boxes(mask) + torch.tensor([0, 0, 1, 1])  # x2 and y2 just outside
        share = self.shortcut if split == "train" or self.shortcut_val != "none" else 0.0
        wrong = split != "train" and self.shortcut_val == "swapped"
        generator = seeded_generator(self.seed, split, start, "shortcut")
        marks = plant(images, scene.label, boxes, share, wrong, generator, CHUNK)
        if self.channels == 1:
            images = torch.einsum("nchw,c->nhw", images.float(), LUMA).round().byte()[:, None]
        drawn = {"image": images, "target": scene.label}
        if self.annotations:
            drawn |= {"mask": mask, "boxes": boxes[:, None]}
        if self.annotations and self.shortcut > 0:
            drawn["shortcut_mask"] = marks
        return drawn
