"""Scores of changed images of a batch, each computed when a metric first requests it, and stored.

All metrics of a batch share one `ScoredBatch`, so that a masked image that two of them need is scored once. What does
not depend on the maps (the clean images, a blurred copy) is stored in `clean`, which methods explaining the same batch
share.
"""

from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.base import Attribution, full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.map_operations import degenerate, normalize
from interpretable_training.attribution.core.precision import wide
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model
from interpretable_training.attribution.core.targets import Resolved, Target, take
from interpretable_training.batches.read import ANNOTATIONS

from .inputs import check_saliency

Kind = Literal["prob", "logit", "sigmoid", "accuracy"]
SCORES: tuple[Kind, ...] = ("prob", "logit", "sigmoid", "accuracy")


class ScoredBatch:
    """Batch with the map of each image and the scores that metrics have computed.

    Args:
        prepared: the prepared model.
        images: (B, C, *spatial).
        saliency: (B, *spatial) in [0, 1].
        target: resolved: one class per image.
        method: what made the maps, for metrics that explain again.
        known: scores (B,) that the caller has already, by name: `prob`, `prob_masked`, `prob_deleted`; and
            `saliency_masked`.
        clean: scores that do not depend on the maps.
        chunk_size: images per pass; by default what suits the device and the image size.
        annotations: where the objects are, by name: `mask`, `boxes`, `shortcut_mask`, `ignore_mask`.
    """

    def __init__(
        self,
        prepared: PreparedModel | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Resolved | None = None,
        method: Attribution | None = None,
        known: dict[str, Tensor] | None = None,
        clean: dict[Hashable, Tensor] | None = None,
        chunk_size: int | None = None,
        annotations: Mapping[str, Any] | None = None,
    ) -> None:
        self._prepared, self._images, self._target, self.method = prepared, images, target, method
        self._saliency = None if saliency is None else check_saliency(saliency, images)
        self.known = known or {}
        self.annotations = annotations or {}
        self.clean = {} if clean is None else clean
        self.stored: dict[Hashable, Tensor] = {}
        self.chunk_size = chunk_size

    @property
    def prepared(self) -> PreparedModel:
        return self._need(self._prepared, "model")

    @property
    def images(self) -> Tensor:
        return self._need(self._images, "images")

    @property
    def saliency(self) -> Tensor:
        return self._need(self._saliency, "saliency")

    @property
    def like(self) -> Tensor:
        """Return a tensor of the maps' shape (B, *spatial) on their device: the maps, or a channel of the images."""
        return self.images[:, 0] if self._saliency is None else self._saliency

    @property
    def target(self) -> Resolved:
        return self._need(self._target, "target")

    def _need(self, value: Any, name: str) -> Any:
        if value is None:
            raise ValueError(f"expected {name}= among what update receives, got none; {HINTS[name]}")
        return value

    @property
    def degenerate(self) -> Tensor | None:
        """Return which maps are constant or not numbers, (B,); None without maps."""
        S = self._saliency
        return None if S is None else self.once("degenerate", lambda: degenerate(S))

    @property
    def unknown(self) -> Tensor | None:
        """Return which maps hold a value that is not a number, (B,); None without maps."""
        S = self._saliency
        return None if S is None else self.once("unknown", lambda: S.flatten(1).sum(1).isnan())  # all others are finite

    def once(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Return what `compute` returns, computed only the first time that `key` is asked for."""
        if key not in self.stored:
            self.stored[key] = compute()
        return self.stored[key]

    def once_clean(self, key: Hashable, compute: Callable[[], Tensor]) -> Tensor:
        """Do the same as `once` for what does not depend on the maps."""
        if key not in self.clean:
            self.clean[key] = compute()
        return self.clean[key]

    def clean_scores(self) -> Tensor:
        """Return scores (B, S) of the images as they are."""
        rows = torch.arange(len(self.images), device=self.images.device)
        return self.once_clean("images", lambda: self.rescore(lambda part: self.images[part], rows))

    @torch.no_grad()
    def rescore(self, make: Callable[[slice], Tensor], image: Tensor) -> Tensor:
        """Return scores (R, S) of R images that `make` builds from slices of the rows; row r is of image[r].

        Their S kinds are `SCORES`, of the target class.
        """
        scores = torch.full((len(image), len(SCORES)), torch.nan, dtype=wide(self.images), device=self.images.device)

        def run(rows: slice) -> None:
            output = self.prepared.run_fast(make(rows))
            scores[rows] = scores_of(self.prepared, output, take(self.target, image[rows])).to(scores)

        in_chunks(run, len(image), self.chunk_size, self.images)
        return scores

    def explain_again(self, images: Tensor, raw: bool = False) -> Tensor:
        """Return maps (B, *spatial) of other images of the same classes; in [0, 1] unless `raw`."""
        if self.method is None:
            raise ValueError(
                "expected the method that made the maps, got none; give it to the metric, as in "
                "Coherency(attribution=GradCAM())."
            )
        maps = full(self.method.attribute(self.prepared, images, self.target).detach())
        return maps if raw else in_unit_range(self.method, maps)


def scores_of(prepared: PreparedModel, output: Any, target: Resolved) -> Tensor:
    """Return the scores (R, S) of what the module returned, for resolved targets; what is not finite becomes NaN."""
    scores = torch.stack([_score(prepared, output, target, kind) for kind in SCORES], 1)
    scores = scores.to(wide(scores))
    return scores.masked_fill(~scores.isfinite(), torch.nan)


def _score(prepared: PreparedModel, output: Any, target: Resolved, kind: Kind) -> Tensor:
    if kind != "accuracy":
        return full(prepared.score_in(output, target, kind))
    score = full(prepared.score_in(output, target))
    if callable(target):
        return torch.full_like(score, torch.nan)  # a score without a class has no accuracy
    predicted = prepared.resolve_in(output, "pred")
    assert isinstance(predicted, Tensor)
    return torch.where(score.isfinite(), (predicted == target).to(score), torch.nan)


def in_unit_range(method: Attribution, maps: Tensor) -> Tensor:
    """Return maps (B, ...) in [0, 1]: as they are if the method is `final`, else normalized."""
    return maps if method.final else normalize(maps)


HINTS = {
    "model": "pass the network, or the scores prob= and prob_masked= where you have them.",
    "images": "pass the images (B, C, H, W) that the maps explain.",
    "saliency": "pass maps (B, H, W) in [0, 1], as normalize(GradCAM()(model, images, target)) returns.",
    "target": "pass the class of each image that is followed: the labels, or 'pred' for the predicted ones.",
}


def kind_index(kind: Kind) -> int:
    """Return the column of a kind of score in what `rescore` returns."""
    return SCORES.index(kind)


def only_images(images: Tensor) -> Tensor:
    """Refuse signals and volumes where the metric is defined on images."""
    if images.ndim != 4:
        raise ValueError(f"expected images (B, C, H, W), got {tuple(images.shape)}; use another metric for them.")
    return images


@contextmanager
def scored_batch(
    model: nn.Module | None = None,
    images: Tensor | None = None,
    saliency: Tensor | None = None,
    target: Target = None,
    *,
    method: Attribution | None = None,
    output: Output = None,
    chunk_size: int | None = None,
    **known: Any,
) -> Iterator[ScoredBatch]:
    """Yield a `ScoredBatch` of what the caller has, with the model prepared if there is one."""
    given = {name: value for name, value in known.items() if value is not None}
    where = {name: given.pop(name) for name in ANNOTATIONS if name in given}
    if model is None or images is None:
        classes = target if isinstance(target, Tensor) else None
        yield ScoredBatch(None, images, saliency, classes, method, given, annotations=where)
        return
    with prepare_model(model, output) as prepared:
        images = prepare(prepared, images)
        resolved = None if target is None else prepared.resolve(images, target)
        if isinstance(resolved, Tensor) and resolved.ndim > 1:
            raise ValueError(
                f"expected one class per image, (B,), got {tuple(resolved.shape)}; repeat images and maps for several."
            )
        yield ScoredBatch(prepared, images, saliency, resolved, method, given, None, chunk_size, where)
