"""Generated shapes: one labeled object per image, with its mask and box, on request with a shortcut."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.ops import masks_to_boxes

from .base import SeededDataModule, at_least, seeded_generator
from .drawing import SHAPES
from .scenes import LUMA, Scene, draw_scenes, render
from .shortcuts import CueSplit, check_cues, check_repeats, draw_cues, plant, repeat_rows, side_of_mark
from .textures import TEXTURES, draw_textures

CHUNK = 252  # images per generator; a multiple of the six classes keeps every beginning of a split balanced
MEAN = (0.467, 0.467, 0.467)  # measured; the channels are drawn alike
STD = (0.223, 0.223, 0.223)
PIXELS = 2**20  # rendered at once: what stays in the cache is drawn faster


class Shapes(Dataset):
    """Images and targets held in memory, normalized when read; annotated ones are dicts."""

    def __init__(
        self,
        tensors: Mapping[str, Tensor],
        mean: tuple[float, ...],
        std: tuple[float, ...],
        task: str = "classification",
    ) -> None:
        self.tensors, self.task = dict(tensors), task
        self.mean, self.std = torch.tensor(mean)[:, None, None], torch.tensor(std)[:, None, None]

    def __len__(self) -> int:
        return len(self.tensors["target"])

    def __getitem__(self, index: int) -> tuple[Tensor, Any] | dict[str, Tensor | int]:
        item: dict[str, Tensor] = {name: values[index] for name, values in self.tensors.items()}
        image, target = (item["image"] / 255 - self.mean) / self.std, int(item["target"])
        if self.task == "segmentation":
            return image, (1 + target) * item["mask"].long()
        if self.task == "detection":
            return image, {"boxes": item["boxes"], "labels": torch.tensor([1 + target])}
        return {**item, "image": image, "target": target} if "mask" in item else (image, target)


class ShapesDataModule(SeededDataModule):
    """Draw six shapes among distractors on textured backgrounds, in memory.

    >>> data = ShapesDataModule(image_size=16, n_train=12, n_val=12, n_test=12, batch_size=4, annotations=True)
    >>> data.setup("fit")
    >>> {name: tuple(values.shape) for name, values in next(iter(data.train_dataloader())).items()}
    {'image': (4, 3, 16, 16), 'target': (4,), 'mask': (4, 16, 16), 'boxes': (4, 1, 4)}

    Each image holds one circle, square, triangle, star, cross or ring; color, place, scale, rotation and
    background do not depend on the class. Image i of a split depends on `seed`, `image_size` and i alone. On request a
    shortcut names the class: a small mark, or the background, which is one of six photo-like textures then.

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
            (1, 4) in pixels and, with cues, `shortcut_mask` (H, W), the pixels of the cue, `cue`, its kind
            (`cue_names`), and `group`, target * number of cues + cue (`group_names`).
        shortcut: Share of the training images with a cue that names the class. The others have no mark, or a background
            that is drawn at random.
        shortcut_val: Cues of validation and test images: "same" as in training, "none", or "swapped", the
            same share with the cue of a wrong class.
        cue: The shortcut is a small "mark" apart from the object, or the "background".
        annotated: Share of the training images with a mask and a box; the masks of the others are empty, their boxes
            are NaN.
        repeat_annotated: How often each annotated training image is in an epoch, for training methods that need
            annotations; the epoch becomes longer.
        task: The target is the class; or, with the background as class 0, the class of each pixel (H, W) for
            "segmentation", or a dict of `boxes` (1, 4) and `labels` (1,) for "detection".
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
        shortcut_val: CueSplit = "same",
        cue: Literal["mark", "background"] = "mark",
        annotated: float = 1.0,
        repeat_annotated: int = 1,
        task: Literal["classification", "segmentation", "detection"] = "classification",
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        at_least(16, image_size=min(height, width))
        at_least(1, n_train=n_train, n_val=n_val, n_test=n_test)
        if channels not in (1, 3):
            raise ValueError(f"expected channels 1 (gray) or 3 (color), got {channels}; pass channels=1 or channels=3.")
        check_cues(shortcut, shortcut_val, annotated)
        check_repeats(repeat_annotated, annotations)
        if cue not in ("mark", "background"):
            raise ValueError(f"expected cue 'mark' or 'background', got {cue!r}; pass one of them.")
        self.size, self.channels = (height, width), channels
        self.counts = {"train": n_train, "val": n_val, "test": n_test}
        self.annotations, self.annotated, self.repeat_annotated = annotations, annotated, repeat_annotated
        self.shortcut, self.shortcut_val, self.cue = shortcut, shortcut_val, cue
        if task not in ("classification", "segmentation", "detection"):
            raise ValueError(f"expected task 'classification', 'segmentation' or 'detection', got {task!r}.")
        self.task, dense = task, task != "classification"
        if dense and (annotations or shortcut or repeat_annotated > 1):
            raise ValueError(f"expected annotations, shortcuts and repeats with task='classification', got {task!r}.")
        self.class_names = ["background"] * dense + list(SHAPES)
        self.num_classes = len(self.class_names)
        self.cue_names = list(TEXTURES) if cue == "background" else [*(f"mark of {name}" for name in SHAPES), "none"]
        self.mean, self.std = (MEAN, STD) if channels == 3 else (MEAN[:1], STD[:1])

    def setup(self, stage: str | None = None) -> None:
        for split in self.missing(stage):
            self.splits[split] = self.generate(split)

    def generate(self, split: str) -> Shapes:
        """Draw the images of one split."""
        chunks = [self.draw_chunk(split, start) for start in range(0, self.counts[split], CHUNK)]
        drawn = {name: torch.cat([chunk[name] for chunk in chunks]) for name in chunks[0]}
        drawn = repeat_rows(drawn, self.repeat_annotated if split == "train" else 1)
        return Shapes(drawn, self.mean, self.std, self.task)

    def draw_chunk(self, split: str, start: int) -> dict[str, Tensor]:
        """Draw up to CHUNK images; random numbers always for CHUNK, so that counts change no image."""
        n = min(CHUNK, self.counts[split] - start)
        scene = draw_scenes(CHUNK, self.size, side_of_mark(self.size) + 1, self.generator(split, start, "scene"))[:n]
        share = self.shortcut if split == "train" or self.shortcut_val != "none" else 0.0
        wrong = split != "train" and self.shortcut_val == "swapped"
        generator = self.generator(split, start, "shortcut")
        cue = draw_cues(scene.label, len(SHAPES), share, wrong, generator, CHUNK)
        if self.cue == "background":
            chance = torch.randint(len(TEXTURES), (CHUNK,), generator=generator)[:n]
            cue = cue.where(cue < len(TEXTURES), chance)
        images, mask = self.render_in_parts(scene, cue, split, start)
        boxes = masks_to_boxes(mask) + torch.tensor([0, 0, 1, 1])  # x2 and y2 just outside
        planted = ~mask if self.cue == "background" else plant(images, cue, boxes, generator, CHUNK)
        if self.channels == 1:
            images = torch.einsum("nchw,c->nhw", images.float(), LUMA).round().byte()[:, None]
        drawn = {"image": images, "target": scene.label}
        if self.task != "classification":
            drawn |= {"mask": mask, "boxes": boxes[:, None]}
        if self.annotations:
            hidden = torch.rand(CHUNK, generator=self.generator(split, start, "annotated"))[:n] >= self.annotated
            hidden &= torch.tensor(split == "train")
            mask = mask & ~hidden[:, None, None]
            drawn |= {"mask": mask, "boxes": boxes[:, None].masked_fill(hidden[:, None, None], torch.nan)}
        if self.annotations and (self.shortcut > 0 or self.cue == "background"):
            group = scene.label * len(self.cue_names) + cue
            drawn |= {"shortcut_mask": planted, "cue": cue, "group": group}
        return drawn

    def render_in_parts(self, scene: Scene, cue: Tensor, split: str, start: int) -> tuple[Tensor, Tensor]:
        """Return pictures and masks, a few at a time; the cue chooses the texture behind."""
        step, parts = max(1, PIXELS // (self.size[0] * self.size[1])), []
        for i in range(0, len(scene), step):
            part, kinds = scene[i : i + step], cue[i : i + step]
            if self.cue == "background":
                behind = draw_textures(kinds, step, self.size, self.generator(split, start + i, "textures"))
                part = replace(part, background=behind)
            parts.append(render(part))
        pictures, masks = zip(*parts)
        return torch.cat(pictures), torch.cat(masks)

    def generator(self, split: str, start: int, purpose: str) -> torch.Generator:
        """Return the generator of one purpose for the images of a chunk."""
        return seeded_generator(self.seed, split, start, purpose)
