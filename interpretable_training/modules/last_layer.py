"""Last-layer retraining. Kirichenko, Izmailov and Wilson, ICLR 2023, https://arxiv.org/abs/2204.02937

    z[i] = (f(x[i]) - m) / s                                                          (1)
    W, b = minimum of the mean cross-entropy of W z + b + strength * sum of |W|,
           on as many images of each group as the smallest group has                   (2)
    head = mean of W and b over several such draws, with (1) put in                    (3)

f: the network up to its last linear layer, frozen. m, s: mean and standard deviation of each feature over all images.
The strength is the one with the highest worst-group accuracy on one half of the images, with (2) on one draw of the
other half; (3) draws from all images.
Differs from the published code: halves hold the same share of each group; the loss is that of a softmax, b is not
penalized; strengths count relative to the mean loss, so that they do not depend on the number of images; m and s are
those of the given images, not of the training images; the last layer may have any number of classes.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core.checksum import checksums
from interpretable_training.attribution.core.prepared_model import (
    Output,
    prepare,
    prepare_model,
    unwrap,
)
from interpretable_training.attribution.core.ranges import check_ranges
from interpretable_training.attribution.core.sharded_parameters import is_sharded
from interpretable_training.batches.source import BatchSource, Split
from interpretable_training.metrics import WorstGroupAccuracy
from interpretable_training.models.linear_head import find_linear_head, inputs_of
from interpretable_training.regularization.logistic_regression import fit_logistic_regression

STRENGTHS = (0.1, 0.03, 0.01, 0.003, 0.001, 0.0003)
NAMES = ("weight", "bias")
Groups = str | Tensor | Callable[[dict[str, Any]], Tensor]


@dataclass(frozen=True)
class RetrainedHead:
    """Facts of a retrained last layer.

    Args:
        name: of the layer in the network.
        group_sizes: number of images of each group.
        strength: of the penalty, the chosen one.
        held_out: strength -> worst-group accuracy, 0 to 1, on the half that did not train.
        before: the same of the former layer.
    """

    name: str
    group_sizes: dict[int, int]
    strength: float
    held_out: dict[float, float]
    before: float

    def __str__(self) -> str:
        return (
            f"retrained {self.name!r} on {len(self.group_sizes)} groups of at least {min(self.group_sizes.values())} "
            f"images; worst-group accuracy of the held-out half {self.held_out[self.strength]:.3f} with strength "
            f"{self.strength:g}, {self.before:.3f} before"
        )


def retrain_last_layer(
    model: nn.Module,
    data: Any,
    groups: Groups = "group",
    *,
    head: str | None = None,
    strengths: Sequence[float] = STRENGTHS,
    draws: int = 20,
    split: Split = "val",
    max_images: int | None = None,
    output: Output = None,
    seed: int = 0,
) -> RetrainedHead:
    """Replace the weights of the last linear layer by those learned on group-balanced images; nothing else changes.

    Take images that did not train the network, some of them with a cue of another class: where a cue is right or
    missing, the layer goes on following it.

    >>> retrain_last_layer(network, (images, target), groups=torch.tensor([0, 1, 0, 1]), draws=2).name
    '4'

    Args:
        model: network or LightningModule that returns logits; changed in place.
        data: data module, loader, data set, (images, target) or batches.
        groups: entry of the batches with the group of each image, usually its class and cue as one number; or groups
            (n,) by the image's number; or a function of a batch, a dict of `image`, `target` and its annotations, that
            returns groups (B,). Images of unknown group, -1, are left out.
        head: name of the layer; by default the linear layer that returns the logits.
        strengths: of the penalty, of which one is chosen.
        draws: over how many balanced draws the weights are averaged.
        split: of a data module.
        max_images: how many images, chosen by the seed; by default all.
        output: which part of the model's output are the logits.
        seed: of halves and draws.
    """
    numbers = {"draws": draws, "max_images": max_images, "seed": seed}
    check_ranges("retrain_last_layer", numbers, ["max_images"])
    if not strengths or not all(value > 0 for value in strengths):
        raise ValueError(f"expected strengths above 0, got {tuple(strengths)}.")
    if is_sharded(model):
        raise ValueError("expected a model on one device, got sharded parameters; retrain a copy that is whole.")
    module = unwrap(model)
    before = checksums(all_tensors(module))
    inputs = read_features(module, BatchSource(data, max_images, split, seed), groups, head, output)
    generator = torch.Generator().manual_seed(seed)
    mean, std = standardization(inputs.features, inputs.layer.bias is not None)
    Z, g = (inputs.features - mean) / std, inputs.group  # (1)
    train, held = halves(g, generator)
    held_out: dict[float, float] = {}
    fits: dict[float, tuple[Tensor, Tensor]] = {}
    fit, few = None, balanced_draw(g, train, generator)
    for strength in sorted(strengths, reverse=True):  # each starts from the one before
        fit = fits[strength] = inputs.fit(Z, few, strength, fit)  # (2)
        held_out[strength] = inputs.worst_group(Z @ fit[0].T + fit[1], held)
    strength = max(held_out, key=lambda value: (held_out[value], value))
    everything = torch.arange(len(g))
    several = [inputs.fit(Z, balanced_draw(g, everything, generator), strength, fits[strength]) for _ in range(draws)]
    W, b = (torch.stack(parts).mean(0) for parts in zip(*several))  # (3)
    write_head(module, inputs.layer, W / std, b - (W / std) @ mean, before)
    sizes = dict(zip(inputs.numbers, inputs.group.bincount().tolist()))
    return RetrainedHead(inputs.name, sizes, strength, held_out, inputs.worst_group(inputs.logits, held))


@dataclass(frozen=True)
class Features:
    """Inputs z of the last layer `layer` of all images of known group, with their logits, classes and groups.

    Groups are counted from 0 without gaps; `numbers` are those of the data.
    """

    name: str
    layer: nn.Linear
    features: Tensor
    logits: Tensor
    target: Tensor
    group: Tensor
    numbers: list[int]

    def fit(
        self, Z: Tensor, rows: Tensor, strength: float, start: tuple[Tensor, Tensor] | None
    ) -> tuple[Tensor, Tensor]:
        """Return W and b for some of the images."""
        N, bias = self.layer.out_features, self.layer.bias is not None
        return fit_logistic_regression(Z[rows], self.target[rows], N, strength, bias, start)

    def worst_group(self, logits: Tensor, rows: Tensor) -> float:
        """Return the worst-group accuracy on some of the images."""
        metric = WorstGroupAccuracy(len(self.numbers))
        metric.update(logits[rows], self.target[rows], self.group[rows])
        return float(metric.compute())


def read_features(module: nn.Module, source: BatchSource, groups: Groups, head: str | None, output: Output) -> Features:
    """Run the network once on all images, frozen, and return what its last layer receives."""
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    parts: list[tuple[Tensor, ...]] = []
    head_layer: tuple[str, nn.Linear] | None = None
    with prepare_model(module, output) as prepared, torch.no_grad():
        for _, indices, images, target, annotations in source.read_annotated(lambda _: True):
            if target is None or target.ndim != 1 or target.is_floating_point():
                kind = "none" if target is None else f"{tuple(target.shape)} of {target.dtype}"
                raise ValueError(f"expected a class for each image, got {kind}; pass batches (images, target).")
            images = prepare(prepared, images.to(device))
            head_layer = head_layer or find_linear_head(prepared, images, head)
            z, logits = inputs_of(prepared, head_layer[1], images)
            group = group_of(groups, {"image": images, "target": target, **annotations}, indices)
            parts.append((z.double().cpu(), logits.double().cpu(), target.cpu(), group))
    if head_layer is None:
        raise ValueError("expected at least one image, got none; is the data set or the loader empty?")
    Z, logits, y, g = (torch.cat(column) for column in zip(*parts))
    Z, logits, y, g = (column[g >= 0] for column in (Z, logits, y, g))
    numbers, group = g.unique(return_inverse=True)
    check_groups(y, numbers, group, head_layer[1].out_features)
    return Features(*head_layer, Z, logits, y, group, numbers.tolist())


def group_of(groups: Groups, batch: dict[str, Any], indices: list[int]) -> Tensor:
    """Return the groups (B,) of a batch, from its entry, by the numbers of its images, or by a function."""
    if isinstance(groups, Tensor):
        if groups.ndim != 1 or max(indices) >= len(groups):
            raise ValueError(
                f"expected groups (n,), one for each image, got {tuple(groups.shape)} and an image of number "
                f"{max(indices)}; images count from 0 in the order of the data set."
            )
        group = groups[indices]
    elif callable(groups):
        group = groups(batch)
    elif groups in batch:
        group = batch[groups]
    else:
        raise ValueError(
            f"expected {groups!r} in the batches, got {list(batch)}; pass groups= as a tensor with the group of each "
            "image, or as a function of a batch."
        )
    if not isinstance(group, Tensor) or group.shape != (len(indices),) or group.is_floating_point():
        got = f"{tuple(group.shape)} of {group.dtype}" if isinstance(group, Tensor) else type(group).__name__
        raise ValueError(f"expected groups ({len(indices)},) of whole numbers for a batch, got {got}.")
    return group.cpu().long()


def check_groups(target: Tensor, numbers: Tensor, group: Tensor, num_classes: int) -> None:
    """Refuse images of one group, groups that cannot be halved, and classes without an image."""
    differ = sorted(set(range(num_classes)) ^ set(target.tolist()))
    if differ:
        raise ValueError(
            f"expected images of known group of each of the {num_classes} classes of the last layer and no other, got "
            f"a difference in {differ[:10]}; add images of these classes, or leave them out."
        )
    sizes = dict(zip(numbers.tolist(), group.bincount().tolist()))
    small = {number: size for number, size in sizes.items() if size < 2}
    if len(sizes) < 2 or small:
        raise ValueError(
            f"expected at least two groups of at least two images each, got {len(sizes)} groups, too small: {small}; "
            "join groups, add images, or set the groups of these images to -1."
        )


def standardization(features: Tensor, shift: bool) -> tuple[Tensor, Tensor]:
    """Return m and s (d,); m is 0 for a layer without bias, which cannot undo it, and s is 1 for constant features."""
    s = features.std(0, correction=0)
    return features.mean(0) * shift, s.masked_fill(s == 0, 1)


def halves(group: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Return the images of two halves; both hold half of each group, the first the larger one."""
    parts = [shuffled(group == g, generator).tensor_split(2) for g in group.unique()]
    first, second = (torch.cat(part) for part in zip(*parts))
    return first, second


