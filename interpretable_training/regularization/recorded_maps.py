"""Differentiable maps, and gradients of log probabilities, from the recorded forward pass of a training step."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.attribution.core.base import Attribution, GradientCAM, full
from interpretable_training.attribution.core.capture import grid_of, ran
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.targets import ClassSpan, pick_logits, score_of

from .gradients import RecordedForward


def needs_layers_only(method: Attribution) -> bool:
    """Whether the maps of a differentiable method follow from features of layers and their gradients."""
    return isinstance(method, GradientCAM) and method.rule == "plain"


def layers_of(method: Attribution, model: nn.Module, images: Tensor, output: Output = None) -> list[str]:
    """Return the names of the layers that a method explains, chosen by a pass of one image where they are not given."""
    assert isinstance(method, GradientCAM)
    with prepare_model(model, output) as prepared:
        return method.layers(prepared, prepare(prepared, images[:1]), None)


def recorded_maps(
    method: Attribution,
    run: RecordedForward,
    result: object,
    images: Tensor,
    target: Tensor,
    scale: float,
    output: Output,
) -> Tensor:
    """Return maps (B, H, W) of the target, as `explain` does, from the pass that returned `result`."""
    assert isinstance(method, GradientCAM)
    assert not isinstance(run.at, str)
    logits = pick_logits(result, output)
    y = score_of(logits, target, method.score, ClassSpan(high=logits.shape[1] - 1))  # reads no classes
    prepared = PreparedModel(unwrap(run.model), output, create_graph=True)
    outputs = {name: ran(run.outputs, name)[-1] for name in run.at}
    grids = {name: grid_of(prepared, images, name, tensor, None) for name, tensor in outputs.items()}
    A = {name: full(grids[name].read(tensor)) for name, tensor in outputs.items()}
    dA = A
    if method.needs_gradient:
        gradients = run.differentiate((y * scale).sum(), [*outputs.values()], create_graph=True)
        pairs = zip(outputs.items(), gradients)
        whole = {name: torch.zeros_like(tensor) if g is None else g for (name, tensor), g in pairs}
        dA = {name: full(grids[name].read(gradient)) / scale for name, gradient in whole.items()}
    with torch.autocast(images.device.type, enabled=False):
        maps = [method.rescale(method.combine(A[name], dA[name]), full(y)) for name in run.at]
        return method.fuse(maps, images)


def log_probability_gradients(run: RecordedForward, result: object, scale: float, output: Output) -> Tensor:
    """Return the gradients (B, C, *spatial) of the sum of all log probabilities with respect to the images."""
    logits = full(pick_logits(result, output))
    if logits.shape[1] == 1:  # two classes
        total = (F.logsigmoid(logits) + F.logsigmoid(-logits)).sum()
    else:
        total = logits.log_softmax(1).sum()
    return run.gradient(total * scale, guided=False, create_graph=True) / scale


def class_per_image(target: object, images: Tensor) -> Tensor:
    """Return the class of each image (B,), for which maps are made; raise for other targets."""
    if not isinstance(target, Tensor) or target.shape != (len(images),) or target.is_floating_point():
        kind = f"{tuple(target.shape)} of {target.dtype}" if isinstance(target, Tensor) else type(target).__name__
        raise ValueError(
            f"expected a target ({len(images)},) of class numbers, whose maps are guided, got {kind}; use "
            "loss='input_gradient', which needs no target, or pass one class per image."
        )
    return target
