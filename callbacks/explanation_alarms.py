"""Alarms for maps with mass where it should not be.

    alike   = mean over pairs of images of pearson(S, S')                     (1)
    outside = share of the map's mass outside of the object's mask or boxes   (2)
    border  = share of the map's mass in the outer tenth of the image         (3)
    drift   = mean over images of the share of mass that moved since the previous maps, see ExplanationDrift (4)

S, S': maps of two images. Mass: the positive values of a map. A map without mass is left out.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import degenerate
from interpretable_training.attribution.core.prepared_model import Output
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explanations import Explained, check_target, joined
from interpretable_training.callbacks.watching.map_changes import compare_maps, small_maps
from interpretable_training.callbacks.watching.options import (
    Images,
    OnError,
    Stages,
    common_options,
    suggest_options,
)
from interpretable_training.callbacks.watching.saved_state import Saved, map_stack
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.callbacks.watching.session import WatchSession
from interpretable_training.callbacks.watching.startup_report import Line
from interpretable_training.report.value_readers import list_of, mapping_of, read_text
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen

log = logging.getLogger("lightning.pytorch.alarms")  # shown where Lightning's own messages are
RING = 0.1  # of the image's height and width at each side
MEANINGS = {
    "alike": "maps of different images look alike",
    "outside": "maps lie outside of the object",
    "border": "maps concentrate on the border of the image",
    "drift": "explanations change much between two explanation steps",
}


class ExplanationAlarms(Watcher):
    """Log `xai/<method>/alarm/<kind>` and warn when a value is above its threshold; a kind without one is off.

    An alarm is a warning, a line in the report and, where the logger has them, an alert. It is given when the value
    rises above the threshold, and not again while the value stays above it.

    >>> ExplanationAlarms(alike=0.9, border=0.5).thresholds
    {'alike': 0.9, 'border': 0.5}

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        max_images: how many images; by default 16, fewer where epochs are short, see `Watcher`.
        images: which images; see `Watcher`.
        target: the class that is explained: "pred", "label", "least" or a number.
        alike: threshold for the correlation of maps of different images, from -1 to 1.
        outside: for the share of mass outside of the object; batches need a `mask` or `boxes`.
        border: for the share of mass in the outer tenth of the image, 0.36 for a map that is even.
        drift: for the share of mass that has moved since the previous maps.
    """

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        max_images: int | None = None,
        images: Images = "panel",
        target: int | str = "pred",
        alike: float | None = None,
        outside: float | None = None,
        border: float | None = None,
        drift: float | None = None,
        every_n_epochs: int | None = 1,
        every_n_steps: int | None = None,
        stages: Stages = ("fit",),
        on_error: OnError = "warn",
        budget: Budget | float | None = None,
        network: Chosen = None,
        output: Output = None,
        image_key: Key = None,
        label_key: LabelKey = None,
        class_names: Sequence[str] | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
        seed: int = 0,
        task: str | Task = "auto",
        channels: Sequence[int] | None = None,
    ) -> None:
        super().__init__(**common_options(locals()))
        check_target(target)
        limits = {"alike": alike, "outside": outside, "border": border, "drift": drift}
        self.thresholds = {kind: limit for kind, limit in limits.items() if limit is not None}
        if not self.thresholds:
            raise ValueError(f"expected a threshold for one of {list(limits)}, got none; pass for example alike=0.9.")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.target = target
        self.above: set[str] = set()  # names of the values above their threshold
        self.previous: dict[str, Tensor] = {}  # small maps by method
        self.latest: dict[str, float] = {}

    def settings(self) -> dict[str, Any]:
        methods = {name: repr(method) for name, method in self.methods.items()}
        return {"methods": methods, "target": self.target, "thresholds": self.thresholds, **super().settings()}

    def start_lines(self, session: WatchSession, context: RunContext) -> list[Line]:
        return [("alarms", ", ".join(f"{kind} > {limit:g}" for kind, limit in self.thresholds.items()))]

    def compute(self, session: WatchSession, context: RunContext, step: ExplanationStep) -> Explained:
        return session.explain(context, self.methods, self.target, self.budget.keep(self.n))

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        if not parts:
            return {}
        explained = joined(parts).sorted_by_id()
        maps: dict[str, Tensor] = next(iter(explained.maps.values()), {})
        now = small_maps(explained)
        values: dict[str, float] = {}
        for name, S in maps.items():
            mass = S.clamp(min=0)
            if "alike" in self.thresholds:
                values[f"xai/{name}/alarm/alike"] = alike(now[name])
            if "border" in self.thresholds:
                values[f"xai/{name}/alarm/border"] = share(mass, ring(S).expand_as(S))
            if "outside" in self.thresholds:
                if explained.inside is None:
                    raise ValueError("expected a mask or boxes in the batch for the alarm 'outside', got neither.")
                values[f"xai/{name}/alarm/outside"] = share(mass, ~explained.inside)
            if "drift" in self.thresholds:
                previous = self.previous.get(name)
                same = previous is not None and previous.shape == now[name].shape
                shift = compare_maps(now[name], previous)["shift"].nanmean() if same else 0.0  # type: ignore[arg-type]
                values[f"xai/{name}/alarm/drift"] = float(shift)
        self.previous, self.latest = now, values
        return values

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        for key, value in self.latest.items():
            method, _, kind = key.removeprefix("xai/").rsplit("/", 2)
            limit = self.thresholds[kind]
            if not value > limit:
                self.above.discard(key)
            elif key not in self.above:
                self.above.add(key)
                message = f"{method}: {MEANINGS[kind]} ({kind} {value:.2f}, threshold {limit:g})"
                session.write("alarm", step, name=key, value=value, threshold=limit, message=message)
                text = f"{message}, epoch {step.epoch}, step {step.global_step}"
                log.warning(text)
                logger_adapters.alert(session.trainer, MEANINGS[kind], text)

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "above": sorted(self.above), "previous": self.previous}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        above: list[str] = saved.read("above", list_of(read_text), [])
        self.above = set(above)
        self.previous = saved.read("previous", mapping_of(map_stack), {})


def alike(S: Tensor) -> float:
    """Return (1) of maps (n, h, w); NaN with fewer than two that are not constant."""
    S = S[~degenerate(S)].flatten(1).double()
    if len(S) < 2:
        return float("nan")
    S = S - S.mean(1, keepdim=True)
    S = S / S.norm(dim=1, keepdim=True)
    n = len(S)
    return float(((S @ S.T).sum() - n) / (n * (n - 1)))


def share(mass: Tensor, where: Tensor) -> float:
    """Return the mean share of each map's mass (n, H, W) in the pixels `where`, (2), (3)."""
    mass = mass.nan_to_num().double()
    return float(((mass * where).sum((1, 2)) / mass.sum((1, 2))).nanmean())


def ring(S: Tensor) -> Tensor:
    """Return the outer tenth (H, W) of images of the size of maps (n, H, W)."""
    height, width = S.shape[1:]
    outer = torch.ones(height, width, dtype=torch.bool)
    y, x = max(1, round(RING * height)), max(1, round(RING * width))
    outer[y:-y, x:-x] = False
    return outer
