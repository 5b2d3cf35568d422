"""Baselines: images of a data set that methods compare with, and their features, stored for later calls."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .auto_layer import choose_layer
from .base import full
from .batching import in_chunks
from .capture import capture
from .generators import same_generators
from .prepared_model import Output, PreparedModel, prepare, prepare_model
from .targets import Resolved, take


@dataclass(frozen=True, eq=False)
class Baselines:
    """Images (N, C, ...), and layer name -> features (N, K, *spatial) of these images in one network.

    >>> baselines = Baselines(images)
    >>> len(baselines), list(baselines.features)
    (4, [])
    """

    images: Tensor
    features: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    def check(self, images: Tensor) -> None:
        """Raise an error if baselines differ from the images to explain in shape or type."""
        if self.images.shape[1:] != images.shape[1:] or len(self) == 0:
            expected, shape = tuple(images.shape[1:]), tuple(self.images.shape)
            raise ValueError(f"expected baselines (N, *{expected}) like the images, got {shape}.")
        if not self.images.is_floating_point():
            raise TypeError(f"expected baselines normalized like the images, got {self.images.dtype}.")

    def of_layer(
        self, prepared: PreparedModel, layer: str, index: Tensor, target: Resolved, chunk_size: int | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return features of the distinct baselines in `index`, and the row of features of each entry of `index`.

        Features are the stored ones or computed now. `target` has an effect only if it is a callable: the output of the
        model may have any shape then.
        """
        used, where = index.unique(return_inverse=True)
        images = self.images[used.to(self.images.device)].to(index.device)
        target = target if callable(target) else torch.zeros_like(used)
        if layer in self.features:
            return self._checked(prepared, layer, images, used, target), where
        if self.features:
            raise ValueError(
                f"expected kept features of layer {layer!r}, got those of {list(self.features)}; "
                "pass all layers to cache_baselines(layers=[...])."
            )
        return features(prepared, prepare(prepared, images), target, layer, chunk_size), where

    def _checked(self, prepared: PreparedModel, layer: str, images: Tensor, used: Tensor, target: Resolved) -> Tensor:
        cached = self.features[layer][used.to(self.features[layer].device)].to(images.device)
        # Compare one baseline, that with the largest features: in a network without biases those of a black one are 0.
        most = slice(i := int(cached.flatten(1).abs().amax(1).argmax()), i + 1)
        image = prepare(prepared, images[most])
        now, before = features(prepared, image, take(target, most), layer), cached[most]
        rounded = bool(prepared.autocast) or image.dtype in (torch.float16, torch.bfloat16)
        # On a CPU, float32 features differ by 1e-6 between batches; GPUs may round more, bfloat16 did by 0.012.
        share = 0.05 if rounded else 0.001 if image.device.type == "cpu" else 0.01
        if now.shape != before.shape or (now - before.to(now)).abs().max() > share * now.abs().max():
            raise ValueError(
                f"expected features that this network computes for the baselines in layer {layer!r}, got others: it "
                "was trained since, or they are of another network; make them again with cache_baselines."
            )
        return cached.to(now)


def as_baselines(given: Tensor | Baselines) -> Baselines:
    """Return baselines; images become baselines without stored features."""
    if not isinstance(given, (Tensor, Baselines)):
        raise TypeError(
            f"expected baselines as a tensor (N, C, ...) or from cache_baselines, got {type(given).__name__}; "
            "stack them, or draw them with sample_baselines."
        )
    return given if isinstance(given, Baselines) else Baselines(given.detach())


def features(
    prepared: PreparedModel, images: Tensor, target: Resolved, layer: str, chunk_size: int | None = None
) -> Tensor:
    """Return the features A of `images` in a layer, (B, K, *spatial)."""
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
    """Return baselines (N, C, ...) with their features; a method that gets them needs no passes to compute features.

    Each call of the method compares the features of one baseline, and refuses those of older weights.

    >>> baselines = cache_baselines(network, images, layers="1")
    >>> baselines.features["1"].shape
    torch.Size([4, 8, 16, 16])
    """
    with prepare_model(model, output) as prepared:
        ready = prepare(prepared, images)
        names = [layers] if isinstance(layers, str) else list(layers)
        names = [choose_layer(prepared, ready) if name == "auto" else name for name in names]
        classes = torch.zeros(len(ready), dtype=torch.long, device=ready.device)
        return Baselines(images, {name: features(prepared, ready, classes, name, chunk_size) for name in names})


def sample_baselines(dataset: Any, n: int = 50, seed: int = 0) -> Tensor:
    """Draw images (n, C, ...) from a data set without replacement; its items are tensors, tuples or dicts.

    The state of all global random generators is restored, so that random augmentation does not change it.

    >>> sample_baselines(images, n=2).shape
    torch.Size([2, 3, 16, 16])
    """
    if not 1 <= n <= len(dataset):
        raise ValueError(f"expected n from 1 to the {len(dataset)} items of the data set, got {n}.")
    order = torch.randperm(len(dataset), generator=torch.Generator().manual_seed(seed))
    with same_generators():
        samples = [_image(dataset[int(i)]) for i in order[:n]]
    sizes = {tuple(image.shape) for image in samples}
    if len(sizes) > 1:
        raise ValueError(f"expected images of one size, got {sorted(sizes)}; resize them as for training.")
    return torch.stack(samples)


def _image(item: Any) -> Tensor:
    image = item.get("image") if isinstance(item, Mapping) else item[0] if isinstance(item, (tuple, list)) else item
    if not isinstance(image, Tensor):
        raise TypeError(
            f"expected items that are images, tuples (image, ...) or dicts with 'image', got {type(item).__name__}; "
            "stack the images yourself."
        )
    return image
