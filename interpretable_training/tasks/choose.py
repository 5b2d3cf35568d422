"""Choose the task from what a network returns, and refuse in words what no task reads."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from interpretable_training.attribution.core.targets import pick_logits
from interpretable_training.batches.read import LABEL_KEYS, Picked

from .base import Task
from .classes import Classification, MultiLabel, Regression
from .detection import Detection, is_listed
from .embedding import Embedding
from .outputs import entry_of, in_words
from .segmentation import Segmentation

TASKS: dict[str, type[Task]] = {
    kind.name: kind for kind in (Classification, MultiLabel, Regression, Segmentation, Detection, Embedding)
}
EMBEDDINGS = ("image_embeds", "embedding", "embeddings", "pooler_output")
WAY_OUT = "pass output= with the part that is explained, task= with one of {}, or a Task of your own (docs/tasks.md)."


def task_named(task: str | Task) -> Task | None:
    """Return the task of a name, None for "auto"; a task is returned as it is.

    >>> task_named("segmentation").name
    'segmentation'
    """
    if isinstance(task, Task):
        return task
    if task == "auto":
        return None
    if not isinstance(task, str) or task not in TASKS:
        got = f"the class {task.__name__}; write {task.__name__}()" if isinstance(task, type) else repr(task)
        raise ValueError(f"expected task to be 'auto', one of {list(TASKS)} or an object derived from Task, got {got}.")
    return TASKS[task]()


def choose_task(output: Any, picked: Picked, multilabel: bool | None = None) -> Task:
    """Return the task that an output fits, for a batch; raise a ValueError in words where there is none.

    >>> choose_task(torch.zeros(4, 5, 8, 8), Picked(torch.zeros(4, 3, 8, 8), None, None, None, {})).name
    'segmentation'
    """
    if is_listed(output) or (hasattr(output, "pred_boxes") and hasattr(output, "logits")):
        return Detection()
    named = not isinstance(output, Tensor) and entry_of(output, *EMBEDDINGS) is not None
    if named and entry_of(output, "logits") is None:
        return Embedding()
    values = entry_of(output, "logits", "output", "out")
    values = output[0] if values is None and isinstance(output, tuple) and output else values
    if isinstance(values, Tensor) and values.is_complex():
        raise ValueError(f"expected real numbers, got {in_words(values)}; pass output= with their magnitude.")
    if isinstance(values, Tensor) and values.ndim == 4 and values.is_floating_point():
        if values.shape[1:] == picked.images.shape[1:] and not _has_class_masks(picked):
            raise _unknown(f"{in_words(values)}, as large as the images and without masks in the batch")
        return Segmentation()
    try:
        logits = pick_logits(output)
    except (TypeError, ValueError) as error:
        raise _unknown(in_words(output)) from error
    return _of_numbers(logits, picked, multilabel)


def _of_numbers(values: Tensor, picked: Picked, multilabel: bool | None) -> Task:
    """Return the task of numbers (B, N)."""
    target = picked.target
    sizes = [tuple(values.shape), (len(values),)] if values.shape[1] == 1 else [tuple(values.shape)]
    measured = target is not None and target.is_floating_point() and tuple(target.shape) in sizes
    if target is not None and measured and not bool(((target == 0) | (target == 1)).all()):
        return Regression()
    several = target is not None and target.ndim == 2
    if several if multilabel is None else multilabel:
        return MultiLabel()
    if picked.target is None and _has_numbers(picked, values):
        return Regression()
    return Embedding() if has_unit_norm(values) or _has_views(picked) else Classification()


def has_unit_norm(values: Tensor) -> bool:
    """Whether all rows have length one and hold negative numbers, as normalized embeddings have.

    >>> has_unit_norm(torch.tensor([[0.6, -0.8, 0.0]]))
    True
    """
    norms = values.detach().float().norm(dim=1)
    negative = bool((values < 0).any())
    return values.shape[1] > 2 and negative and bool(torch.allclose(norms, torch.ones_like(norms), atol=1e-3))


def _has_views(picked: Picked) -> bool:
    """Whether a batch without labels holds the images twice, as those of self-supervised training do."""
    twice = [v for v in picked.rest.values() if isinstance(v, Tensor) and v.shape == picked.images.shape]
    return picked.target is None and any(v.is_floating_point() for v in twice)


def _has_class_masks(picked: Picked) -> bool:
    """Whether the batch holds a class for each pixel."""
    size = picked.images.shape[2:]
    values = [picked.target, *picked.rest.values()]
    return any(isinstance(v, Tensor) and v.shape[-2:] == size and not v.is_floating_point() for v in values)


def _has_numbers(picked: Picked, values: Tensor) -> bool:
    """Whether the batch has floating point labels of the size of the output."""
    for name, label in picked.rest.items():
        if isinstance(label, Tensor) and label.is_floating_point() and (name in LABEL_KEYS or name == "1"):
            sizes = [(len(picked.images),), (len(picked.images), 1)] if values.shape[1] == 1 else []
            if tuple(label.shape) in [*sizes, (len(picked.images), values.shape[1])]:
                return True
    return False


def _unknown(got: str) -> ValueError:
    return ValueError(
        "expected class scores (B, N), masks (B, C, H, W), boxes or embeddings from the network, got "
        f"{got}; {WAY_OUT.format(list(TASKS))}"
    )


def doubts(task: Task, output: Any, target: Tensor | None, class_names: Sequence[str] | None) -> list[str]:
    """Return what speaks against the task, in words.

    >>> doubts(Classification(), torch.zeros(2, 128), torch.tensor([3, 9]), None)
    ["128 outputs for labels up to 9: if these are embeddings, pass task='embedding'"]
    """
    if not isinstance(task, Classification):
        return []
    N = task.scores(output).shape[1]
    classes, lines = max(N, 2), []
    if target is not None and target.ndim == 1 and len(target):
        top = int(target.max())
        if top >= classes:
            lines.append(f"label {top} for {classes} classes: pass label_key= with other labels or label_key=False")
        elif class_names is None and classes >= 32 and classes > 8 * (top + 1):
            lines.append(f"{N} outputs for labels up to {top}: if these are embeddings, pass task='embedding'")
    if class_names is not None and classes != len(class_names):
        lines.append(f"{N} outputs for {len(class_names)} class names; pass class_names= or, for embeddings, task=")
    return lines
