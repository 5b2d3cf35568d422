"""Explain batches of images, and share the maps between the callbacks of one explanation step."""

import warnings
from collections.abc import Callable, Hashable, Mapping
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training.attribution import Attribution
from interpretable_training.attribution.core.base import explain_prepared, full
from interpretable_training.attribution.core.batching import in_chunks
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model
from interpretable_training.attribution.core.state import LISTENER, StateWarning, listen
from interpretable_training.attribution.core.targets import pick_logits, take
from interpretable_training.batches.read import Picked
from interpretable_training.batches.source import annotations_of
from interpretable_training.callbacks.watching.errors import Failure
from interpretable_training.callbacks.watching.explanations import Explained, view
from interpretable_training.metrics.core.regions import pixels


class BatchMemo:
    """Images, logits and maps of one batch, each computed when it is first needed.

    A method that failed is stored with its error, so that all callbacks that use it count the failure.
    """

    def __init__(self) -> None:
        self.images: Tensor | None = None  # as the network got them
        self.label: Tensor | None = None
        self.logits: Tensor | None = None
        self.maps: dict[str, list[tuple[Attribution, Tensor | Exception]]] = {}  # by view
        self.changes: dict[str, None] = {}  # texts about state that could not be put back

    def find(self, view: str, method: Attribution) -> Tensor | Exception | None:
        """Return the maps or the error of a method, None if it did not run yet."""
        return next((result for known, result in self.maps.get(view, []) if same_method(known, method)), None)

    def lacking(self, view: str, methods: Mapping[str, Attribution]) -> dict[str, Attribution]:
        """Return the methods that did not run yet."""
        return {name: method for name, method in methods.items() if self.find(view, method) is None}

    def is_complete(self, methods: Mapping[str, Attribution], target: str | int) -> bool:
        """Whether all methods ran for all explained classes."""
        if self.logits is None:
            return False
        return not any(self.lacking(name, methods) for name in view(target, self.logits, self.label))

    def fill(
        self, prepared: PreparedModel, images: Tensor, label: Tensor | None, methods: Any, target: str | int
    ) -> None:
        """Compute what is missing, in passes of bounded size."""
        ready = prepare(prepared, images)
        if self.logits is None:
            logits = torch.cat(run_in_passes(ready, lambda rows: logits_of_pass(prepared, ready[rows])))
            label = None if label is None else label.to(logits.device)
            self.label = label.clone() if label is not None and label.is_inference() else label
            self.images, self.logits = ready.float().cpu(), logits
        for name, classes in view(target, self.logits, self.label).items():
            lacking = self.lacking(name, methods)
            results = explain_each(lacking, prepared, ready, classes)
            self.maps.setdefault(name, []).extend((lacking[key], result) for key, result in results.items())


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
    target = "pred" if target == "label" and picked.target is None else target
    options = context.options.output, context.multilabel, ids, memo
    explained = explain_images(methods, context.network, picked.images, picked.target, target, *options)
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
    network: nn.Module,
    images: Tensor,
    label: Tensor | None,
    target: str | int,
    output: Output = None,
    multilabel: bool = False,
    ids: list[int] | None = None,
    memo: BatchMemo | None = None,
) -> Explained:
    """Explain images by all methods; a method that fails does not stop the others."""
    memo = BatchMemo() if memo is None else memo
    try:
        if not memo.is_complete(methods, target):
            with listen(lambda text: memo.changes.setdefault(text)), prepare_model(network, output) as prepared:
                memo.fill(prepared, images, label, methods, target)
    finally:
        for text in memo.changes:  # each callback reports them, whichever computed the maps
            report_change(text)
    assert memo.images is not None
    assert memo.logits is not None
    label = None if memo.label is None else memo.label.cpu()
    ids = ids or list(range(len(images)))
    explained = Explained(ids, memo.images, label, memo.logits.float().cpu(), multilabel)
    for name, classes in view(target, memo.logits, memo.label).items():
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
    methods: Mapping[str, Attribution], prepared: PreparedModel, images: Tensor, classes: Tensor
) -> dict[str, Tensor | Exception]:
    """Return raw maps of all methods, which share passes, or each alone where that fails, with the errors."""
    with suppress(Exception):  # run alone below, each method shows whether it fails
        if len(methods) > 1:
            return {**explain_together(methods, prepared, images, classes)}
    results: dict[str, Tensor | Exception] = {}
    for name, method in methods.items():
        try:
            results.update(explain_together({name: method}, prepared, images, classes))
        except Exception as error:
            results[name] = error
    return results


def explain_together(
    methods: Mapping[str, Attribution], prepared: PreparedModel, images: Tensor, classes: Tensor
) -> dict[str, Tensor]:
    """Return raw maps of all methods, computed in passes that memory allows."""

    def explain_rows(rows: slice) -> dict[str, Tensor]:
        maps = explain_prepared(dict(methods), prepared, images[rows], take(classes, rows))
        return {name: full(S.detach()).cpu() for name, S in maps.items()}

    parts = run_in_passes(images, explain_rows)
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
