"""Pictures of explained images: overlays for loggers, a sheet and small maps for the journal."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution import Attribution
from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.context import RunContext
from interpretable_training.callbacks.watching.discovery import name_of
from interpretable_training.callbacks.watching.explanations import Explained, statistics
from interpretable_training.callbacks.watching.saved_state import Saved
from interpretable_training.callbacks.watching.schedule import ExplanationStep
from interpretable_training.callbacks.watching.session import WatchSession
from interpretable_training.report.journal import Journal, read_journal, shrink
from interpretable_training.report.value_readers import list_of, mapping_of, read_number, read_text
from interpretable_training.visual.map_levels import map_scales
from interpretable_training.visual.overlay import on_picture, overlay
from interpretable_training.visual.sheet import draw_sheet

COLUMNS = ["epoch", "step", "group", "image", "method", "view", "true", "predicted", "explained", "probability", "loss"]
NUMBERS = ["max", "mass", "entropy", "degenerate"]
ROWS = 10_000  # that W&B keeps of a table


class Gallery:
    """Draw and send explanations; store the largest values of the run so far, for the colors."""

    def __init__(self, methods: Mapping[str, Attribution], scale: str) -> None:
        self.methods, self.scale = methods, scale
        self.tops: dict[str, float] = {}  # by method
        self.sent: set[str] = set()  # the stages whose original images were sent

    def show(
        self, session: WatchSession, context: RunContext, groups: dict[str, Explained], step: ExplanationStep
    ) -> None:
        """Draw the groups of an explanation step, and send them in one call."""
        images: dict[str, tuple[list[Tensor], list[str]]] = {}
        prefix, test = step.prefix + "xai", step.stage == "test"
        shown: list[tuple[str, Explained, Tensor, dict[str, Tensor]]] = []
        for group, explained in groups.items():
            pictures = context.colors.pictures(explained.images)
            if group == "panel" and step.stage not in self.sent:
                images[f"{prefix}/images"] = (list(as_bytes(pictures)), self.titles(explained, context.class_names))
            rows = {"image": as_bytes(pictures)}
            for view, maps in explained.maps.items():
                for method, S in maps.items():
                    drawn = overlay(pictures, S, scale=self.ends(method, on_picture(S, pictures)))
                    drawn = explained.marked(drawn, view)
                    name = method if len(explained.maps) == 1 else f"{method}/{view}"
                    rows[name.replace("/", " ")] = drawn
                    key = f"{prefix}/{name}" if group == "panel" else f"{prefix}/{group}/{name}"
                    images[key] = (list(drawn), self.captions(explained, view, S, context, step))
            shown.append((f"test-{group}" if test else group, explained, pictures, rows))
        try:
            journal = None if session.run is None else session.run.journal
            for part in shown:
                if journal is None:
                    break
                prefix = ("test-" if test else "") + (context.panel.prefix if part[0].endswith("panel") else "")
                self.keep(journal, context.class_names, *part, step, prefix)
        finally:  # also with a full disk
            logger_adapters.log_images(session.trainer, images, step.logged, step.epoch)
            self.sent.add(step.stage)

    def keep(
        self,
        journal: Journal,
        class_names: list[str] | None,
        group: str,
        explained: Explained,
        pictures: Tensor,
        rows: dict[str, Tensor],
        step: ExplanationStep,
        prefix: str = "",
    ) -> None:
        """Write pictures, maps and a sheet to the journal; the ids get the prefix."""
        for row, index in enumerate(explained.ids):
            journal.save_image(f"{prefix}{index}", pictures[row], self.label(explained, row))
        journal.save_panel(f"{group}-{step.name}", draw_sheet(rows, self.titles(explained, class_names)))
        for view, maps in explained.maps.items():
            for method, S in maps.items():
                small = shrink(on_picture(S, pictures))
                file, scales = journal.save_maps(f"{group}-{step.name}-{method}-{view}".lower(), small)
                map_rows = self.rows(explained, view, S, scales, prefix)
                facts: dict[str, Any] = {"epoch": step.epoch, "step": step.global_step, "stage": step.stage}
                facts |= {"group": group, "method": method, "view": view, "weights": step.weights}
                facts |= {"file": file, "h": small.shape[1], "w": small.shape[2]}
                journal.write("maps", **facts, rows=map_rows)

    def rows(self, explained: Explained, view: str, S: Tensor, scales: list[Any], prefix: str) -> list[dict[str, Any]]:
        """Return the line of each map in the journal."""
        target, numbers, loss = explained.targets[view], statistics(S), explained.loss()
        prob, prob_pred = explained.prob(target), explained.prob(explained.columns)
        target = explained.classes(target)
        return [
            {
                "id": f"{prefix}{index}",
                "target": int(target[i]),
                "pred": int(explained.pred[i]),
                "label": self.label(explained, i),
                "prob": float(prob[i]),
                "prob_pred": float(prob_pred[i]),
                "loss": None if loss is None else float(loss[i]),
                "lo": scales[i][0],
                "hi": scales[i][1],
                **{name: values[i].item() for name, values in numbers.items()},
            }
            for i, index in enumerate(explained.ids)
        ]

    def ends(self, method: str, S: Tensor) -> Tensor | None:
        """Return the values of the dark and the bright end of the colors; None for the range of each map."""
        if self.scale == "image":
            return None
        scales = map_scales(S.nan_to_num())
        self.tops[method] = max(self.tops.get(method, 0.0), float(scales[:, 1].max()))
        return torch.tensor([min(0.0, float(scales[:, 0].min())), self.tops[method]])

    def label(self, explained: Explained, row: int) -> int | None:
        """Return the true class of an image, None where it has no single one."""
        labels = explained.labels(row)
        return labels[0] if len(labels) == 1 else None

    def titles(self, explained: Explained, class_names: list[str] | None) -> list[str]:
        """Return the predicted class and its probability, with the true class where it is another."""
        prob, titles = explained.prob(explained.columns), []
        for i, (pred, column) in enumerate(zip(explained.pred.tolist(), explained.columns.tolist())):
            label = self.label(explained, i)
            wrong = f" ({name_of(class_names, label)})" if label is not None and label != pred else ""
            titles.append(f"{explained.caption(i, column, class_names)} {float(prob[i]):.2f}{wrong}")
        return titles

    def captions(
        self, explained: Explained, view: str, S: Tensor, context: RunContext, step: ExplanationStep
    ) -> list[str]:
        """Return the caption of each overlay."""
        numbers, target = statistics(S), explained.targets[view]
        prob, titles, captions = explained.prob(target), self.titles(explained, context.class_names), []
        for i, index in enumerate(explained.ids):
            true = [name_of(context.class_names, label) for label in explained.labels(i)]
            about = explained.caption(i, int(target[i]), context.class_names)
            parts = [f"#{index}"] if index >= 0 else []  # unknown where the loader shuffles
            parts.append(f"predicted {titles[i]}")
            if true:
                parts.append(f"true {', '.join(true)}")
            parts.append(f"shown {about} {float(prob[i]):.2f}")
            parts.append(" ".join(f"{name} {float(numbers[name][i]):.3g}" for name in ("max", "mass", "entropy")))
            parts += ["map is constant"] if numbers["degenerate"][i] else []
            parts += ["colors guessed"] if context.colors.guessed else []
            parts += [f"{step.weights} weights"] if step.weights != "raw" else []
            captions.append(" | ".join(parts))
        return captions

    def send_table(self, session: WatchSession) -> None:
        """Send the numbers of all maps as one table, once."""
        if session.run is None or not session.trainer.loggers:
            return
        journal = session.run.journal
        rows: list[list[Any]] = []
        for line in read_journal(journal.folder, journal.run).of("maps"):
            for row in line["rows"] if line["method"] in self.methods else []:
                cells = [line.get(name) for name in ("epoch", "step", "group")]
                cells += [row["id"], line["method"], line["view"]]
                rows.append(cells + [row.get(name) for name in ("label", "pred", "target", "prob", "loss", *NUMBERS)])
        logger_adapters.log_table(session.trainer, "xai/maps", COLUMNS + NUMBERS, rows[-ROWS:])

    def state_dict(self) -> dict[str, Any]:
        return {"tops": self.tops, "sent": sorted(self.sent)}

    def restore(self, saved: Saved) -> None:
        self.tops = saved.read("tops", mapping_of(read_number), {})
        sent: list[str] = saved.read("sent", list_of(read_text), [])
        self.sent = set(sent)


def as_bytes(pictures: Tensor) -> Tensor:
    """Return pictures (B, 3, H, W) in [0, 1] as uint8 (B, H, W, 3)."""
    return pictures.mul(255).round().byte().permute(0, 2, 3, 1).contiguous()
