"""Hyper Expected Grad-CAM. Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023.

The thesis describes four stages in words; this is one way to compute them. E(z, l): Expected Grad-CAM
of input z at layer l; n: range normalization; layers 1 to T from fine to coarse, T that of E.

    m      = n(up(E(x, T))), a = number of pixels with m >= threshold                              (1)
    K[0]   = IR round(sqrt(a) / IR), from IR to the image; IR = round(H / h)                       (2)
    stages = min(most, 1 + floor(log2(K[0] / IR)));  K[s] = IR round(K[0] / 2^s / IR), at least IR  (3)
    M[s]   = n(sum over blocks b of side K[s] of 1[b] up(E(x inside b, T)))                        (4)
    mu[t]  = n(E(x, t)), h[t] = mu[t] - up(down(mu[t])), down: to the size of mu[t + 1]            (5)
    r[T]   = mu[T], r[t] = relu(up(r[t + 1]) + h[t]), R = n(up(r[1]))                              (6)
    P      = n(n(sum over s of M[s]) product over s of ((1 - beta) + beta M[s]))                   (7)
    S      = n(P R)                                                                                (8)

x: image (C, H, W). "x inside b" is the image with zeros, the mean color, outside of block b; or block b alone, enlarged
in proportion as far as it fits into the image. Every input has the image's size, as the thesis asks; it does not say
whether its "upstage" enlarges. beta: its "bidirectional modulation" of 0.95; no single stage can erase a pixel.
"""

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .core.auto_layer import scale_layers
from .core.base import Attribution
from .core.baselines import features
from .core.map_operations import blur, normalize, resize
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Target, take
from .expected_grad_cam import ExpectedGradCAM, one_class
from .expected_grad_cam_plusplus import ExpectedGradCAMPlusPlus


class HyperStages(NamedTuple):
    """Results of each stage. first: m of (1). blocks: sides K[s] of each image. supermaps: M[s] of each image.

    layers: names from fine to coarse; details: h of (5), coarsest layer's mu last. frequency: R. accumulated: P.
    """

    first: Tensor
    blocks: list[list[tuple[int, ...]]]
    supermaps: list[Tensor]
    layers: list[str]
    details: list[Tensor]
    frequency: Tensor
    accumulated: Tensor
    saliency: Tensor


