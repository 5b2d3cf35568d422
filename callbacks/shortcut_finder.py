"""Find shortcuts while a network is trained: small content that stands for a class, without annotations."""

import logging
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from torch import Tensor

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.base import Methods, name_methods
from interpretable_training.attribution.core.prepared_model import Output, prepare, prepare_model
from interpretable_training.attribution.core.sharded_parameters import is_sharded
from interpretable_training.batches.read import Key, LabelKey
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.base import Watcher
from interpretable_training.callbacks.watching.budget import Budget
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.options import Images, OnError, Stages, common_options, suggest_options
from interpretable_training.callbacks.watching.schedule import ExplanationStep, current_step
from interpretable_training.callbacks.watching.session import WatchSession, session_of
from interpretable_training.evaluation.image_clusters import ImageCluster
from interpretable_training.evaluation.shortcuts import Shortcuts, shortcuts_in
from interpretable_training.tasks.base import Task
from interpretable_training.tasks.network import Chosen
from interpretable_training.visual.cluster_sheet import draw_cluster

log = logging.getLogger("lightning.pytorch.shortcuts")  # shown where Lightning's own messages are
SHOWN = 12  # clusters in the report
MEMBERS = 9  # images of a cluster in its picture


class ShortcutFinder(Watcher):
    """Find shortcuts at the end of fit, log `xai/<method>/shortcut/<number>`, and warn when there is one.

    With several processes the images of rank zero are searched. `shortcuts` holds the last result of each method.

    >>> ShortcutFinder(max_images=200).settings()["max_images"]
    200

    `Watcher` describes the options from `every_n_epochs` on.

    Args:
        methods: name -> method, or a list; by default Grad-CAM. A layer with a fine grid finds small content.
        max_images: how many images, all of which are kept in memory; a class needs about 50.
        images: which images; see `Watcher`.
        every_n_epochs: search also in these epochs, not only at the end of fit.
    """

    @suggest_options
    def __init__(
        self,
        methods: Methods | None = None,
        max_images: int = 600,
        images: Images = "panel",
        every_n_epochs: int | None = None,
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
        self.methods = name_methods(GradCAM() if methods is None else methods)
        self.shortcuts: dict[str, Shortcuts] = {}

    def settings(self) -> dict[str, Any]:
        return {"methods": {name: repr(method) for name, method in self.methods.items()}, **super().settings()}

    def compute(
        self, session: WatchSession, context: RunContext, step: ExplanationStep
    ) -> dict[str, dict[str, float]] | None:
        """Return the numbers of each method, on rank zero."""
        if not session.trainer.is_global_zero:
            return None
        self.shortcuts = self._find(session, context)
        return {name: numbers(shortcuts) for name, shortcuts in self.shortcuts.items()}

    def _find(self, session: WatchSession, context: RunContext) -> dict[str, Shortcuts]:
        context.require_together("ShortcutFinder")
        if session.trainer.world_size > 1 and is_sharded(context.network):
            raise RuntimeError("expected a network whose parameters rank zero has whole, got one that is sharded.")
        batches = list(context.batches(session.trainer, self.budget.keep(self.n)))
        images = torch.cat([picked.images for _, picked in batches])
        targets = [picked.target for _, picked in batches if picked.target is not None]
        indices = torch.tensor([index for ids, _ in batches for index in ids])
        with prepare_model(context.network, context.options.output) as prepared:
            ready = prepare(prepared, images)
            labels = torch.cat(targets).to(ready.device) if len(targets) == len(batches) else None
            seed = self.options.seed
            return {
                name: shortcuts_in(prepared, ready, labels, indices, method, seed)
                for name, method in self.methods.items()
            }

    def values(self, parts: list[Any], step: ExplanationStep) -> dict[str, float]:
        by_method: dict[str, dict[str, float]] = parts[0] if parts else {}
        nan = dict.fromkeys(("score", "claimed", "share", "clusters"), float("nan"))
        numbers_of = {name: by_method.get(name, nan) for name in self.methods}
        return {f"xai/{name}/shortcut/{kind}": value for name, of in numbers_of.items() for kind, value in of.items()}

    def draw(self, session: WatchSession, context: RunContext, parts: list[Any], step: ExplanationStep) -> None:
        pictures = torch.cat(
            [context.colors.pictures(part.images) for _, part in context.batches(session.trainer, self.n)]
        )
        for name, shortcuts in self.shortcuts.items():
            message = shortcuts.describe(context.class_names)
            session.write("shortcuts", step, method=name, claimed=shortcuts.claimed, message=message)
            for cluster in shortcuts.clusters[:SHOWN]:
                self._show(session, context, name, shortcuts, cluster, pictures, step)
            if shortcuts.claimed:
                log.warning(f"{name}: {message}, epoch {step.epoch}, step {step.global_step}")
                key = f"{step.prefix}xai/{name}/shortcut/score"
                session.write("alarm", step, name=key, value=shortcuts.score, message=f"{name}: {message}")
                logger_adapters.alert(session.trainer, "the network uses a shortcut", f"{name}: {message}")

    def _show(
        self,
        session: WatchSession,
        context: RunContext,
        name: str,
        shortcuts: Shortcuts,
        cluster: ImageCluster,
        pictures: Tensor,
        step: ExplanationStep,
    ) -> None:
        """Write a cluster and its picture to the journal and the loggers."""
        rows = cluster.rows[:MEMBERS]
        means = pictures[cluster.rows].mean(0), cluster.mean_map
        sheet = draw_cluster(pictures[rows], shortcuts.maps[rows], shortcuts.corners[rows], shortcuts.side, *means)
        label = context.class_names[cluster.label] if context.class_names else f"class {cluster.label}"
        kind = "shortcut" if cluster.claimed else "no shortcut"
        caption = f"cluster {cluster.number} | {len(cluster.rows)} images, {cluster.purity:.0%} {label} | {kind}"
        facts: dict[str, Any] = {"method": name, "cluster": cluster.number, "claimed": cluster.claimed}
        facts |= {"label": cluster.label, "shares": cluster.shares, "facts": cluster.facts()}
        if session.run is not None:
            file = session.run.journal.save_panel(f"cluster{cluster.number}-{step.name}-{name}".lower(), sheet)
            session.write("cluster", step, file=file, **facts)
        picture = torch.from_numpy(np.array(sheet))
        key = f"{step.prefix}xai/{name}/shortcut/cluster_{cluster.number}"
        logger_adapters.log_images(session.trainer, {key: ([picture], [caption])}, step.logged, step.epoch)

    def finish(self, session: WatchSession) -> None:
        last = self.schedule.last_step
        if not self.shortcuts or last is None or last[1] != current_step(session.trainer).global_step:
            self.run(session.trainer, session.trainer.lightning_module)

    def run(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Shortcuts]:
        """Search now, log the numbers and pictures, and return what each method found; on rank zero."""
        session, step = session_of(trainer), current_step(trainer)
        context = session.context(self.options, pl_module)
        if context is None:
            return {}
        values = self.values([self.compute(session, context, step)], step)
        values = {step.prefix + name: value for name, value in values.items()}
        session.write("values", step, callback=self.label, values=values)
        for logger in trainer.loggers:
            logger.log_metrics(values, step=step.logged)
        self.draw(session, context, [], step)
        return self.shortcuts


def numbers(shortcuts: Shortcuts) -> dict[str, float]:
    """Return the numbers that are logged."""
    claimed, clusters = float(shortcuts.claimed), float(len(shortcuts.clusters))
    return {"score": shortcuts.score, "claimed": claimed, "share": shortcuts.share, "clusters": clusters}
