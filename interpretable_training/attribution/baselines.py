"""Baselines: images of a data set where a method starts, and what a network makes of them, kept for later calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .base import full
from .capture import capture
from .choose import choose_layer
from .chunks import in_chunks
from .observe import Observed, Output, observe, prepare


@dataclass(frozen=True, eq=False)
class Baselines:
    """Images (N, C, ...) and the features (N, K, *spatial) that layers of one network have of them, by name."""

    images: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def check(self, images: Tensor) -> None:
        """Refuse baselines that are not like the images to explain."""
        if self.images.shape[1:] != images.shape[1:] or len(self) == 0:
            expected, came = tuple(images.shape[1:]), tuple(self.images.shape)
            raise ValueError(f"expected baselines (N, *{expected}) like the images, got {came}.")

    def of_layer(self, observed: Observed, layer: str, index: Tensor, chunk_size: int | None = None) -> Tensor:
        """Features of the baselines number `index`, (len(index), K, *spatial): kept ones, or each computed once."""
        used, where = index.unique(return_inverse=True)
        images = prepare(observed, self.images.to(index.device)[used])
        if layer not in self.features:
            if self.features:
                raise ValueError(f"expected kept features of layer {layer!r}, got those of {list(self.features)}.")
            return _features(observed, images, layer, chunk_size)[where]
        kept = self.features[layer].to(images.device)
        now = _features(observed, images[:1], layer, chunk_size)[0]
        before = kept[used[0]].to(now)
        if now.shape != before.shape or (now - before).abs().max() > 0.01 * now.abs().max():
            raise ValueError(
                f"expected features that this network has now of its baselines in layer {layer!r}, got others: it was "
                "trained since, or they are of another network; make them again with cache_baselines."
            )
        return kept[index].to(now)


def cache_baselines(
    model: nn.Module,
    images: Tensor,
    layers: str | Sequence[str] = "auto",
    *,
    output: Output = None,
    chunk_size: int | None = None,
) -> Baselines:
    """Run `model` on baselines (N, C, ...) once; a method that gets the result spends no more passes on them.

    Each call compares the features of one baseline, so that those of older weights are refused.
    """
    with observe(model, output) as observed:
        ready = prepare(observed, images)
        names = [layers] if isinstance(layers, str) else list(layers)
        names = [choose_layer(observed, ready) if name == "auto" else name for name in names]
        return Baselines(images, {name: _features(observed, ready, name, chunk_size) for name in names})


def sample_baselines(dataset: Any, n: int = 50, seed: int = 0) -> Tensor:
    """Images (n, C, ...) drawn from a data set without replacement; its items are tensors, tuples or dicts."""
    if not 1 <= n <= len(dataset):
        raise ValueError(f"expected n from 1 to the {len(dataset)} items of the data set, got {n}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    return torch.stack([_image(dataset[int(i)]) for i in order[:n]])


def _image(item: Any) -> Tensor:
    found = item.get("image") if isinstance(item, Mapping) else item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(found, Tensor):
        raise TypeError(
            f"expected items that are images, tuples (image, ...) or dicts with 'image', got {type(item).__name__}; "
            "stack the images yourself."
        )
    return found


def _features(observed: Observed, images: Tensor, layer: str, chunk_size: int | None) -> Tensor:
    parts: dict[int, Tensor] = {}

    def run(rows: slice) -> None:
        target = torch.zeros(rows.stop - rows.start, dtype=torch.long, device=images.device)
        parts[rows.start] = full(capture(observed, images[rows], [layer], target, gradient=False).A[layer])

    in_chunks(run, len(images), chunk_size, images)
    return torch.cat([parts[start] for start in sorted(parts)])
