"""Baselines: images of a data set where a method starts, and what a network makes of them, kept for later calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .auto_layer import choose_layer
from .base import full
from .batching import in_chunks
from .capture import capture
from .prepared_model import Output, PreparedModel, prepare, prepare_model, same_generators
from .targets import Resolved, take


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
        if not self.images.is_floating_point():
            raise TypeError(f"expected baselines normalized like the images, got {self.images.dtype}.")

    def of_layer(
        self, prepared: PreparedModel, layer: str, index: Tensor, target: Resolved, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Features of the baselines that `index` names, each once, and which of them each entry of `index` has.

        They are the kept ones or computed now. Only a callable `target` matters: then the output may have any shape.
        """
        used, where = index.unique(return_inverse=True)
        images = self.images[used.to(self.images.device)].to(index.device)
        target = target if callable(target) else torch.zeros_like(used)
        if layer in self.features:
            return self._kept(prepared, layer, images, used, target), where
        if self.features:
            raise ValueError(
                f"expected kept features of layer {layer!r}, got those of {list(self.features)}; "
                "pass all layers to cache_baselines(layers=[...])."
            )
        return features(prepared, prepare(prepared, images), target, layer, chunk_size), where

    def _kept(self, prepared: PreparedModel, layer: str, images: Tensor, used: Tensor, target: Resolved) -> Tensor:
        kept = self.features[layer][used.to(self.features[layer].device)].to(images.device)
        # One baseline is looked at. A black one has no features in a network without biases, whatever the weights.
        most = slice(i := int(kept.flatten(1).abs().amax(1).argmax()), i + 1)
        image = prepare(prepared, images[most])
        now, before = features(prepared, image, take(target, most), layer), kept[most]
        rounded = bool(prepared.autocast) or image.dtype in (torch.float16, torch.bfloat16)
        # On a CPU, float32 features differ by 1e-6 between batches; GPUs may round more, bfloat16 did by 0.012.
        share = 0.05 if rounded else 0.001 if image.device.type == "cpu" else 0.01
        if now.shape != before.shape or (now - before.to(now)).abs().max() > share * now.abs().max():
            raise ValueError(
                f"expected features that this network has now of its baselines in layer {layer!r}, got others: it was "
                "trained since, or they are of another network; make them again with cache_baselines."
            )
        return kept.to(now)


def as_baselines(given: Tensor | Baselines) -> Baselines:
    """Images alone are baselines of which nothing is kept."""
    if not isinstance(given, (Tensor, Baselines)):
        raise TypeError(
            f"expected baselines as a tensor (N, C, ...) or from cache_baselines, got {type(given).__name__}; "
            "stack them, or draw them with sample_baselines."
        )
    return given if isinstance(given, Baselines) else Baselines(given.detach())


def features(
    prepared: PreparedModel, images: Tensor, target: Resolved, layer: str, chunk_size: int | None = None
) -> Tensor:
    """A of `images`, (B, K, *spatial)."""
    parts: dict[int, Tensor] = {}

    def run(rows: slice) -> None:
        A = capture(prepared, images[rows], [layer], take(target, rows), gradient=False).A[layer]
        parts[rows.start] = full(A)

    in_chunks(run, len(images), chunk_size, images)
    return torch.cat([parts[start] for start in sorted(parts)])


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
    with prepare_model(model, output) as prepared:
        ready = prepare(prepared, images)
        names = [layers] if isinstance(layers, str) else list(layers)
        names = [choose_layer(prepared, ready) if name == "auto" else name for name in names]
        some = torch.zeros(len(ready), dtype=torch.long, device=ready.device)
        return Baselines(images, {name: features(prepared, ready, some, name, chunk_size) for name in names})


def sample_baselines(dataset: Any, n: int = 50, seed: int = 0) -> Tensor:
    """Images (n, C, ...) drawn from a data set without replacement; its items are tensors, tuples or dicts.

    Where the data set augments at random, all random generators are put back behind it.
    """
    if not 1 <= n <= len(dataset):
        raise ValueError(f"expected n from 1 to the {len(dataset)} items of the data set, got {n}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    with same_generators():
        found = [_image(dataset[int(i)]) for i in order[:n]]
    sizes = {tuple(image.shape) for image in found}
    if len(sizes) > 1:
        raise ValueError(f"expected images of one size, got {sorted(sizes)}; resize them as for training.")
    return torch.stack(found)


def _image(item: Any) -> Tensor:
    found = item.get("image") if isinstance(item, Mapping) else item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(found, Tensor):
        raise TypeError(
            f"expected items that are images, tuples (image, ...) or dicts with 'image', got {type(item).__name__}; "
            "stack the images yourself."
        )
    return found
