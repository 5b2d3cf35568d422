"""Base classes of methods, and `explain`, which shares passes between methods.

A method is a frozen dataclass of its hyper-parameters and stores nothing between calls. Subclasses of `GradientCAM`
implement `combine` if they need only the features A of a layer and their gradients dA, and `layer_map` if they run the
model differently for each layer. Other methods implement `attribute`.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from .activation_gates import Rule, gates
from .auto_layer import choose_layer
from .capture import capture
from .feature_grids import layer_name
from .map_operations import finite_rows, nan_rows, normalize, resize
from .options import check_fields, method_named
from .prepared_model import Output, PreparedModel, prepare, prepare_model
from .targets import Resolved, Score, Target

EXAMPLES = {"attribution": "for example GradCAM()", "metrics": "for example AverageDrop()"}


class Attribution(ABC):
    """A saliency method, called as `method(model, images, target) -> (B, H, W)`.

    >>> class Brightness(Attribution):
    ...     attribute = lambda self, prepared, images, target: images.mean(1)
    >>> Brightness()(network, images).shape
    torch.Size([4, 16, 16])
    """

    differentiable: ClassVar[bool] = False  # whether a loss on the map can train the model
    ignores_model: ClassVar[bool] = False  # controls: their maps depend neither on the class nor on values of the image

    @property
    def final(self) -> bool:
        """Whether maps are in [0, 1] already, so that metrics do not scale each by its range."""
        return False

    def __post_init__(self) -> None:
        # Check options when they are set, not when they are used.
        owner = type(self).__name__
        for name in self.__dataclass_fields__:  # type: ignore[attr-defined]  # methods are dataclasses
            value = getattr(self, name)
            if isinstance(value, nn.Module):
                raise TypeError(
                    f"expected {name} of {owner} without a module, got a {type(value).__name__}; a method is built "
                    f"without a model and takes layers by name: {owner}(layer='layer4')(model, images, target)."
                )
        check_fields(self)

    def __call__(
        self,
        model: nn.Module,
        images: Tensor,
        target: Target = None,
        *,
        output: Output = None,
        keep_mode: bool = False,
        create_graph: bool = False,
    ) -> Tensor:
        """Return raw maps (B, H, W) of `images` (B, C, H, W); `explain` describes the arguments."""
        maps = explain({"": self}, model, images, target, output=output, keep_mode=keep_mode, create_graph=create_graph)
        return maps[""]

    @abstractmethod
    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        """Return maps (B, H, W) of a prepared model: `prepared(images)` are logits, `target` is one class per image."""


Methods = Attribution | str | Mapping[str, Attribution] | Sequence[Attribution | str]


@dataclass(frozen=True)
class GradientCAM(Attribution):
    """A base class of methods that compute a map from the features of one layer or of several.

    Args:
        layer: "auto" (the last spatial layer), a dotted name, or several names.
        relu: keep positive values only; otherwise the map is signed.
        normalize: scale each map to [0, 1] "before" or "after" upsampling, or not ("none"); metrics do not scale a
            normalized map again.
        upsample: resize the map to image resolution; otherwise it has the resolution of the layer (one layer only).
        align_corners: as in `torch.nn.functional.interpolate`.
        fusion: how normalized maps of several layers are combined.
        score: explain the "logit" or the "prob", "logprob", "sigmoid" of the class.
        rule: the gradient is "plain", or follows the "guided" or "deconv" rule at activations.

    >>> class MeanGradient(GradientCAM):
    ...     combine = lambda self, A, dA: dA.mean(1)
    >>> MeanGradient(layer="1")(network, images).shape
    torch.Size([4, 16, 16])
    """

    layer: str | Sequence[str] = "auto"
    relu: bool = True
    normalize: Literal["none", "before", "after"] = "none"
    upsample: bool = True
    align_corners: bool = False
    fusion: Literal["mean", "max"] = "mean"
    score: Score = "logit"
    rule: Rule = "plain"
    needs_gradient: ClassVar[bool] = True

    def __init_subclass__(cls) -> None:
        cls.differentiable = cls.combine is not GradientCAM.combine

    @property
    def final(self) -> bool:
        return self.normalize != "none"

    def combine(self, A: Tensor, dA: Tensor) -> Tensor:
        """Return the signed map (B, *spatial) of activations and gradients (B, K, *spatial)."""
        raise TypeError(f"{type(self).__name__} computes its map in layer_map, not from A and dA alone.")

    def rescale(self, S: Tensor, y: Tensor) -> Tensor:
        """Return the map S of `combine`, scaled by a function of the explained score y (B,); unchanged here."""
        return S

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        """Return the signed map (B, *spatial) of one layer, in methods without `combine`."""
        raise TypeError(f"{type(self).__name__} implements neither combine, layer_map nor attribute.")

    def attribute(self, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
        if _combines(self):
            return _share({"": self}, prepared, images, target)[0][""]
        layers = self.layers(prepared, images, target)
        return self.fuse([self.layer_map(prepared, images, target, layer) for layer in layers], images)

    def layers(self, prepared: PreparedModel, images: Tensor, target: Target) -> list[str]:
        """Return the names of the layers to explain."""
        names = [self.layer] if isinstance(self.layer, str) else self.layer
        if not isinstance(names, (list, tuple)) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"expected layer to be 'auto', a name or a list of names, got {self.layer!r}.")
        if not names:
            raise ValueError("expected at least one name of a layer, got an empty list.")
        full_name = partial(layer_name, prepared.module)
        return [choose_layer(prepared, images, target) if name == "auto" else full_name(name) for name in names]

    def fuse(self, maps: Sequence[Tensor], images: Tensor) -> Tensor:
        """Return one map at image resolution from the signed maps of the layers."""
        if len(maps) > 1 and not self.upsample:
            raise ValueError(f"expected one layer with upsample=False, got {len(maps)}; their maps differ in size.")
        ready = [self._ready(S, images) for S in maps]
        if len(ready) == 1:
            return ready[0]
        stacked = torch.stack([normalize(S) for S in ready])
        return stacked.mean(0) if self.fusion == "mean" else stacked.amax(0)

    def _ready(self, S: Tensor, images: Tensor) -> Tensor:
        S = S.relu() if self.relu else S
        S = normalize(S) if self.normalize == "before" else S
        S = resize(S, images.shape[2:], self.align_corners) if self.upsample else S
        return normalize(S) if self.normalize == "after" else S


def explain(
    methods: Methods,
    model: nn.Module,
    images: Tensor,
    target: Target = None,
    *,
    output: Output = None,
    keep_mode: bool = False,
    create_graph: bool = False,
) -> dict[str, Tensor]:
    """Return name -> maps (B, H, W) of `images` (B, C, H, W); methods share passes where possible.

    Maps are raw (see `normalize`) unless the method is `final`, at image resolution, in float32 (float64 for float64
    models), and detached. With several targets per image they are (B, T, H, W). The map of an image with a value that
    is not finite is NaN everywhere, except for controls, which ignore the model.

    Args:
        methods: name -> method, or a list; names in a list are the class names in lower case.
        target: None (the predicted class), "least", "topk:K", an int, a tensor (B,) or (B, T), or a callable from the
            model's output to scores (B,).
        output: which part of the model's output are the logits: a key, an index, an attribute name or a callable.
        keep_mode: leave dropout and batch norm in the mode they are in instead of eval mode.
        create_graph: return maps that are part of the graph, for a loss on them; implies `keep_mode`.

    >>> from interpretable_training.attribution import GradCAM
    >>> explain({"gradcam": GradCAM()}, network, images, target)["gradcam"].shape
    torch.Size([4, 16, 16])
    """
    named = name_methods(methods)
    fixed = [type(m).__name__ for m in named.values() if not m.differentiable]
    if create_graph and fixed:
        raise ValueError(f"expected methods whose maps can be differentiated with create_graph=True, got {fixed}.")
    with prepare_model(model, output, keep_mode or create_graph, create_graph) as prepared:
        images = prepare(prepared, images)
        if isinstance(target, (list, tuple)) or (isinstance(target, str) and target.startswith("topk")):
            target = prepared.resolve(images, target)
        if not isinstance(target, Tensor) or target.ndim < 2:
            maps = explain_prepared(named, prepared, images, target)
        else:
            classes = prepared.resolve(images, target)
            assert isinstance(classes, Tensor)
            columns = [explain_prepared(named, prepared, images, column) for column in classes.unbind(1)]
            maps = {name: torch.stack([maps[name] for maps in columns], 1) for name in named}
        return {name: full(maps[name] if create_graph else maps[name].detach()) for name in named}


def name_methods(methods: Methods) -> dict[str, Attribution]:
    """Return name -> method; names of methods in a list are the class names in lower case."""
    if isinstance(methods, Mapping):
        named = {name: method_named(method) if isinstance(method, str) else method for name, method in methods.items()}
    else:
        several = isinstance(methods, Iterable) and not isinstance(methods, (str, bytes, type, Tensor))
        listed: list[Any] = list(methods) if several else [methods]  # type: ignore[arg-type]
        listed = [method_named(method) if isinstance(method, str) else method for method in listed]
        for method in listed:
            of_package("attribution", "a method", method, Attribution)
        named = {type(method).__name__.lower(): method for method in listed}
        if len(named) < len(listed):
            raise ValueError("expected methods of different classes in a list; name them in a dict: {'name': method}.")
    for name, method in named.items():
        of_package("attribution", name, method, Attribution)
    return named


def of_package(room: str, name: str, given: object, base: type) -> None:
    """Raise an error unless `given` is a method or metric of the package, an instance of `base`."""
    if not isinstance(given, base):
        got = f"{given!r}; write {EXAMPLES[room]}"
        if isinstance(given, type):
            got = f"the class {given.__name__}; write {given.__name__}()"
        raise TypeError(f"expected an object of interpretable_training.{room} as {name!r}, got {got}.")


def _combines(cam: GradientCAM) -> bool:
    """Whether the method needs A and dA alone, so that it can share a pass."""
    return type(cam).combine is not GradientCAM.combine


def full(tensor: Tensor) -> Tensor:
    """Return the tensor in float32 at least: maps are not computed in half precision."""
    return tensor.float() if tensor.dtype in (torch.float16, torch.bfloat16) else tensor


def explain_prepared(
    named: dict[str, Attribution], prepared: PreparedModel, images: Tensor, target: Target
) -> dict[str, Tensor]:
    """Return what `explain` returns, inside `prepare_model`: raw maps (B, H, W) of prepared images, one target each."""
    maps: dict[str, Tensor] = {}
    if target is not None and not isinstance(target, str):
        target = prepared.resolve(images, target)  # reads the classes once, before the first pass
    finite = images.flatten(1).isfinite().all(1)
    usable = finite_rows(images, finite)
    for cams in _passes(named):
        shared, target = _share(cams, prepared, usable, target)
        maps.update(shared)
    rest = {name: method for name, method in named.items() if name not in maps}
    if rest and (target is None or isinstance(target, str)):
        target = prepared.resolve(usable, target)
    for name, method in rest.items():
        assert isinstance(target, Tensor) or callable(target)
        maps[name] = method.attribute(prepared, images if method.ignores_model else usable, target)
    return {name: S if named[name].ignores_model else nan_rows(S, ~finite) for name, S in maps.items()}


def _passes(named: dict[str, Attribution]) -> list[dict[str, GradientCAM]]:
    """Return the methods that need A and dA alone, in groups with the same gradient."""
    groups: dict[tuple[str, str], dict[str, GradientCAM]] = {}
    for name, cam in named.items():
        if isinstance(cam, GradientCAM) and _combines(cam):
            groups.setdefault((cam.score, cam.rule), {})[name] = cam
    return list(groups.values())


def _share(
    cams: dict[str, GradientCAM], prepared: PreparedModel, images: Tensor, target: Target
) -> tuple[dict[str, Tensor], Resolved]:
    """Return the maps of methods with the same gradient, from one pass, and the classes that they explain."""
    first = next(iter(cams.values()))
    layers = {name: cam.layers(prepared, images, target) for name, cam in cams.items()}
    union = list(dict.fromkeys(layer for names in layers.values() for layer in names))
    gradient = any(cam.needs_gradient for cam in cams.values())
    with gates(first.rule) as rule:
        captured = capture(prepared, images, union, target, gradient=gradient, score=first.score, rule=rule)
    A = {layer: full(tensor) for layer, tensor in captured.A.items()}
    dA = {layer: full(tensor) for layer, tensor in captured.dA.items()} if gradient else A
    maps = {}
    with torch.set_grad_enabled(prepared.create_graph):
        for name, cam in cams.items():
            signed = [cam.combine(A[layer], dA[layer]) for layer in layers[name]]
            scaled = signed if captured.y is None else [cam.rescale(S, full(captured.y)) for S in signed]
            maps[name] = cam.fuse(scaled, images)
    return maps, captured.target
