"""Dependence of maps on the parameters of the network. Adebayo et al., NeurIPS 2018, https://arxiv.org/abs/1810.03292

    s[k] = mean over images of sim(S, S[k])    (1)

S: map of the network. S[k]: of the network whose last k steps of layers are random ("cascading"), or its k-th alone
("independent"), for the class that the network itself predicts. A map that stays the same when
the parameters are random does not depend on what the network has learned: small s is good.

The authors look at pictures and curves. A rule is needed for a verdict: s where the half of the layers nearer to the
output is random, which is where they find guided backpropagation unmoved. At the very end of the cascade no method is.
The network is never written: while a map is made, random tensors take the places of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from interpretable_training.attribution.core._compat import buffers_in, parameters_in
from interpretable_training.attribution.core.base import Methods, explain, name_methods
from interpretable_training.attribution.core.generators import same_generators
from interpretable_training.attribution.core.map_operations import one_of
from interpretable_training.attribution.core.options import check_fields
from interpretable_training.attribution.core.prepared_model import Output, PreparedModel, prepare, prepare_model, unwrap
from interpretable_training.attribution.core.sharded_parameters import refuse_sharded
from interpretable_training.attribution.core.targets import Target

from .checks import SIMILARITIES, Check, Rule, Similarity, mean, similarities


@dataclass(frozen=True)
class ParameterRandomization:
    """Compares each method's maps with those of the network with random layers (1).

    >>> from interpretable_training.attribution import GradCAM
    >>> checks = ParameterRandomization()(network, GradCAM(), images)
    >>> [check.method for check in checks]
    ['gradcam']

    Args:
        mode: "cascading" from the output to the input, what is random stays so; "independent", one step at a time.
        stages: into how many steps the layers are put together; None makes each layer with parameters a step. 1 makes
            all layers random at once, and "last" the last one alone: both are cheap and say less.
        similarity: which similarities are measured.
        decided_by: the one that decides; by default "ssim" if it is measured, else the first. Cascading, s at the last
            step that leaves at least half of the layers as they are; independent, the mean of s.
        threshold: below which a method passes. A convention: on other networks look at the curves too.
        running_stats: of batch norms: "reset" as everything else, or "keep".
        seed: of the random parameters.
    """

    mode: Literal["cascading", "independent"] = "cascading"
    stages: int | Literal["last"] | None = None
    similarity: Sequence[Similarity] = SIMILARITIES
    decided_by: Similarity | None = None
    threshold: float = 0.5
    running_stats: Literal["reset", "keep"] = "reset"
    seed: int = 0

    name = "parameter randomization"

    def __post_init__(self) -> None:
        check_fields(self)
        one_of("decided_by", self.decided_by, None, *self.similarity)
        if not self.similarity:
            raise ValueError("expected at least one similarity, got none.")

    def __call__(
        self, model: nn.Module, methods: Methods, images: Tensor, target: Target = None, *, output: Output = None
    ) -> list[Check]:
        """Return one `Check` per method; the model, its mode and all random generators stay as they are.

        Args:
            model: a trained classifier.
            methods: name -> method, or a list.
            images: (B, C, H, W), a few suffice.
            target: the classes that are explained; by default those that the trained network predicts.
            output: which part of the model's output are the logits.
        """
        named = name_methods(methods)
        refuse_sharded(unwrap(model), type(self).__name__)
        with torch.inference_mode(False), same_generators():
            with prepare_model(model, output) as prepared:
                x = prepare(prepared, images)
                resolved = prepared.resolve(x, target)
                layers = layers_from_output(prepared, x)
            torch.manual_seed(self.seed)
            before = explain(named, model, images, resolved, output=output)
            steps = self._steps(list(layers))
            similarity: dict[str, list[dict[str, Tensor]]] = {name: [] for name in named}
            for _ in self._changes(unwrap(model), [[o for name in step for o in layers[name]] for step in steps]):
                after = explain(named, model, images, resolved, output=output)
                for name in named:
                    similarity[name].append(similarities(before[name], after[name], self.similarity))
        return [self._check(name, similarity[name], steps, len(layers)) for name in named]

    def _steps(self, layers: list[str]) -> list[list[str]]:
        """Return the names of the layers of each step, from the output on; the first steps are the smaller ones."""
        if self.stages == "last":
            return [layers[:1]]
        count = len(layers) if self.stages is None else self.stages
        if count > len(layers):
            raise ValueError(
                f"expected at most as many stages as layers with parameters, {len(layers)}, got {self.stages}."
            )
        sizes = [(len(layers) + i) // count for i in range(count)]
        return [layers[sum(sizes[:i]) : sum(sizes[: i + 1])] for i in range(count)]

    def _changes(self, module: nn.Module, steps: list[list[str]]) -> Iterator[None]:
        """Yield after each step, when the parameters of the owners that it names are random."""
        keep = self.running_stats == "keep"
        if self.mode == "cascading":
            with own_tensors_back(module):
                for owners in steps:
                    randomize(module, owners, keep)
                    yield
            return
        for owners in steps:
            with own_tensors_back(module):
                randomize(module, owners, keep)
                yield

    def _check(self, name: str, per_step: list[dict[str, Tensor]], steps: list[list[str]], layers: int) -> Check:
        curves = {kind: [mean(step[kind]) for step in per_step] for kind in per_step[0]}  # (1)
        upto = max(1, sum(sum(map(len, steps[: k + 1])) <= layers / 2 for k in range(len(steps))))
        at = {"cascading": slice(upto - 1, upto), "independent": slice(None)}[self.mode]
        similarity = {kind: mean(torch.tensor(curve[at], dtype=torch.float64)) for kind, curve in curves.items()}
        changed = sum(map(len, steps[:upto]))
        over = f"with the {changed} of {layers} layers nearest to the output random"
        if self.mode == "independent":
            over = f"mean over {len(steps)} steps, each of which makes a part of {layers} layers random"
        kind = self.decided_by or ("ssim" if "ssim" in self.similarity else self.similarity[0])
        rule = Rule(kind, self.threshold)
        undefined = sum(int(step[kind].isnan().sum()) for step in per_step if kind in step)
        labels = ["+".join(step) for step in steps]
        test = self.name if self.mode == "cascading" else f"{self.name} ({self.mode})"
        return Check(test, name, similarity, rule.passed(similarity), rule.text(over), kind, curves, labels, undefined)


def layers_from_output(prepared: PreparedModel, images: Tensor) -> dict[str, list[str]]:
    """Return modules that run and have parameters, the last that starts first -> the modules that own these.

    What never runs as a module goes with the module around it, as the projection inside PyTorch's attention does.
    """
    module, started = prepared.module, dict[str, None]()

    def remember(name: str) -> Callable[[nn.Module, Any], None]:
        return lambda *_: started.setdefault(name)

    handles = [child.register_forward_pre_hook(remember(name)) for name, child in module.named_modules()]
    try:
        with torch.no_grad():
            prepared.run(images[:1])
    finally:
        for handle in handles:
            handle.remove()
    layers: dict[str, list[str]] = {name: [] for name in reversed(started)}
    for name, child in module.named_modules():
        if any(p is not None and p.is_floating_point() for p in parameters_in(child).values()):
            layers[_closest_that_ran(name, started)].append(name)
    if not any(layers.values()):
        raise ValueError(f"expected a model with parameters to randomize, got {type(module).__name__}.")
    return {name: owners for name, owners in layers.items() if owners}


def _closest_that_ran(name: str, started: Mapping[str, None]) -> str:
    """Return the module itself if it ran, else the closest around it that did; the model always does."""
    while name and name not in started:
        name = name.rpartition(".")[0]
    return name


@contextmanager
def own_tensors_back(module: nn.Module) -> Iterator[None]:
    """Put the module's own parameters and buffers back at the end of the block.

    This includes attributes that the forward pass caches: some attention layers cache biases in eval mode.
    """
    attributes_of_all = [vars(m) for m in module.modules()]
    dicts = [d for attributes in attributes_of_all for d in (attributes, *attributes.values()) if isinstance(d, dict)]
    places = [(holder, dict(holder)) for holder in dicts]
    try:
        yield
    finally:
        put_back(places)


def places_of(module: nn.Module) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return each dict in which the module and its children keep parameters or buffers, with a copy of that dict."""
    return [(holder, dict(holder)) for m in module.modules() for holder in (parameters_in(m), buffers_in(m))]


