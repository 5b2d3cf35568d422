"""Embeddings: the score is a similarity to something that does not change, or the norm.

    y = cos(z, z[ref])            (1)
    p = (1 + y) / 2               (2)
    y = |z|, p = min(1, |z| / |z of the unchanged image|)    (3)

z: embedding (D,) of a changed image. z[ref]: that of the reference, a prototype or a text.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from .base import Example, Task
from .outputs import entry_of


@dataclass(frozen=True, eq=False)
class Embedding(Task):
    """Explain an embedding (B, D) by its similarity to a reference.

    >>> Embedding(prototypes=torch.eye(2)).scores(torch.tensor([[2.0, 0.0]])).tolist()
    [[1.0, 0.0]]

    Args:
        to: "augmentation" (the mirrored image), "image" (the one given as `image`), or "norm" for its length.
        image: reference image (C, H, W), normalized as in training.
        prototypes: embeddings (K, D) of classes or texts; each is explained as a class, in the place of `to`.
    """

    to: Literal["augmentation", "image", "norm"] = "augmentation"
    image: Tensor | None = None
    prototypes: Tensor | None = None
    name = "embedding"
    follows = True

    def __post_init__(self) -> None:
        if self.to not in ("augmentation", "image", "norm"):
            raise ValueError(f"expected to= 'augmentation', 'image' or 'norm', got {self.to!r}.")
        if self.to == "image" and self.image is None:
            raise ValueError("expected the reference image with to='image', got none; pass image= as (C, H, W).")

    def embeddings(self, output: Any) -> Tensor:
        """Return embeddings (n, D): the output, or its entry of a usual name."""
        names = ("image_embeds", "embedding", "embeddings", "pooler_output", "features", "projection")
        z = entry_of(output, *names)
        z = output[0] if z is None and isinstance(output, (tuple, list)) and output else z
        if not isinstance(z, Tensor) or z.ndim != 2:
            got = f"shape {tuple(z.shape)}" if isinstance(z, Tensor) else type(output).__name__
            raise ValueError(f"expected embeddings (B, D), got {got}; pass output= with what returns them.")
        return z

    def reference(self, output: Any, example: Example) -> Tensor:
        z = self.embeddings(output).detach()
        if self.to == "norm" or self._texts(output) is not None or self.prototypes is not None:
            return z
        if self.to == "augmentation":
            other = example.image.flip(-1)
        else:
            assert self.image is not None
            other = self.image[None].to(example.image)
        assert example.run is not None
        with torch.no_grad():
            return self.embeddings(example.run(other)).detach()

    def scores(self, output: Any, reference: Tensor | None = None) -> Tensor:
        z, texts = self.embeddings(output), self._texts(output)
        if self.prototypes is not None:
            return F.normalize(z, dim=1) @ F.normalize(self.prototypes.to(z), dim=1).T  # (1)
        if texts is not None:
            return F.cosine_similarity(z, texts)[:, None]
        if self.to == "norm" or reference is None:
            return z.norm(dim=1, keepdim=True)  # (3)
        return F.cosine_similarity(z, reference.to(z))[:, None]  # (1)

    def prob(self, output: Any, reference: Tensor | None = None) -> Tensor:
        y = self.scores(output, reference)
        if self.prototypes is None and self.to == "norm" and reference is not None and self._texts(output) is None:
            return (y / reference.norm().clamp(min=1e-12)).clamp(max=1)  # (3)
        return ((1 + y) / 2).clamp(0, 1)  # (2)

    def _texts(self, output: Any) -> Tensor | None:
        """Return the text embedding of each row, where the network also reads texts."""
        return None if isinstance(output, Tensor) else entry_of(output, "text_embeds")

    def label(self, reference: Tensor | None, example: Example) -> int | None:
        known = self.prototypes is not None and isinstance(example.target, Tensor) and example.target.ndim == 1
        return int(example.target[0]) if known else None

    def caption(self, column: int, reference: Tensor | None = None, class_names: Sequence[str] | None = None) -> str:
        if self.prototypes is not None:
            return super().caption(column, reference, class_names)
        kinds = {"augmentation": "similarity to its mirror image", "image": "similarity to the reference image"}
        return kinds.get(self.to, "norm of the embedding")

    def describe(self, output: Any) -> str:
        about = f"similarity to {len(self.prototypes)} prototypes" if self.prototypes is not None else self.caption(0)
        about = "similarity to its text" if self._texts(output) is not None else about
        return f"{self.embeddings(output).shape[1]} numbers per image, taken as an embedding; explained: {about}"
