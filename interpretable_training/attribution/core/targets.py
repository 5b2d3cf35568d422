"""Choose the number to explain: the logit (or probability) of one class per image.

`target` is None or "pred" (the predicted class), "least" (the least likely class), an int (one class for all images), a
list or tensor (B,) of classes, "topk:3" or a tensor (B, T) for several maps per image, or a callable from the output of
the model to scores (B,). Callers replace "label" by the labels. A model with one logit is explained by that logit for
class 1 and by its negative for class 0.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

Score = Literal["logit", "prob", "logprob", "loss", "sigmoid"]
Resolved = Tensor | Callable[[Any], Tensor]  # one class per image, or a callable from the output to scores
Target = None | int | str | Sequence[int] | Resolved
LOGIT_KEYS = ("logits", "output", "out")


def pick_logits(output: Any, pick: int | str | Callable[[Any], Tensor] | None = None) -> Tensor:
    """Return the logits (B, N) in the output of a model: a tensor, dict, tuple or object with attributes."""
    logits = entry_at(output, pick)
    if not isinstance(logits, Tensor):
        raise TypeError(
            f"expected logits in the model's output, got {_describe(output)}; "
            "pass output= with the key, the index or a callable that returns them."
        )
    if not logits.is_floating_point():
        raise TypeError(
            f"expected logits that are floating point numbers, got {logits.dtype}; pass output= with those."
        )
    if logits.ndim == 1:
        logits = logits[:, None]
    if logits.ndim != 2:
        raise ValueError(
            f"expected logits (B, N), got {tuple(logits.shape)}; pass output= with a callable that returns (B, N), "
            "for example the mean over positions."
        )
    return logits


def entry_at(output: Any, pick: int | str | Callable[[Any], Any] | None) -> Any:
    """Return the part of an output under a key, an index, an attribute or by a callable; by default its logits."""
    if callable(pick):
        return pick(output)
    if pick is not None and (isinstance(pick, bool) or not isinstance(pick, (str, int))):
        raise TypeError(f"expected output= as a key, an index or a callable, got {pick!r}.")
    if isinstance(output, Tensor):
        if pick is not None:  # an index would select the logits of one image
            raise TypeError(
                f"expected a model that returns several things with output={pick!r}, got a tensor "
                f"{tuple(output.shape)}; leave out output= (some models return a tensor in eval mode only)."
            )
        return output
    if isinstance(pick, int):
        try:
            return output[pick]
        except (KeyError, IndexError, TypeError):
            return None
    names = LOGIT_KEYS if pick is None else (pick,)
    for name in names:
        if isinstance(output, dict) and name in output:
            return output[name]
        if isinstance(getattr(output, name, None), Tensor):
            return getattr(output, name)
    values = list(output.values()) if isinstance(output, dict) else output
    if pick is None and isinstance(values, (tuple, list)) and values:
        return values[0] if isinstance(output, tuple) or len(values) == 1 else None
    return None


def _describe(output: Any) -> str:
    if isinstance(output, dict):
        return f"a dict with the keys {list(output)}"
    if isinstance(output, (tuple, list)):
        return f"a {type(output).__name__} of {[type(value).__name__ for value in output]}"
    return type(output).__name__


def as_classes(target: int | Sequence[int] | Tensor, like: Tensor) -> Tensor:
    """Return class indices as a tensor (B,), or (B, T) for T maps per image; B and the device are those of `like`."""
    try:
        classes = torch.as_tensor(target, device=like.device)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TypeError(f"expected class indices as target, got {target!r:.200}.") from error
    if classes.is_floating_point() or classes.is_complex() or classes.dtype == torch.bool:
        raise TypeError(f"expected class indices as target, got {classes.dtype}.")
    if classes.layout != torch.strided or classes.is_quantized:
        raise TypeError(f"expected class indices as target in a dense tensor, got {classes.layout}.")
    classes = (classes.clone() if classes.is_inference() else classes).long()
    if classes.ndim == 0:
        classes = classes.expand(len(like))
    if classes.ndim > 2 or len(classes) != len(like):
        raise ValueError(
            f"expected one target per image, got {len(classes)} targets for {len(like)} images, shape "
            f"{tuple(classes.shape)}; pass several targets per image as (B, T)."
        )
    if not classes.numel():
        raise ValueError(f"expected at least one target per image, got {tuple(classes.shape)}.")
    return classes


def by_rank(policy: str, logits: Tensor) -> Tensor:
    """Return the classes that a policy selects: (B,), or (B, K) for "topk:K"."""
    B, N = logits.shape
    name, _, k = policy.partition(":")
    top = int(k) if name == "topk" and k.isdecimal() else 0
    if policy not in ("pred", "least") and not 1 <= top <= N:
        raise ValueError(
            f"expected target None, 'pred', 'least', 'topk:K' with K up to {N}, class indices or a callable, "
            f"got {policy!r}" + ("; pass the labels themselves." if policy == "label" else ".")
        )
    if N == 1:
        return torch.ones((B, 1) if top else (B,), dtype=torch.long, device=logits.device)
    if top:
        return logits.topk(top, 1).indices
    return logits.argmax(1) if policy == "pred" else logits.argmin(1)


@dataclass
class ClassSpan:
    """The lowest and the highest class of a call, read from the device once and then compared as numbers."""

    low: int = 0
    high: int = -1  # below `low`: no class is known
    last: Tensor | None = None  # the classes read last

    def read(self, classes: Tensor) -> None:
        """Extend the span to these classes; raise an error for negative ones, which often mean "no class"."""
        low, high = torch.stack(classes.aminmax()).tolist()  # synchronizes with the device
        if low < 0:  # Python would count from the end
            raise ValueError(f"expected a target from 0 to the number of logits - 1, got {low}; classes count from 0.")
        self.low, self.high = min(low, self.low if self.high >= 0 else low), max(high, self.high)
        self.last = classes

    def check(self, N: int) -> None:
        """Raise an error for classes that a model with N logits does not have."""
        last = max(N, 2) - 1  # one logit stands for two classes
        if self.high > last:
            classes = f"{self.low}" if self.low == self.high else f"{self.low} to {self.high}"
            hint = " for one number that is no class pass target='pred'." if N == 1 else " classes count from 0."
            raise ValueError(
                f"expected a target from 0 to {last}, since the model has {N} logits, got {classes};{hint}"
            )


def in_range(target: Tensor, N: int, span: ClassSpan | None = None) -> None:
    """Raise an error for classes that a model with N logits does not have; a `span` of them saves reading them."""
    if span is None or span.high < 0:
        span = ClassSpan()
        span.read(target)
    span.check(N)


def score_of(logits: Tensor, target: Tensor, score: Score = "logit", span: ClassSpan | None = None) -> Tensor:
    """Return the explained score of each image, (B,), for logits (B, N) and target (B,).

    With a `span` that includes the classes they are not read from the device.
    """
    if len(logits) != len(target):
        raise ValueError(f"expected one row of logits per target, got {len(logits)} rows for {len(target)} targets.")
    in_range(target, logits.shape[1], span)
    if score != "logit" and logits.dtype in (torch.float16, torch.bfloat16):
        logits = logits.float()  # probabilities near 1 have few bits left in half precision
    if logits.shape[1] == 1:
        logits = torch.cat([-logits, logits], 1) if score in ("logit", "sigmoid") else _two_classes(logits)
    if score in ("prob", "logprob", "loss"):
        logprob = logits.log_softmax(1)
        logits = {"prob": logprob.exp(), "logprob": logprob, "loss": -logprob}[score]
    elif score == "sigmoid":
        logits = logits.sigmoid()
    return logits.gather(1, target[:, None])[:, 0]


def _two_classes(logit: Tensor) -> Tensor:
    return torch.cat([torch.zeros_like(logit), logit], 1)  # softmax of (0, y) is the sigmoid of y


class OutputScores(ABC):
    """A callable for `output=` whose columns (n, N) are not the logits of a softmax: a task says what they are."""

    @abstractmethod
    def __call__(self, output: Any) -> Tensor:
        """Return the scores (n, N) in the output of the model."""

    @abstractmethod
    def prob(self, output: Any) -> Tensor:
        """Return the same as numbers in [0, 1], (n, N)."""

    @abstractmethod
    def classes(self, policy: str, scores: Tensor) -> Tensor:
        """Return the columns that a policy selects, as `by_rank`."""

    @property
    @abstractmethod
    def memo_key(self) -> str:
        """Return a name that is equal for scores that are read from the same layers."""

    @abstractmethod
    def dense(self, output: Any) -> int | None:
        """Return the channels of an output that is itself a grid, which has no last layer to explain; None else."""

    def score(self, output: Any, target: Tensor, score: Score, span: ClassSpan | None = None) -> Tensor:
        """Return the explained score of each image, (n,); `span` is that of the classes."""
        values = self(output) if score == "logit" else self.prob(output)
        if score in ("logprob", "loss"):
            values = values.clamp(min=torch.finfo(values.dtype).tiny).log() * (1 if score == "logprob" else -1)
        in_range(target, max(values.shape[1], 2), span)
        return values.gather(1, target[:, None])[:, 0]


def take(target: Resolved, rows: Tensor | slice) -> Resolved:
    """Return the resolved target of rows of the batch; a callable is the same for every row."""
    return target[rows] if isinstance(target, Tensor) else target


def class_weights(W: Tensor, target: Tensor) -> Tensor:
    """Return rows of a linear head W (N, K) as `score_of` picks logits, (B, K); the classes must be checked before."""
    return (torch.cat([-W, W]) if len(W) == 1 else W)[target]


def check_scores(scores: Any, output: Any, rows: int, gradient: bool = True) -> Tensor:
    """Return the scores (rows,) of a target callable for `output`; raise an error unless it has one per image.

    If `output` has a gradient the scores need one, unless `gradient` is False: the map would be zero everywhere.
    """
    if not isinstance(scores, Tensor) or scores.shape != (rows,):
        got = f"shape {tuple(scores.shape)}" if isinstance(scores, Tensor) else type(scores).__name__
        raise ValueError(f"expected a target callable that returns one score per image, ({rows},), got {got}.")
    if not scores.is_floating_point():
        raise TypeError(f"expected a target callable that returns floating point scores, got {scores.dtype}.")
    tensors = list(tensors_in(output))
    if tensors and scores.device != tensors[0].device:
        raise ValueError(f"expected a target callable with scores on {tensors[0].device}, got some on {scores.device}.")
    if gradient and torch.is_grad_enabled() and not scores.requires_grad and any(t.requires_grad for t in tensors):
        raise ValueError(
            "expected a target callable whose scores depend on the model's output, got scores without a gradient; "
            "leave out detach(), argmax() and what rounds."
        )
    return scores


def tensors_in(output: Any) -> Iterator[Tensor]:
    """Yield the tensors of an output: in containers, and in attributes of an object that is no container."""
    if isinstance(output, Tensor):
        yield output
    elif isinstance(output, (dict, tuple, list)):
        for value in output.values() if isinstance(output, dict) else output:
            yield from tensors_in(value) if isinstance(value, (Tensor, dict, tuple, list)) else ()
    elif hasattr(output, "__dict__"):
        yield from tensors_in(vars(output))