def put_back(places: list[tuple[dict[str, Any], dict[str, Any]]]) -> None:
    """Fill each dict with the entries of its copy."""
    for holder, entries in places:
        holder.clear()
        holder.update(entries)


def randomize(module: nn.Module, owners: Sequence[str], keep_running_stats: bool = False) -> None:
    """Put new random parameters into the named children; to be called inside `own_tensors_back`.

    They come from the child's own `reset_parameters`, as when it was made; without one they are normal, with the
    standard deviation of the old ones, so that what is 0 stays 0. A parameter that several children share stays shared.
    """
    named = dict(module.named_modules())
    for name in owners:
        old = dict(parameters_in(named[name]))
        reset(named[name], keep_running_stats)
        replaced = {id(old[key]): new for key, new in parameters_in(named[name]).items() if old[key] is not None}
        for child in module.modules():
            for key, parameter in parameters_in(child).items():
                parameters_in(child)[key] = replaced.get(id(parameter), parameter)


def reset(child: nn.Module, keep_running_stats: bool) -> None:
    """Put new tensors in place of the child's own; those of its children stay, whatever its reset would do to them."""
    places = places_of(child)
    for holder, entries in places:
        for key, tensor in entries.items():
            if tensor is not None:
                copy = tensor.detach().clone()
                holder[key] = nn.Parameter(copy, requires_grad=False) if isinstance(tensor, nn.Parameter) else copy
    computed = "weight" in vars(child)  # by an old-style weight or spectral norm, of parameters that have other names
    if callable(getattr(child, "reset_parameters", None)) and not computed:
        child.reset_parameters()  # type: ignore[operator]
    else:
        for parameter in parameters_in(child).values():
            if parameter is not None and parameter.is_floating_point():
                spread = float(parameter.std(correction=0)) or float(parameter.abs().mean())  # one value has no spread
                parameter.data.normal_(0, spread)
    put_back([place for place in places if place[0] is not parameters_in(child) and place[0] is not buffers_in(child)])
    if keep_running_stats:
        buffers_in(child).update(next(entries for holder, entries in places if holder is buffers_in(child)))