def balanced_draw(group: Tensor, rows: Tensor, generator: torch.Generator) -> Tensor:
    """Return as many of the rows of each group as the smallest group has, drawn at random."""
    drawn = [rows[shuffled(group[rows] == g, generator)] for g in group.unique()]
    return torch.cat([part[: min(map(len, drawn))] for part in drawn])


def shuffled(chosen: Tensor, generator: torch.Generator) -> Tensor:
    """Return the places of true values in random order."""
    places = chosen.nonzero()[:, 0]
    return places[torch.randperm(len(places), generator=generator)]


def all_tensors(module: nn.Module) -> dict[str, Tensor]:
    """Return all parameters and buffers by all of their names."""
    return dict([*module.named_parameters(remove_duplicate=False), *module.named_buffers(remove_duplicate=False)])


@torch.no_grad()
def write_head(module: nn.Module, layer: nn.Linear, weight: Tensor, bias: Tensor, before: dict[str, str]) -> None:
    """Write the layer's weights; undo it and raise an error where any other tensor differs from its checksum before."""
    own = {f"{name}.{key}" for name, m in module.named_modules(remove_duplicate=False) if m is layer for key in NAMES}
    former = {key: parameter.clone() for key, parameter in layer.named_parameters(recurse=False)}
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(bias)
    now = checksums({name: tensor for name, tensor in all_tensors(module).items() if name not in own})
    changed = [name for name, value in now.items() if value != before[name]]
    if changed:
        for key, parameter in layer.named_parameters(recurse=False):
            parameter.copy_(former[key])
        raise RuntimeError(
            f"expected that a new last layer changes nothing else, but {changed[0]!r} changed with it; retrain a "
            "network whose last layer shares no weights."
        )
