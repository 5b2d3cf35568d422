"""Explain batches of images, and share the maps between the callbacks of one explanation step."""

import warnings
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.base import explain_prepared, full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.prepared_model import PreparedModel, prepare, prepare_model
from interpretable_training.attribution.core.state import LISTENER, StateWarning, listen
from interpretable_training.attribution.core.targets import pick_logits, take
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import annotations_of
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.callbacks.watching.explanations import Explained, padded, view
from interpretable_training.metrics.core.regions import pixels
from interpretable_training.tasks.base import TaskScores, on_cpu
from interpretable_training.tasks.network import Reading


class BatchMemo:
    """Images, logits and maps of one batch, each computed when it is first needed.

    A method that failed is stored with its error, so that all callbacks that use it count the failure.
    """

    def __init__(self) -> None:
        self.images: Tensor | None = None  # as the network got them
        self.label: Tensor | None = None
        self.columns: Tensor | None = None  # the column of the label
        self.logits: Tensor | None = None
        self.probs: Tensor | None = None
        self.ranking: Tensor | None = None
        self.followed: list[Any] = []
        self.bound: list[tuple[tuple[Any, Any], slice]] = []  # how the model is called and read, for which rows
        self.maps: dict[str, list[tuple[Attribution, Tensor | Exception]]] = {}  # by view
        self.changes: dict[str, None] = {}  # texts about state that could not be put back

    def find(self, view: str, method: Attribution) -> Tensor | Exception | None:
        """Return the maps or the error of a method, None if it did not run yet."""
        return next((result for known, result in self.maps.get(view, []) if same_method(known, method)), None)

    def lacking(self, view: str, methods: Mapping[str, Attribution]) -> dict[str, Attribution]:
        """Return the methods that did not run yet."""
        return {name: method for name, method in methods.items() if self.find(view, method) is None}

    def views(self, target: str | int) -> dict[str, Tensor]:
        """Return the explained columns by the name of the view."""
        assert self.ranking is not None
        if self.probs is not None and self.columns is None and target in ("label", "both"):
            target = "pred"  # the batch has no label of the task
        if self.probs is not None and self.ranking.shape[1] == 1 and target not in ("label", "both"):
            return {str(target): torch.zeros(len(self.ranking), dtype=torch.long, device=self.ranking.device)}
        return view(target, self.ranking, self.columns)

    def is_complete(self, methods: Mapping[str, Attribution], target: str | int) -> bool:
        """Whether all methods ran for all explained classes."""
        return self.logits is not None and not any(self.lacking(name, methods) for name in self.views(target))

    def fill(self, prepared: PreparedModel, reading: Reading, picked: Picked, methods: Any, target: str | int) -> None:
        """Compute what is missing, in passes of bounded size; image by image where scores follow a reference."""
        ready = prepare(prepared, picked.images)
        if self.logits is None:
            self.images = ready.float().cpu()
            read = self._read_together if reading.together else self._read_each
            read(prepared, reading, picked, ready)
        for name, columns in self.views(target).items():
            lacking = self.lacking(name, methods)
            results = explain_each(lacking, [(prepared.bound(*how), rows) for how, rows in self.bound], ready, columns)
            self.maps.setdefault(name, []).extend((lacking[key], result) for key, result in results.items())

    def _read_together(self, prepared: PreparedModel, reading: Reading, picked: Picked, ready: Tensor) -> None:
        """Read the scores of a batch as a whole."""
        self.bound = [((None, reading.of_batches), slice(None))]
        self.logits = torch.cat(run_in_passes(ready, lambda rows: logits_of_pass(prepared, ready[rows])))
        label = None if picked.target is None else picked.target.to(self.logits.device)
        self.label = self.columns = label.clone() if label is not None and label.is_inference() else label
        self.ranking = self.logits
        if isinstance(reading.of_batches, TaskScores):
            with torch.no_grad():
                of_task = reading.of_batches.prob
                self.probs = torch.cat(run_in_passes(ready, lambda rows: of_task(prepared.run(ready[rows]))))
                self.ranking = reading.task.ranking(self.logits)

    @torch.no_grad()
    def _read_each(self, prepared: PreparedModel, reading: Reading, picked: Picked, ready: Tensor) -> None:
        """Read the scores of images one by one, with what they follow."""
        rows: list[Any] = []
        for i in range(len(ready)):
            bound, followed, example = reading.bind(prepared, picked.rows(slice(i, i + 1)))
            assert isinstance(bound.output, TaskScores)
            output = bound.run(ready[i : i + 1])
            scores, probs = bound.output(output), bound.output.prob(output)
            rows.append((scores, probs, reading.task.ranking(scores, followed), reading.task.label(followed, example)))
            self.bound.append(((bound.call, bound.output), slice(i, i + 1)))
            self.followed.append(on_cpu(followed))
        self.logits, self.probs = (padded([row[k] for row in rows]) for k in (0, 1))
        self.ranking = padded([row[2] for row in rows], -torch.inf)
        if any(row[3] is not None for row in rows):
            columns = self.ranking.argmax(1).tolist()
            labels = [-1 if row[3] is None else reading.task.class_of(row[3], f) for row, f in zip(rows, self.followed)]
            self.columns = torch.tensor([c if row[3] is None else row[3] for row, c in zip(rows, columns)])
            self.columns, self.label = self.columns.to(self.logits.device), torch.tensor(labels)


class ExplanationMemo:
    """Memos of the batches of the current explanation step."""

    def __init__(self) -> None:
        self.step: Hashable = None
        self.batches: dict[Hashable, BatchMemo] = {}

    def batch(self, step: Hashable, key: Hashable) -> BatchMemo:
        """Return the memo of a batch; that of another step is dropped first."""
        if step != self.step:
            self.clear()
        self.step = step
        return self.batches.setdefault(key, BatchMemo())

    def clear(self) -> None:
        """Free the memory."""
        self.step = None
        self.batches.clear()


