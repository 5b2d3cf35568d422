"""Discovery of the network inside a LightningModule, and of the names of its classes."""

import difflib
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection

from interpretable_training.attribution.core.prepared_model import Output, prepare, prepare_model
from interpretable_training.attribution.core.targets import pick_logits

USUAL = ("network", "model", "net", "backbone", "classifier", "module", "encoder")


def find_network(
    pl_module: L.LightningModule, images: Tensor, name: str | None = None, output: Output = None
) -> tuple[str, nn.Module]:
    """Return name and module of the network that is explained; the name of the LightningModule itself is "".

    Without a name it is the part that returns the same logits as the LightningModule, whose `forward` may do no more
    than call it, else the LightningModule. One without a `forward` of its own is explained by its only part that
    returns logits.
    """
    if name is not None:
        return name, named_network(pl_module, name)
    parts = candidate_parts(pl_module)
    with prepare_model(pl_module) as prepared, torch.no_grad():
        few = prepare(prepared, images[:2])
        if is_overridden("forward", pl_module, nn.Module) and type(pl_module).forward is not L.LightningModule.forward:
            whole = logits_of(pl_module, few, output)
            if whole is not None:
                same = (part for part in parts if equals(logits_of(parts[part], few, output), whole))
                part = next(same, "")
                return part, parts.get(part, pl_module)
        able = {part: module for part, module in parts.items() if logits_of(module, few, output) is not None}
    if len(able) != 1:
        raise ValueError(
            f"expected one network that maps images to logits (B, N) in {type(pl_module).__name__}, got "
            f"{list(able) or 'none'} among {list(parts)}; pass network= with the name of one, or output= with the key "
            "of the logits in what it returns."
        )
    return next(iter(able.items()))


def named_network(pl_module: L.LightningModule, name: str) -> nn.Module:
    """Return a part of the LightningModule by its name; "" is the LightningModule itself."""
    try:
        return pl_module.get_submodule(name)
    except AttributeError as error:
        names = [key for key, _ in pl_module.named_modules() if key]
        raise ValueError(
            f"expected network to be the name of a part of {type(pl_module).__name__}, got {name!r}; closest: "
            f"{difflib.get_close_matches(name, names, 3)}, first: {[n for n in names if '.' not in n]}."
        ) from error


def candidate_parts(pl_module: nn.Module) -> dict[str, nn.Module]:
    """Return the parts that could be the network: those with parameters, usual names first."""
    parts = {
        name: part
        for name, part in pl_module.named_children()
        if not isinstance(part, (Metric, MetricCollection)) and any(True for _ in part.parameters())
    }
    return {name: parts[name] for name in sorted(parts, key=lambda n: USUAL.index(n) if n in USUAL else len(USUAL))}


def equals(logits: Tensor | None, whole: Tensor) -> bool:
    """Whether a part returned the same logits as the whole."""
    return logits is not None and logits.shape == whole.shape and torch.equal(logits, whole)


def logits_of(module: nn.Module, images: Tensor, output: Output) -> Tensor | None:
    """Return the logits of a module for images, None where it returns no logits."""
    try:
        returned = module(images.clone())
        logits = pick_logits(returned, output_of(returned, output))
    except Exception:  # a module that is no classifier of images may raise anything
        return None
    return logits if len(logits) == len(images) and logits.is_floating_point() else None


def output_of(returned: Any, output: Output) -> Output:
    """Return `output`, or None for a key of what the LightningModule returns around the network's tensor."""
    return None if isinstance(returned, Tensor) and not callable(output) else output


def output_for(network: nn.Module, images: Tensor, output: Output) -> Output:
    """Return `output_of` for the values that the network returns for a few images."""
    if output is None or callable(output):
        return output
    with prepare_model(network) as prepared, torch.no_grad():
        return output_of(prepared.run(prepare(prepared, images[:2])), output)


def find_class_names(given: Sequence[str] | None, *holders: Any) -> tuple[list[str] | None, str]:
    """Return the names of the classes and their source: given, or the first holder that has them."""
    if given is not None:
        return [str(name) for name in given], "given"
    for holder in holders:
        for attribute in ("class_names", "classes", "categories"):
            names = getattr(holder, attribute, None)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, (str, int)) for name in names):
                return [str(name) for name in names], f"{type(holder).__name__}.{attribute}"
            inner = getattr(holder, "dataset", None)  # of a Subset
            names = getattr(inner, attribute, None)
            if isinstance(names, (list, tuple)) and names and all(isinstance(name, (str, int)) for name in names):
                return [str(name) for name in names], f"{type(inner).__name__}.{attribute}"
    return None, "not found: numbers"


def name_of(names: list[str] | None, label: int) -> str:
    """Return the name of a class, "class N" where it has none."""
    return names[label] if names is not None and 0 <= label < len(names) else f"class {label}"
