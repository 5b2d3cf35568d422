"""Base classes of the metrics: one number per image, averaged over images, with its passport."""

import copy
import math
import warnings
import zlib
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric

from interpretable_training.attribution.core.base import Attribution
from interpretable_training.attribution.core.checksum import checksum
from interpretable_training.attribution.core.options import with_checked_options
from interpretable_training.attribution.core.precision import on_device
from interpretable_training.attribution.core.targets import Target

from .inputs import check_inputs, check_names
from .rescoring import ScoredBatch, scored_batch

Fact = str | float | bool | None


class ImageMetric(Metric):
    """Mean of one number per image.

    Images whose number is not one (NaN logits, a map of NaN) are left out and counted in `n_invalid`; constant maps,
    whose number says little, are counted in `n_degenerate`.
    """

    full_state_update = False
    is_differentiable = False
    formula: str
    unit: str = "percent"
    bounds: tuple[float, float] = (0.0, 100.0)
    logit_bounds: tuple[float, float] | None = (-math.inf, math.inf)  # where the score is a logit, if they differ
    columns: int = 1  # numbers per image; `aggregate` makes one of their means
    total: Tensor
    count: Tensor
    n_invalid: Tensor
    n_degenerate: Tensor
    facts: Tensor
    chunk_size: int | None = None
    reads_maps = True
    needs_classes = False  # whether it asks if the predicted class is correct
    left_out = "whose scores or maps are not numbers"  # which images, in a warning
    why_no_number = "are not numbers and"  # in a table

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "__init__" in vars(cls):
            cls.__init__ = with_checked_options(cls.__init__)  # type: ignore[method-assign]

    def __init__(self, **kwargs: Any) -> None:
        """Set up the states. Call it after the options are set: the passport is made of them."""
        super().__init__(**kwargs)
        self.add_state("total", torch.zeros(self.columns, dtype=torch.float64), dist_reduce_fx="sum")
        for name in ("count", "n_invalid", "n_degenerate"):
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")
        self.remember_facts()

    def _apply(self, fn: Any, *args: Any, **kwargs: Any) -> Any:
        return super()._apply(on_device(fn), *args, **kwargs)

    def remember_facts(self) -> None:
        """Keep a state that differs wherever the passport does.

        A collection takes metrics with equal states for one and then updates only the first of them.
        """
        digest = zlib.crc32(repr(self.passport()).encode()).to_bytes(4, "big")
        self.add_state("facts", torch.tensor(list(digest)), dist_reduce_fx="max")

    def values(self, scored: ScoredBatch) -> Tensor:
        """Return the number of each image, (B,) or (B, columns); NaN where there is none."""
        raise NotImplementedError(f"expected {type(self).__name__} to implement values(scored).")

    def options(self) -> dict[str, Fact]:
        """Return the facts that the constructor's arguments decide."""
        return {}

    def aggregate(self, means: Tensor) -> Tensor:
        """Return one number (...) of the means (..., columns)."""
        return means[..., 0]

    def curves(self, scored: ScoredBatch) -> dict[str, Tensor]:
        """Return the scores (B, J) that the number summarizes, by the name of their curve; empty for most metrics."""
        return {}

    @property
    def wants_high(self) -> bool | None:
        """Whether a higher number is better, with these options; `higher_is_better` is the class's."""
        return self.higher_is_better

    def passport(self) -> dict[str, Fact]:
        """Return all facts that decide what the number means."""
        options = self.options()
        low, high = (options.get("score") == "logit" and self.logit_bounds) or self.bounds
        return {
            "metric": type(self).__name__,
            "formula": self.formula,
            "direction": "higher is better" if self.wants_high else "lower is better",
            "range": f"{low:g} to {high:g}",
            "unit": self.unit,
            **options,
        }

    def adapted(self, mean: tuple[float, ...] | None, std: tuple[float, ...] | None, multilabel: bool) -> "ImageMetric":
        """Return a copy with the data's normalization, where none was given, and the sigmoid for several labels."""
        other = copy.deepcopy(self)
        for name, value in list(vars(other).items()):
            if hasattr(value, "with_normalization"):
                setattr(other, name, value.with_normalization(mean, std))
        if multilabel and getattr(other, "score", None) == "prob":
            other.score = "sigmoid"
        other.remember_facts()
        return other

    def rows(self, scored: ScoredBatch) -> Tensor:
        """Return `values` as (B, columns); a row is NaN as a whole, also where the map is if the metric reads it."""
        rows = self.values(scored)
        rows = rows[:, None] if rows.ndim == 1 else rows
        unknown = rows.isnan().any(1)
        if self.reads_maps and scored.unknown is not None:
            unknown = unknown | scored.unknown.to(rows.device)
        return rows.masked_fill(unknown[:, None], torch.nan)

    def measure(self, **facts: Any) -> Tensor:
        """Return the number of each image, (B,), of the keywords that `update` takes; no state changes."""
        check_names(type(self).update, f"{type(self).__name__}.measure", facts)
        with self._checked_batch(facts) as scored:
            return self.aggregate(self.rows(scored))

    def _checked_batch(self, facts: Mapping[str, Any]) -> AbstractContextManager[ScoredBatch]:
        """Return a `ScoredBatch` of what `update` was given, refused if something in it is wrong."""
        check_inputs(facts, getattr(self, "score", "prob"))
        return scored_batch(chunk_size=self.chunk_size, method=getattr(self, "attribution", None), **facts)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """Add a batch and return the number of this batch alone; after an error the state is as before."""
        before = dict(vars(self))
        try:
            return super().forward(*args, **kwargs)
        except BaseException:
            vars(self).clear()
            vars(self).update(before)
            raise

    def collect(self, **facts: Any) -> None:
        """Add the numbers of a batch to the sums."""
        with self._checked_batch(facts) as scored:
            rows, degenerate = self.rows(scored), scored.degenerate
        valid = ~rows.isnan().any(1)
        self.total = self.total.to(rows) + rows[valid].sum(0)  # wide again where true half precision converted it
        self.count = self.count + valid.sum().to(self.count)
        self.n_invalid = self.n_invalid + (~valid).sum().to(self.count)
        if degenerate is not None:
            self.n_degenerate = self.n_degenerate + degenerate.sum().to(self.count)

    def compute(self) -> Tensor:
        if self.n_invalid:
            warnings.warn(
                f"{type(self).__name__} leaves out {int(self.n_invalid)} of {int(self.count + self.n_invalid)} images, "
                f"{self.left_out}",
                stacklevel=2,
            )
        return self.aggregate(self.total / self.count).float()

    def merge_state(self, incoming_state: dict[str, Any] | Metric) -> None:
        """Add the sums of another metric of the same passport."""
        if isinstance(incoming_state, ImageMetric):
            same_passport(self.passport(), incoming_state.passport())
        elif isinstance(incoming_state, dict) and not torch.equal(
            torch.as_tensor(incoming_state["facts"]).to(self.facts), self.facts
        ):
            raise ValueError(
                f"expected the state of a {type(self).__name__} with the same passport, got that of another; measure "
                "both with the same options before you merge them."
            )
        super().merge_state(incoming_state)


