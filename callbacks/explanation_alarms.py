"""Says so when a model looks where it should not.

    alike   = mean over pairs of images of pearson(S, S')                     (1)
    outside = share of the map's mass outside of the object's mask or boxes   (2)
    border  = share of the map's mass in the outer tenth of the image         (3)
    drift   = mean over images of the share of mass that moved since the look before, see ExplanationDrift (4)

S, S': maps of two images. Mass: the positive values of a map. A map without any is left out.
"""

import logging
from typing import Any

import lightning as L
import torch
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.map_operations import degenerate
from interpretable_training.callbacks.explanation_drift import compare, small
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.explained import Look, check_target, joined
from interpretable_training.callbacks.watching.explaining import explain_panel
from interpretable_training.callbacks.watching.saved_state import Saved, map_stack
from interpretable_training.callbacks.watching.schedule import Moment
from interpretable_training.report.value_readers import list_of, mapping_of, read_text

log = logging.getLogger("lightning.pytorch.alarms")  # shown where Lightning's own messages are
RING = 0.1  # of the image's height and width at each side
MEANINGS = {
    "alike": "maps of different images look alike",
    "outside": "the model looks outside of the object",
    "border": "the model looks at the border of the image",
    "drift": "explanations change much between two looks",
}


class ExplanationAlarms(Watcher):
    """Logs `xai/<method>/alarm/<kind>` and warns when one is above its threshold; each kind is off unless given one.

    An alarm is a warning, a line in the report and, where the logger knows such, an alert; given when the value rises
    above the threshold, not again while it stays there.

    Args:
        methods: name -> method, or a list; by default Grad-CAM.
        images: which images; see `Watcher`.
        n_images: how many of them.
        target: the class that is explained: "pred", "label", "least" or a number.
        alike: threshold for the correlation of maps of different images, from -1 to 1.
        outside: for the share of mass outside of the object; batches need a `mask` or `boxes`.
        border: for the share of mass in the outer tenth of the image, 0.36 for a map that is even.
        drift: for the share of mass that has moved since the look before.
        stages: stages in which to look.
        **watch: when to look and how to read batches; see `Watcher`.
    """

    def __init__(
        self,
        methods: Methods | None = None,
        images: Any = "panel",
        n_images: int = 16,
        target: str | int = "pred",
        alike: float | None = None,
        outside: float | None = None,
        border: float | None = None,
        drift: float | None = None,
        stages: tuple[str, ...] | list[str] = ("fit",),
        **watch: Any,
    ) -> None:
        super().__init__(n_images, images, stages=stages, **watch)
        check_target(target)
        given = {"alike": alike, "outside": outside, "border": border, "drift": drift}
        self.thresholds = {kind: limit for kind, limit in given.items() if limit is not None}
        if not self.thresholds:
            raise ValueError(f"expected a threshold for one of {list(given)}, got none; pass for example alike=0.9.")
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.target = target
        self.above: set[str] = set()  # names of the values above their threshold
        self.before: dict[str, Tensor] = {}
        self.values: dict[str, float] = {}  # of this look

    def settings(self) -> dict[str, Any]:
        told = {"methods": {name: repr(method) for name, method in self.methods.items()}, "target": self.target}
        return {**told, "thresholds": self.thresholds, **super().settings()}

    def facts(self, trainer: L.Trainer, scene: RunContext) -> list[tuple[str, str]]:
        return [("alarms", ", ".join(f"{kind} > {limit:g}" for kind, limit in self.thresholds.items()))]

    def measure(self, trainer: L.Trainer, scene: RunContext | None, moment: Moment) -> Any:
        if scene is None:
            return None
        found = explain_panel(trainer, scene, self.methods, self.target, self.thrift.keep(self.n))
        return Look({"panel": found})

    def scalars(self, parts: list[Any], moment: Moment) -> dict[str, float]:
        if not parts:
            return {}
        found = joined([part.found["panel"] for part in parts]).sorted_by_id()
        maps: dict[str, Tensor] = next(iter(found.maps.values()), {})
        now = small(found)
        values: dict[str, float] = {}
        for name, S in maps.items():
            mass = S.clamp(min=0)
            if "alike" in self.thresholds:
                values[f"xai/{name}/alarm/alike"] = alike(now[name])
            if "border" in self.thresholds:
                values[f"xai/{name}/alarm/border"] = share(mass, ring(S).expand_as(S))
            if "outside" in self.thresholds:
                if found.inside is None:
                    raise ValueError("expected a mask or boxes in the batch for the alarm 'outside', got neither.")
                values[f"xai/{name}/alarm/outside"] = share(mass, ~found.inside)
            if "drift" in self.thresholds:
                before = self.before.get(name)
                same = before is not None and before.shape == now[name].shape
                moved = (
                    compare(now[name], before)["shift"].nanmean() if same and before is not None else torch.zeros(())
                )
                values[f"xai/{name}/alarm/drift"] = float(moved)
        self.before, self.values = now, values
        return values

    def show(self, trainer: L.Trainer, parts: list[Any], moment: Moment) -> None:
        for key, value in self.values.items():
            method, _, kind = key.removeprefix("xai/").rsplit("/", 2)
            limit = self.thresholds[kind]
            if not value > limit:
                self.above.discard(key)
            elif key not in self.above:
                self.above.add(key)
                message = f"{method}: {MEANINGS[kind]} ({kind} {value:.2f}, threshold {limit:g})"
                told = {"name": key, "value": value, "threshold": limit, "message": message}
                self.records.write(trainer, "alarm", moment, **told)
                log.warning(f"{message}, epoch {moment.epoch}, step {moment.step}")
                logger_adapters.alert(trainer, MEANINGS[kind], f"{message}, epoch {moment.epoch}, step {moment.step}")

    def state_dict(self) -> dict[str, Any]:
        return {**super().state_dict(), "above": sorted(self.above), "before": self.before}

    def restore(self, saved: Saved) -> None:
        super().restore(saved)
        self.above = set(saved.read("above", list_of(read_text), []))
        self.before = saved.read("before", mapping_of(map_stack), {})


def alike(S: Tensor) -> float:
    """(1) of maps (n, h, w); NaN with fewer than two that are not constant."""
    S = S[~degenerate(S)].flatten(1).double()
    if len(S) < 2:
        return float("nan")
    S = S - S.mean(1, keepdim=True)
    S = S / S.norm(dim=1, keepdim=True)
    n = len(S)
    return float(((S @ S.T).sum() - n) / (n * (n - 1)))


def share(mass: Tensor, where: Tensor) -> float:
    """The mean share of each map's mass (n, H, W) that lies where it says, (2), (3)."""
    mass = mass.nan_to_num().double()
    return float(((mass * where).sum((1, 2)) / mass.sum((1, 2))).nanmean())


def ring(S: Tensor) -> Tensor:
    """The outer tenth of images of the size of maps (n, H, W), (H, W)."""
    height, width = S.shape[1:]
    outer = torch.ones(height, width, dtype=torch.bool)
    y, x = max(1, round(RING * height)), max(1, round(RING * width))
    outer[y:-y, x:-x] = False
    return outer
