"""Handwritten digits: the 1797 real images of 8 x 8 pixels that come with scikit-learn, on request as decoy digits.

Decoy digits have a gray patch in a corner that names the class, as the decoy MNIST of Ross et al., IJCAI 2017,
https://arxiv.org/abs/1703.03717.

    gray = (255 - 25 y) / 255    (1)

y: class that the patch names.
Differs from the paper: a patch takes a quarter of the side instead of a seventh, and other images have no patch, where
the paper draws the gray of test images at random.
"""

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import Dataset, TensorDataset
from torchvision.ops import masks_to_boxes

from .base import SPLITS, SeededDataModule, at_least, seeded_generator
from .shortcuts import CueSplit, check_cues, check_repeats, draw_cues, repeat_rows

INK = 0.25  # a pixel belongs to the digit from here on


class TensorRows(Dataset):
    """Dicts with one row of each tensor."""

    def __init__(self, **tensors: Tensor) -> None:
        self.tensors = tensors

    def __len__(self) -> int:
        return len(self.tensors["target"])

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return {name: values[index] for name, values in self.tensors.items()}


class DigitsDataModule(SeededDataModule):
    """Load ten digits in gray, of every class 70 % for training, 15 % for validation and 15 % for testing.

    >>> data = DigitsDataModule(image_size=16)
    >>> data.setup("validate")
    >>> next(iter(data.val_dataloader()))[0].shape
    torch.Size([64, 1, 16, 16])

    Args:
        image_size: Side of the images, which are enlarged bilinearly.
        batch_size: Images per batch.
        num_workers: Processes that load batches.
        seed: Seed of the splits, of the patches and of the order of training.
        margin: Empty border around the digit as a share of the side; 0.125 leaves room for patches.
        annotations: Whether items are dicts instead of pairs: `image`, `target`, `mask` (H, W), `boxes` (1, 4) in
            pixels and, with a shortcut, `shortcut_mask` (H, W), the pixels of the patch, `cue`, its kind (`cue_names`),
            and `group`, target * number of cues + cue (`group_names`).
        shortcut: Share of the training images with a patch of gray in a corner that names the class.
        shortcut_val: Patches of validation and test images: "same" as in training, "none", or "swapped", the
            same share with the gray of a wrong class.
        annotated: Share of the training images with a mask and a box; the masks of the others are empty, their boxes
            are NaN.
        repeat_annotated: How often each annotated training image is in an epoch, for training methods that need
            annotations; the epoch becomes longer.
    """

    num_classes = 10
    mean = (0.305,)
    std = (0.324,)

    def __init__(
        self,
        image_size: int = 32,
        batch_size: int = 64,
        num_workers: int = 0,
        seed: int = 0,
        margin: float = 0.0,
        annotations: bool = False,
        shortcut: float = 0.0,
        shortcut_val: CueSplit = "same",
        annotated: float = 1.0,
        repeat_annotated: int = 1,
    ) -> None:
        super().__init__(batch_size, num_workers, seed)
        at_least(8, image_size=image_size)
        check_cues(shortcut, shortcut_val, annotated)
        check_repeats(repeat_annotated, annotations)
        if not 0 <= margin <= 0.25:
            raise ValueError(f"expected margin as a share of the side between 0 and 0.25, got {margin}; pass less.")
        self.image_size, self.margin, self.annotations = image_size, margin, annotations
        self.annotated, self.repeat_annotated = annotated, repeat_annotated
        self.shortcut, self.shortcut_val = shortcut, shortcut_val
        self.class_names = [str(digit) for digit in range(10)]
        self.cue_names = [*(f"gray of {name}" for name in self.class_names), "none"]

    def setup(self, stage: str | None = None) -> None:
        missing = self.missing(stage)
        if not missing:
            return
        images, target = read_digits(self.image_size, round(self.margin * self.image_size))
        for split, rows in zip(SPLITS, split_rows(target, self.seed)):
            if split in missing:
                self.splits[split] = self.make(split, images[rows], target[rows])

    def make(self, split: str, images: Tensor, target: Tensor) -> Dataset:
        """Return the data set of a split, with its patches."""
        share = self.shortcut if split == "train" or self.shortcut_val != "none" else 0.0
        wrong = split != "train" and self.shortcut_val == "swapped"
        generator = seeded_generator(self.seed, split, "shortcut")
        cue = draw_cues(target, self.num_classes, share, wrong, generator)
        mask = images[:, 0] > INK
        patches = paste_patches(images, cue, torch.randint(4, cue.shape, generator=generator))
        normalized = (images - self.mean[0]) / self.std[0]
        if not self.annotations:
            return TensorDataset(normalized, target)
        mask &= ~patches  # they lie in front
        boxes = (masks_to_boxes(mask) + torch.tensor([0, 0, 1, 1]))[:, None]  # x2 and y2 just outside
        hidden = torch.rand(cue.shape, generator=seeded_generator(self.seed, split, "annotated")) >= self.annotated
        hidden = (hidden & (split == "train"))[:, None, None]
        items = {"image": normalized, "target": target, "mask": mask & ~hidden}
        items["boxes"] = boxes.masked_fill(hidden, torch.nan)
        if self.shortcut > 0:
            items |= {"shortcut_mask": patches, "cue": cue, "group": target * len(self.cue_names) + cue}
        return TensorRows(**repeat_rows(items, self.repeat_annotated if split == "train" else 1))


def paste_patches(images: Tensor, cue: Tensor, corner: Tensor) -> Tensor:
    """Draw the patch of each cue onto images (N, 1, H, W) in place, and return its pixels (N, H, W).

    Args:
        images: Pictures in [0, 1].
        cue: Class that the patch names (N,), or 10 for no patch.
        corner: Corner of each (N,), from 0 to 3.
    """
    H, W = images.shape[2:]
    side = H // 4
    y, x = torch.arange(H)[:, None], torch.arange(W)
    top, left = (corner < 2)[:, None, None], (corner % 2 == 0)[:, None, None]
    down = torch.where(top, y, H - 1 - y)  # (N, H, 1), distance from the corner's edge
    right = torch.where(left, x, W - 1 - x)  # (N, 1, W)
    patches = (down < side) & (right < side) & (cue < 10)[:, None, None]
    gray = (255 - 25 * cue) / 255  # (1)
    images[:, 0] = torch.where(patches, gray[:, None, None], images[:, 0])
    return patches


def read_digits(size: int, margin: int = 0) -> tuple[Tensor, Tensor]:
    """Return images (1797, 1, size, size) in [0, 1], empty at the margin, and their digits (1797,)."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "expected scikit-learn, which holds the digits, got no such package; "
            'run pip install "interpretable-training[data]".'
        ) from error
    digits = load_digits()
    images = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16
    inner = size - 2 * margin
    images = F.interpolate(images, (inner, inner), mode="bilinear", align_corners=False)
    images = F.pad(images, [margin] * 4)
    return images, torch.tensor(digits.target, dtype=torch.int64)


def split_rows(target: Tensor, seed: int) -> list[list[int]]:
    """Return the rows of training, validation and test images; each class is divided in the same proportions."""
    from sklearn.model_selection import train_test_split

    rows, classes = range(len(target)), target.tolist()
    train, rest = train_test_split(rows, train_size=0.7, stratify=classes, random_state=seed)
    val, test = train_test_split(rest, train_size=0.5, stratify=[classes[i] for i in rest], random_state=seed)
    return [train, val, test]