@dataclass(frozen=True)
class HyperExpectedGradCAM(Attribution):
    """Combine Expected Grad-CAM of the image, of blocks of it in several sizes, and of several layers.

    >>> cam = ExpectedGradCAM(baselines=torch.zeros(2, 3, 16, 16), n=4)
    >>> HyperExpectedGradCAM(cam, local_draws=2)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        cam: Expected Grad-CAM (or ++) of (1), of one layer; blocks and other layers use the same baselines, and their
            cached features if `cache_baselines` got all these layers.
        local_draws: draws for each block.
        threshold: of (1).
        most: largest number of stages.
        beta: of (7); 1 is the plain product.
        layers: "auto", the last layer of each grid size up to that of `cam`, or names from fine to coarse.
        fill: with neighborhood="mask", the image outside of a block is "zero" or its "blur".
        neighborhood: input of a block in (4): the image with a "mask" around the block, or a "zoom" that enlarges the
            block, with zeros beyond the border of the image and in the rest of the input.
    """

    cam: ExpectedGradCAM | ExpectedGradCAMPlusPlus
    local_draws: int = 10
    threshold: float = 0.5
    most: int = 3
    beta: float = 0.95
    layers: str | Sequence[str] = "auto"
    fill: Literal["zero", "blur"] = "zero"
    neighborhood: Literal["mask", "zoom"] = "mask"

    def __post_init__(self) -> None:
        super().__post_init__()
        if not isinstance(self.cam, (ExpectedGradCAM, ExpectedGradCAMPlusPlus)):
            raise TypeError(f"expected an ExpectedGradCAM or ExpectedGradCAMPlusPlus, got {type(self.cam).__name__}.")
        for name in ("most", "local_draws"):
            if not isinstance(number := getattr(self, name), int) or number < 1:
                raise ValueError(f"expected {name} of at least 1, got {number}.")
        for name in ("threshold", "beta"):
            if not 0 <= (share := getattr(self, name)) <= 1:
                raise ValueError(f"expected {name} from 0 to 1, got {share}.")

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        return self._stages(prepared, images, target).saliency

    def stages(self, model: nn.Module, images: Tensor, target: Target = None, *, output: Output = None) -> HyperStages:
        """Return the intermediate results; the map is the last of them."""
        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            return self._stages(prepared, images, one_class(prepared, images, target))

    def _stages(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> HyperStages:
        names = self._names(prepared, images, target)
        maps = [self._explain(prepared, images, target, name) for name in names]
        grids = [tuple(S.shape[1:]) for S in maps]
        if any(math.prod(fine) < math.prod(coarse) for fine, coarse in itertools.pairwise(grids)):
            raise ValueError(f"expected layers from fine to coarse, {names[-1]!r} of cam last, got {names} of {grids}.")
        size = images.shape[2:]
        m = normalize(resize(maps[-1], size))  # (1)
        ratio = [max(1, round(S / s)) for S, s in zip(size, maps[-1].shape[1:])]
        blocks = [self._blocks(one, ratio) for one in m]
        supermaps = []
        for i, sides in enumerate(blocks):
            one = slice(i, i + 1)
            stages = [self._supermap(prepared, images[one], take(target, one), names[-1], K) for K in sides]
            supermaps.append(normalize(torch.stack(stages)))  # (4)
        details, R = _frequency([normalize(S) for S in maps], size)
        P = torch.stack([normalize(self._accumulate(M)[None])[0] for M in supermaps])
        return HyperStages(m, blocks, supermaps, names, details, R, P, normalize(P * R))  # (8)

    def _names(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> list[str]:
        coarsest = self.cam.layers(prepared, images, target)
        if len(coarsest) > 1:
            raise ValueError(f"expected a cam of one layer, got {coarsest}.")
        if self.layers != "auto":
            finer = [self.layers] if isinstance(self.layers, str) else list(self.layers)
        else:
            cells = features(prepared, images[:1], take(target, slice(1)), coarsest[0])[0, 0].numel()
            scales = scale_layers(prepared, images, target)
            finer = [c.name for c in scales if math.prod(c.grid.shape) > cells]
        return [name for name in finer if name != coarsest[0]] + coarsest

    def _explain(
        self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str, n: int | None = None
    ) -> Tensor:
        """Return the map of Expected Grad-CAM at the layer's resolution, not normalized."""
        cam = self.cam if n is None else replace(self.cam, n=n)
        S = cam.layer_map(prepared, images, target, layer)
        return S.relu() if cam.relu else S

    def _blocks(self, m: Tensor, ratio: Sequence[int]) -> list[tuple[int, ...]]:
        """Return the sides K[s] of the blocks of one image for each stage."""
        side = int((m >= self.threshold).sum()) ** (1 / m.ndim)
        first = [min(max(1, round(side / r)), max(1, S // r)) for r, S in zip(ratio, m.shape)]  # (2), in units of IR
        stages = min(self.most, 1 + int(math.log2(max(first))))
        return [tuple(r * max(1, round(k / 2**s)) for r, k in zip(ratio, first)) for s in range(stages)]  # (3)

    def _supermap(
        self, prepared: PreparedModel, image: Tensor, target: Resolved, layer: str, sides: Sequence[int]
    ) -> Tensor:
        """Return the maps of all blocks of one image (1, C, ...), each inside of its block, (*spatial)."""
        size, zoom = image.shape[2:], self.neighborhood == "zoom"
        if zoom:
            large = _enlarged(sides, size)
            room = [n for L, S in zip(reversed(large), reversed(size)) for n in (0, S - L)]
            inputs = F.pad(resize(_cut(image, sides), large), room)
        else:
            inside = _tiles(image, sides)
            outside = blur(image) if self.fill == "blur" else torch.zeros_like(image)
            inputs = torch.where(inside[:, None], image, outside)
        many = target.expand(len(inputs)) if isinstance(target, Tensor) else target
        maps = resize(self._explain(prepared, inputs, many, layer, self.local_draws), size)
        if zoom:
            enlarged = maps[tuple(slice(L) for L in (len(maps), *large))]
            return _paste(_shrink(enlarged, sides), size)
        return (maps * inside).sum(0)

    def _accumulate(self, M: Tensor) -> Tensor:
        """Return (7) of one image's supermaps (stages, *spatial), before the outer n."""
        up = normalize(M.flip(0).sum(0)[None])[0]
        return up * ((1 - self.beta) + self.beta * M).prod(0)


def _tiles(image: Tensor, sides: Sequence[int]) -> Tensor:
    """Return which pixels each block covers, (blocks, *spatial); the last blocks are cut at the border."""
    number = torch.zeros(image.shape[2:], dtype=torch.long, device=image.device)
    for axis, (S, K) in enumerate(zip(image.shape[2:], sides)):
        along = torch.arange(S, device=image.device) // K
        number = number * (-(-S // K)) + along.reshape(-1, *[1] * (image.ndim - 3 - axis))
    return number == torch.arange(int(number.max()) + 1, device=image.device).reshape(-1, *[1] * number.ndim)


def _cut(image: Tensor, sides: Sequence[int]) -> Tensor:
    """Return the blocks of an image (1, C, *spatial), (blocks, C, *sides), in the order of `_tiles`."""
    missing = [-S % K for S, K in zip(image.shape[2:], sides)]
    blocks = F.pad(image, [n for extra in reversed(missing) for n in (0, extra)])
    for axis, K in enumerate(sides):  # each piece is split along the next axis
        blocks = torch.stack(blocks.split(K, 2 + axis), 1).flatten(0, 1)
    return blocks


def _enlarged(sides: Sequence[int], size: Sequence[int]) -> tuple[int, ...]:
    """Return the largest sides in the proportion of `sides` that fit into `size`."""
    narrow = min(zip(size, sides), key=lambda pair: pair[0] / pair[1])
    return tuple(K * narrow[0] // narrow[1] for K in sides)


def _paste(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Put maps (blocks, *sides) back to where `_cut` took the blocks from, (*size)."""
    for axis, S in reversed(list(enumerate(size))):
        K = maps.shape[1 + axis]
        maps = torch.cat(maps.unflatten(0, (-1, -(-S // K))).unbind(1), 1 + axis)
    return maps[0][tuple(slice(S) for S in size)]


def _shrink(maps: Tensor, size: Sequence[int]) -> Tensor:
    """Return means of maps (B, *spatial) over equal parts, (B, *size)."""
    pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(size) - 1]
    means: Tensor = pool(maps[:, None], tuple(size))[:, 0]
    return means


def _frequency(mu: list[Tensor], size: Sequence[int]) -> tuple[list[Tensor], Tensor]:
    """Return h of (5), with mu[T] last, and R of (6), for normalized maps from fine to coarse."""
    pairs = itertools.pairwise(mu)
    details = [fine - resize(_shrink(fine, coarse.shape[1:]), fine.shape[1:]) for fine, coarse in pairs]  # (5)
    r = mu[-1]
    for h in reversed(details):
        r = (resize(r, h.shape[1:]) + h).relu()
    return [*details, mu[-1]], normalize(resize(r, size))  # (6)
