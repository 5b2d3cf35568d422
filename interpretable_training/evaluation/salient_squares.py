"""Squares of images: those that a map marks, what they show, and how much the network relies on them.

    b(v) = mean of relu(S) in the square of side r around v                                         (1)
    v[1] = argmax b,  v[j] = argmax of b at least r away from v[1] ... v[j - 1] along an axis       (2)
    c(v) = mean and standard deviation of each channel of x and F in the square around v            (3)
    z(v) = W (c(v) - mean of c) / std of c                                                          (4)
    d(v) = p(x) - p(x with the square around v in the mean color of the ring around it)             (5)

S: map of an image x. F: features of the layer with the finest grid. W: the first principal components of
(c - mean) / std in a sample of squares. p: probability of the explained class. z has no coordinates: equal content at
two places has equal z.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from interpretable_training.attribution.core.auto_layer import scale_layers
from interpretable_training.attribution.core.base import full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.capture import capture
from interpretable_training.attribution.core.prepared_model import PreparedModel

SIDE, SMALLEST = 1 / 8, 3  # of a square: share of the image's shorter side, and pixels
STEP = 4  # squares per side: how densely they lie
DIMENSIONS = 32  # of z
SAMPLE = 64  # images in the sample of squares


def side_of(size: tuple[int, int]) -> int:
    """Return the side of the squares for images of a size, in pixels.

    >>> side_of((64, 96))
    8
    """
    return min(*size, max(SMALLEST, round(SIDE * min(size))))


def highest_squares(saliency: Tensor, side: int, count: int) -> tuple[Tensor, Tensor]:
    """Return the corners (n, count, 2), row and column, and the means (n, count) of the highest squares of maps.

    >>> S = torch.zeros(1, 9, 9)
    >>> S[0, 2:5, 5:8] = 1
    >>> highest_squares(S, side=3, count=1)[0].tolist()
    [[[2, 5]]]

    Args:
        saliency: maps (n, H, W).
        side: of the squares, in pixels.
        count: how many squares of each map; the mean of those that do not fit beside the others is -1.
    """
    mass = saliency.nan_to_num(0, 0, 0).clamp(min=0)
    b = F.avg_pool2d(mass[:, None], side, 1)[:, 0]  # (1), by the upper left corner
    rows, columns = (torch.arange(length, device=b.device) for length in b.shape[1:])
    corners, means = [], []
    for _ in range(count):
        mean, at = b.flatten(1).max(1)  # (2)
        y, x = at // b.shape[2], at % b.shape[2]
        near = ((rows - y[:, None]).abs() < side)[:, :, None] & ((columns - x[:, None]).abs() < side)[:, None]
        b = b.masked_fill(near, -1)
        corners.append(torch.stack([y, x], 1))
        means.append(mean)
    return torch.stack(corners, 1), torch.stack(means, 1)


def fill_squares(images: Tensor, corners: Tensor, side: int) -> Tensor:
    """Return images (n, C, H, W) with one square of each in the mean color of the ring around it, half a side wide.

    >>> fill_squares(torch.eye(6)[None, None], torch.tensor([[2, 2]]), side=2)[0, 0, 2].tolist()
    [0.0, 0.0, 0.1666666716337204, 0.1666666716337204, 0.0, 0.0]
    """
    width = max(1, side // 2)
    size, corners = (images.shape[2], images.shape[3]), corners.to(images.device)
    inner, outer = (square_pixels(corners - w, side + 2 * w, size) for w in (0, width))
    ring = (outer & ~inner)[:, None].to(images.dtype)
    color = (images * ring).sum((2, 3)) / ring.sum((2, 3)).clamp(min=1)
    return torch.where(inner[:, None], color[:, :, None, None], images)


def square_pixels(corners: Tensor, side: int, size: tuple[int, int]) -> Tensor:
    """Return the pixels (n, H, W) of one square in each image, given by its upper left corner, row and column (n, 2).

    >>> square_pixels(torch.tensor([[0, 1]]), side=2, size=(2, 4)).int().tolist()
    [[[0, 1, 1, 0], [0, 1, 1, 0]]]
    """
    y, x = (
        (at >= start[:, None]) & (at < start[:, None] + side)
        for at, start in zip((torch.arange(length, device=corners.device) for length in size), corners.unbind(1))
    )
    return y[:, :, None] & x[:, None, :]


def probabilities(prepared: PreparedModel, images: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
    """Return the probability of the target and the predicted class of each image, (n,) each on the CPU, in one pass."""
    parts: list[tuple[Tensor, Tensor]] = []

    def run(rows: slice) -> None:
        with torch.no_grad():
            output = prepared.run_fast(images[rows])
            p = full(prepared.score_in(output, target[rows], "prob"))
            parts.append((p.cpu(), prepared.resolve_in(output, "pred").cpu()))  # type: ignore[union-attr]

    in_chunks(run, len(images), None, images)
    p, pred = (torch.cat(column) for column in zip(*parts))
    return p, pred


def drops(prepared: PreparedModel, images: Tensor, target: Tensor, corners: Tensor, side: int, clean: Tensor) -> Tensor:
    """Return (5) of one square in each image, (n,) on the CPU, in one pass; `clean` is p(x)."""
    parts: list[Tensor] = []

    def run(rows: slice) -> None:
        part = fill_squares(images[rows], corners[rows], side)
        parts.append(clean[rows] - probabilities_of(prepared, part, target[rows]))  # (5)

    in_chunks(run, len(images), None, images)
    return torch.cat(parts)


def probabilities_of(prepared: PreparedModel, images: Tensor, target: Tensor) -> Tensor:
    """Return the probability of the target of each image (n,), on the CPU."""
    with torch.no_grad():
        return full(prepared.score_in(prepared.run_fast(images), target, "prob")).cpu()


@dataclass(frozen=True)
class Lattice:
    """Corners of the squares in which content is compared, for images of one size.

    >>> Lattice((64, 64), 8).shape
    (29, 29)
    """

    size: tuple[int, int]
    side: int

    @property
    def step(self) -> int:
        return max(1, self.side // STEP)

    @property
    def shape(self) -> tuple[int, int]:
        """Return the number of rows and columns of squares."""
        H, W = self.size
        return (H - self.side) // self.step + 1, (W - self.side) // self.step + 1

    def cell(self, corners: Tensor) -> Tensor:
        """Return the number of the square nearest to each corner (..., 2)."""
        last = torch.tensor(self.shape, device=corners.device) - 1
        y, x = ((corners + self.step // 2) // self.step).minimum(last).unbind(-1)
        return y * self.shape[1] + x

    def corner(self, cells: Tensor) -> Tensor:
        """Return the corner (..., 2) of squares by their number."""
        return torch.stack([cells // self.shape[1], cells % self.shape[1]], -1) * self.step

    def contents(self, volumes: list[Tensor]) -> Tensor:
        """Return (3) of all squares, (n, squares, D), for features (n, K, h, w) over the images."""
        parts = []
        for volume in volumes:
            fine = volume
            if tuple(volume.shape[2:]) != self.size:
                fine = F.interpolate(volume, self.size, mode="nearest")
            mean, square = (F.avg_pool2d(f, self.side, self.step) for f in (fine, fine**2))
            parts += [mean, (square - mean**2).clamp(min=0).sqrt()]  # (3)
        return torch.cat(parts, 1).flatten(2).transpose(1, 2)


def read_contents(prepared: PreparedModel, images: Tensor, lattice: Lattice) -> Tensor:
    """Return (4) of all squares of images (n, C, H, W), (n, squares, dimensions) on the CPU."""
    layer = scale_layers(prepared, images)[0].name
    sample = images[:: max(1, len(images) // SAMPLE)][:SAMPLE]

    def read(x: Tensor) -> Tensor:
        with torch.no_grad():
            A = capture(prepared, x, [layer], 0, gradient=False).A[layer]
        return lattice.contents([full(x), full(A.detach())])

    c = torch.cat([read(part) for part in sample.split(8)]).flatten(0, 1)
    mean, std = c.mean(0), c.std(0, correction=0)
    std = torch.where(std > 1e-6 * std.amax(), std, torch.inf)
    c = (c - mean) / std
    W = torch.linalg.eigh((c.T @ c).double()).eigenvectors.flip(1)[:, :DIMENSIONS].to(c)
    parts: list[Tensor] = []
    in_chunks(
        lambda rows: parts.append((((read(images[rows]) - mean) / std) @ W).cpu()), len(images), None, images
    )  # (4)
    return torch.cat(parts)
