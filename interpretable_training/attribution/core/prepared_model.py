"""Prepare a model to be explained, and restore it afterwards, also after an error.

Inside `prepare_model` the model runs in eval mode, without parameter gradients, outside inference mode, uncompiled. At
the end flags, global random generators and the state of the model (see `state`) are restored. `.grad` is not written.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from ._compat import buffers_in, compiler_is_imported, original_of, parameters_in
from .generators import same_generators
from .scoring import Scoring
from .state import Snapshot, same_state
from .targets import (
    ClassSpan,
    OutputScores,
    Resolved,
    Score,
    Target,
    as_classes,
    by_rank,
    check_scores,
    pick_logits,
    score_of,
)

FAILURES = (RuntimeError, TypeError, ValueError, IndexError, NotImplementedError, AssertionError)  # of a forward pass
DEVICES = ("cpu", "cuda")  # device types with autocast, which a caller may use
Output = int | str | Callable[[Any], Tensor] | None


@dataclass(frozen=True)
class PreparedModel:
    """A prepared model: called with images (B, C, ...) it returns logits (B, N)."""

    module: nn.Module
    output: Output = None
    create_graph: bool = False
    autocast: tuple[tuple[str, torch.dtype], ...] = ()
    state: Snapshot = field(default_factory=Snapshot)  # saved before the first pass
    rows: list[int] = field(default_factory=lambda: [0])  # number of images of the last `run`
    span: ClassSpan = field(default_factory=ClassSpan)  # of the resolved classes
    scoring: Scoring = field(default_factory=Scoring)  # of `run_fast`
    call: Callable[[nn.Module, Tensor], Any] | None = None  # how the module is called, where it needs more than images

    def bound(self, call: Callable[[nn.Module, Tensor], Any] | None, output: Output) -> "PreparedModel":
        """Return the same model, called and read in another way."""
        return replace(self, call=call, output=output, span=ClassSpan(), rows=[0])

    def __call__(self, images: Tensor) -> Tensor:
        return pick_logits(self.run(images), self.output)

    def run(self, images: Tensor) -> Any:
        """Return the output of the module for a copy of the images, since its first layer may be in-place.

        The module runs under the autocast of the caller; maps are computed without autocast.
        """
        with ExitStack() as stack:
            for device, dtype in self.autocast:
                stack.enter_context(torch.autocast(device, dtype))
            self.rows[0] = len(images)
            try:
                return self.module(images.clone()) if self.call is None else self.call(self.module, images.clone())
            except FAILURES as error:
                if type(error) not in FAILURES or str(error).startswith("expected"):  # raised by a hook of this package
                    raise
                raise type(error)(
                    f"expected a model that runs on images {tuple(images.shape)} of {images.dtype}, got an error from "
                    f"{type(self.module).__name__}: {error}"
                ) from error

    def run_fast(self, images: Tensor) -> Any:
        """Return `run` up to rounding: channels last, and without graph with batch norm folded (see `scoring`)."""
        self.rows[0] = len(images)  # compiled passes do not call `run`
        return self.scoring.run(self.module, self.run, images, self.call is None and not self.autocast)

    def resolve(self, images: Tensor, target: Target) -> Resolved:
        """Return one class per image for `target`; needs a forward pass only if it depends on the logits."""
        if callable(target):
            return target
        if target is None or isinstance(target, str):
            with torch.no_grad():
                return self._by_rank(target, self.logits_in(self.run(images)))
        return self._classes(target, images)

    def resolve_in(self, output: Any, target: Target) -> Resolved:
        """Return one class per image for `target`, given the output of the module."""
        if callable(target):
            return target
        logits = self.logits_in(output)
        if target is None or isinstance(target, str):
            return self._by_rank(target, logits.detach())
        classes = self._classes(target, logits)
        self.span.check(logits.shape[1])
        return classes

    def confirm_in(self, output: Any, classes: Tensor) -> Tensor:
        """Return resolved classes; raise an error if the output of the module has no logits for them."""
        self.span.check(self.logits_in(output).shape[1])
        return classes

    def _by_rank(self, policy: str | None, logits: Tensor) -> Tensor:
        self.span.high = max(self.span.high, 0)  # ranked classes exist in the model
        policy = "pred" if policy is None else policy
        return self.output.classes(policy, logits) if isinstance(self.output, OutputScores) else by_rank(policy, logits)

    def _classes(self, target: int | Sequence[int] | Tensor, like: Tensor) -> Tensor:
        """Return given classes as a tensor; their range is read from the device the first time."""
        if isinstance(target, Tensor) and target is self.span.last:
            return target
        classes = as_classes(target, like)
        self.span.read(classes)
        return classes

    def logits_in(self, output: Any) -> Tensor:
        """Return the logits in the output of the module; raise an error unless each image of the last run has a row."""
        logits = pick_logits(output, self.output)
        if len(logits) != self.rows[0]:
            raise ValueError(
                f"expected one row of logits per image, got {tuple(logits.shape)} for {self.rows[0]} images; "
                "pass output= with what picks (B, N)."
            )
        return logits

    def score(self, images: Tensor, target: Resolved, score: Score = "logit") -> Tensor:
        """Return the explained score of each image, (B,); `target` is resolved."""
        return self.score_in(self.run(images), target, score)

    def score_in(self, output: Any, target: Resolved, score: Score = "logit") -> Tensor:
        """Return the explained score in the output of the module, (B,); `target` is resolved."""
        if isinstance(self.output, OutputScores) and not callable(target):
            return self.output.score(output, target, score, self.span)
        if not callable(target):
            return score_of(pick_logits(output, self.output), target, score, self.span)
        return check_scores(target(output), output, self.rows[0])


@contextmanager
def prepare_model(
    model: nn.Module,
    output: Output = None,
    keep_mode: bool = False,
    create_graph: bool = False,
    scoring: Scoring | None = None,
) -> Iterator[PreparedModel]:
    """Yield the prepared model, which returns logits; restore `model` afterwards.

    Args:
        output: which part of the model's output are the logits: a key, an index, an attribute or a callable.
        keep_mode: leave dropout and batch norm in the mode they are in instead of eval mode.
        create_graph: keep the parameters in the graph, for a loss on the map.
        scoring: that of earlier calls with the same weights.
    """
    module = unwrap(model)
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))
        stack.enter_context(torch.enable_grad())
        if compiler_is_imported():
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(same_generators())
        state = stack.enter_context(same_state(module))
        stack.enter_context(_no_inference_tensors(module))
        stack.enter_context(_same_flags(module, keep_mode, create_graph))
        autocast = tuple((d, torch.get_autocast_dtype(d)) for d in DEVICES if torch.is_autocast_enabled(d))
        for device, _ in autocast:
            stack.enter_context(torch.autocast(device, enabled=False))
        yield PreparedModel(module, output, create_graph, autocast, state=state, scoring=scoring or Scoring())


def unwrap(model: nn.Module) -> nn.Module:
    """Return the module inside DistributedDataParallel, DataParallel and torch.compile: no collectives, no prefixes."""
    if not isinstance(model, nn.Module):
        raise TypeError(f"expected a torch.nn.Module as model, got {type(model).__name__}.")
    parallel = (nn.parallel.DistributedDataParallel, nn.DataParallel)
    while isinstance(model, parallel) or original_of(model) is not None:
        inner = model.module if isinstance(model, parallel) else original_of(model)
        assert isinstance(inner, nn.Module)
        model = inner
    return model


def prepare(prepared: PreparedModel, images: Tensor) -> Tensor:
    """Return `images` in the dtype of the module, outside inference mode and outside any graph."""
    if isinstance(images, Tensor) and (images.is_nested or images.layout != torch.strided):
        layout = "a nested tensor" if images.is_nested else str(images.layout)
        raise ValueError(f"expected images of one size in a dense tensor, got {layout}; stack them.")
    if not isinstance(images, Tensor) or images.ndim < 3:
        kind = f"shape {tuple(images.shape)}" if isinstance(images, Tensor) else type(images).__name__
        raise ValueError(f"expected images (B, C, H, W) or signals (B, C, T) as a tensor, got {kind}.")
    if not images.is_floating_point():
        raise TypeError(f"expected floating point images, normalized as in training, got {images.dtype}.")
    if len(images) == 0:
        raise ValueError("expected at least one image, got an empty batch.")
    if not images.numel():
        raise ValueError(f"expected images with channels and pixels, got shape {tuple(images.shape)}.")
    weight = next((p for p in prepared.module.parameters() if p.is_floating_point()), images)
    if weight.device != images.device:
        raise ValueError(
            f"expected images on the model's device {weight.device}, got {images.device}; move one of them."
        )
    if images.device.type not in dict(prepared.autocast):  # autocast casts by itself
        images = images.to(weight.dtype)
    return images.clone() if images.is_inference() else images.detach()


@contextmanager
def _same_flags(module: nn.Module, keep_mode: bool, create_graph: bool) -> Iterator[None]:
    # Set flags directly: `train()` of a subclass may do more than set a flag.
    training = [(m, m.training) for m in module.modules()]
    learned = [] if create_graph else [p for p in module.parameters() if p.requires_grad]
    evaluated = [m for m, flag in training if not (keep_mode and flag)]
    recurrent = [(m, m.dropout) for m in evaluated if isinstance(m, nn.RNNBase) and _is_plain(m)]
    try:
        for m in evaluated:
            m.training = False
        # cuDNN has gradients of recurrent layers in train mode only; without dropout the result is that of eval mode.
        for layer, _ in recurrent:
            layer.training, layer.dropout = True, 0.0
        for p in learned:
            p.requires_grad = False  # not by requires_grad_, which lazy parameters lack
        yield
    finally:
        for layer, dropout in recurrent:
            layer.dropout = dropout
        for m, flag in training:
            m.training = flag
        for p in learned:
            p.requires_grad = True


def _is_plain(layer: nn.RNNBase) -> bool:
    """Whether a layer runs the code of torch: a subclass may do other things in train mode."""
    return type(layer).forward in (nn.RNN.forward, nn.LSTM.forward, nn.GRU.forward)


@contextmanager
def _no_inference_tensors(module: nn.Module) -> Iterator[None]:
    """Replace tensors made in inference mode by copies: autograd cannot save those for backward."""
    swapped: list[tuple[dict[str, Any], str, Tensor]] = [
        (holder, name, tensor)
        for m in module.modules()
        for holder in (parameters_in(m), buffers_in(m), vars(m))
        for name, tensor in holder.items()
        if isinstance(tensor, Tensor) and not is_lazy(tensor) and tensor.is_inference()
    ]
    for holder, name, tensor in swapped:
        copy = tensor.clone()
        holder[name] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
    try:
        yield
    finally:
        for holder, name, tensor in swapped:
            holder[name] = tensor