def same_method(one: Attribution, other: Attribution) -> bool:
    """Whether two methods make the same maps: equal options, or the same object where these do not compare."""
    if one is other:
        return True
    options = getattr(type(one), "__dataclass_fields__", {})
    if type(one) is not type(other) or set(vars(one)) - set(options):  # more than its options: not comparable
        return False
    try:
        return bool(one == other)
    except (RuntimeError, ValueError, TypeError):  # tensors and arrays among the options
        return False


def explain_batch(
    context: Any, ids: list[int], picked: Picked, methods: Mapping[str, Attribution], target: str | int, memo: BatchMemo
) -> Explained:
    """Explain a batch of a panel; where it has no labels "label" is the predicted class.

    Args:
        context: the RunContext.
        ids: index of each image.
        picked: the batch, on the device.
        methods: name -> method.
        target: the class that is explained.
        memo: the logits and maps of this batch so far.
    """
    explained = explain_images(methods, context.reading, picked, target, ids, memo)
    with suppress(ValueError, TypeError):  # annotations that fit no image cost nothing but what needs them
        explained.inside = object_pixels(picked)
    return explained


def object_pixels(picked: Picked) -> Tensor | None:
    """Return the pixels of the objects (B, H, W) of a batch with masks or boxes."""
    annotations = annotations_of(picked.rest)
    if "mask" not in annotations and "boxes" not in annotations:
        return None
    return pixels(annotations, "auto", picked.images[:, 0].shape).cpu()


def explain_images(
    methods: Mapping[str, Attribution],
    reading: Reading,
    picked: Picked,
    target: str | int,
    ids: list[int] | None = None,
    memo: BatchMemo | None = None,
) -> Explained:
    """Explain images by all methods; a method that fails does not stop the others."""
    memo = BatchMemo() if memo is None else memo
    together = reading.of_batches if reading.together else reading.output
    if target == "label" and picked.target is None and reading.together:
        target = "pred"
    try:
        if not memo.is_complete(methods, target):
            with (
                listen(lambda text: memo.changes.setdefault(text)),
                prepare_model(reading.network, together) as prepared,
            ):
                memo.fill(prepared, reading, picked, methods, target)
    finally:
        for text in memo.changes:  # each callback reports them, whichever computed the maps
            report_change(text)
    assert memo.images is not None
    assert memo.logits is not None
    ids = ids or list(range(len(picked.images)))
    probs, ranking = (None if t is None else t.float().cpu() for t in (memo.probs, memo.ranking))
    label = None if memo.label is None else memo.label.cpu()
    read: dict[str, Any] = {"probs": probs, "ranking": ranking, "followed": memo.followed} if probs is not None else {}
    explained = Explained(ids, memo.images, label, memo.logits.float().cpu(), reading.task, **read)
    for name, classes in memo.views(target).items():
        explained.targets[name] = classes.cpu()
        results = {key: memo.find(name, method) for key, method in methods.items()}
        explained.maps[name] = {key: S for key, S in results.items() if isinstance(S, Tensor)}
        for key, result in results.items():
            if isinstance(result, Exception):
                explained.errors[key] = Failure(result, key)
            elif result is not None and not bool(result.isfinite().all()):
                explained.errors[key] = Failure(ValueError("maps hold values that are not numbers"), key)
    return explained


def report_change(text: str) -> None:
    """Report state that could not be put back, to the listener or as a warning."""
    listener = LISTENER.get()
    listener(text) if listener else warnings.warn(text, StateWarning, stacklevel=3)


def explain_each(
    methods: Mapping[str, Attribution], bound: list[tuple[PreparedModel, slice]], images: Tensor, columns: Tensor
) -> dict[str, Tensor | Exception]:
    """Return raw maps of all methods, which share passes, or each alone where that fails, with the errors."""
    with suppress(Exception):  # run alone below, each method shows whether it fails
        if len(methods) > 1:
            return {**explain_together(methods, bound, images, columns)}
    results: dict[str, Tensor | Exception] = {}
    for name, method in methods.items():
        try:
            results.update(explain_together({name: method}, bound, images, columns))
        except Exception as error:
            results[name] = error
    return results


def explain_together(
    methods: Mapping[str, Attribution], bound: list[tuple[PreparedModel, slice]], images: Tensor, columns: Tensor
) -> dict[str, Tensor]:
    """Return raw maps of all methods, computed in passes that memory allows."""
    parts: list[dict[str, Tensor]] = []
    for prepared, part in bound:
        x, target = images[part], columns[part]

        def explain_rows(
            rows: slice, prepared: Any = prepared, x: Tensor = x, target: Any = target
        ) -> dict[str, Tensor]:
            maps = explain_prepared(dict(methods), prepared, x[rows], take(target, rows))
            return {name: full(S.detach()).cpu() for name, S in maps.items()}

        parts += run_in_passes(x, explain_rows)
    return {name: torch.cat([part[name] for part in parts]) for name in methods}


def run_in_passes(images: Tensor, run: Callable[[slice], Any]) -> list[Any]:
    """Return what `run` returns for slices of the images, as many rows at once as memory allows."""
    parts: list[Any] = []
    in_chunks(lambda rows: parts.append(run(rows)), len(images), None, images)
    return parts


def logits_of_pass(prepared: PreparedModel, images: Tensor) -> Tensor:
    """Return logits (B, N) without a graph."""
    with torch.no_grad():
        return pick_logits(prepared.run(images), prepared.output)