class RescoringMetric(ImageMetric):
    """Base of metrics that run the model on changed images, or explain them again."""

    def update(
        self,
        model: nn.Module | None = None,
        images: Tensor | None = None,
        saliency: Tensor | None = None,
        target: Target = None,
    ) -> None:
        """Add a batch: images (B, C, H, W), their maps (B, H, W) in [0, 1] and classes (B,)."""
        self.collect(model=model, images=images, saliency=saliency, target=target)


def same_passport(ours: Mapping[str, Fact], theirs: Mapping[str, Fact]) -> None:
    """Refuse to put numbers together that mean different things."""
    differ = {key: (ours.get(key), theirs.get(key)) for key in {**ours, **theirs} if ours.get(key) != theirs.get(key)}
    if differ:
        listed = ", ".join(f"{key}: {a!r} and {b!r}" for key, (a, b) in sorted(differ.items()))
        raise ValueError(
            f"expected numbers with the same passport, got {listed}; measure both with the same options before you "
            "merge or compare them."
        )


def as_tuple(values: Sequence[float] | Tensor | None) -> tuple[float, ...] | None:
    """Return numbers that can be compared and hashed."""
    return None if values is None else tuple(float(v) for v in torch.as_tensor(values).flatten())


def again_by(method: Attribution | None) -> str:
    """Return the fact which method explains again."""
    return "the method that made the maps" if method is None else described(method)


def described(value: object) -> str:
    """Return a method or an option as text that differs where they do, inside of tensors too, which repr shortens."""
    inside = [getattr(value, f.name) for f in fields(value)] if is_dataclass(value) else [value]
    checksums = "".join(f", checksum {checksum(part)}" for part in inside if isinstance(part, Tensor))
    return f"tensor {tuple(value.shape)}{checksums}" if isinstance(value, Tensor) else f"{value!r}{checksums}"


def joined_numbers(values: Any) -> str | None:
    """Return several numbers as one fact, separated by spaces."""
    return None if values is None else " ".join(f"{float(v):g}" for v in values)


def resolve(presets: Mapping[str, Mapping[str, Any]], preset: str, **given: Any) -> dict[str, Any]:
    """Return the options of a preset, replaced by those that are given."""
    if not isinstance(preset, str) or preset not in presets:
        raise ValueError(f"expected preset to be one of {list(presets)}, got {preset!r}.")
    unknown = {name for name in given if name not in presets[preset]}
    assert not unknown, unknown
    return {**presets[preset], **{name: value for name, value in given.items() if value is not None}}
