"""Bad values for every public constructor, call and update, and what became of each: a deterministic list of cases."""

import inspect
import random
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, is_dataclass, replace
from pathlib import Path
from types import NoneType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import torch
from torch import Tensor, nn

import interpretable_training.metrics as metrics
from interpretable_training.attribution import Attribution, GradCAM, normalize
from interpretable_training.evaluation import evaluate
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.metrics.core.perturbation import Replacement
from interpretable_training.metrics.curves import Curve
from interpretable_training.metrics.localization import Boxing
from support.attributions import METHODS, generators, state, toy
from support.bad_values import HUGE, NAN, VALUES, T, X, bad_images, bad_maps, bad_targets, boxes_by_name, masks

PACKAGE = Path(metrics.__file__).parents[1]
# Exceptions to the rules, each documented: `ignores_model` of a method, the formula of a method without classes, the
# docstring of an option that says which negative numbers it takes, `Complexity.update`, which takes maps alone.
CONTROLS = ("fakecam", "randommap")  # run no model, so that much about it stays unknown
CLASSLESS = ("eigencam", "attentionrollout", "rawattention")  # explain no class
SANITY = ("ParameterRandomization", "DataRandomization", "InputInvariance")
SIGNED = ("seed", "block", "value", "shift", "baseline", "substrate", "start")  # may be negative


@dataclass(frozen=True)
class Case:
    """One use with one bad value.

    Args:
        group: "constructor", "call" or "update".
        owner: the class.
        what: the argument and its value, as text.
        rule: "bad" (must be refused), "nan" (a map of NaN, a number that leaves the image out) or "any".
        model: whose state must not change.
        run: what is tried; returns a result to check.
        metric: whose sums must not change where it fails.
    """

    group: str
    owner: str
    what: str
    rule: str
    model: nn.Module
    run: Callable[[], Any]
    metric: ImageMetric | None = None


def judge(case: Case) -> tuple[str, str]:
    """Run a case: "clear", "valid", "raw", "accepted" or "changed", and why."""
    before, sums = (state(case.model), generators()), _sums(case.metric)
    try:
        result = case.run()
        verdict, why = ("accepted", f"{result!r:.120}") if case.rule == "bad" else _valid(case, result)
    except Exception as error:
        verdict, why = (
            ("clear" if _is_clear(error) else "raw"),
            f"{type(error).__name__}: {str(error)[:160]!r} {_place(error)}",
        )
        if _sums(case.metric) != sums:
            return "changed", f"sums after {why}"
    if (state(case.model), generators()) != before:
        return "changed", why
    return verdict, why


def _place(error: BaseException) -> str:
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else trace.tb_frame.f_code.co_filename


def _is_clear(error: Exception) -> bool:
    """Whether the package itself raised the error, saying what it expected and what it got."""
    text = str(error)
    ours = PACKAGE in Path(_place(error)).parents
    return ours and isinstance(error, (TypeError, ValueError, RuntimeError)) and "expected" in text and "got" in text


def _sums(metric: ImageMetric | None) -> Any:
    return None if metric is None else {name: str(getattr(metric, name)) for name in metric._defaults}


def _valid(case: Case, result: Any) -> tuple[str, str]:
    if not isinstance(result, Tensor):
        return "valid", ""
    if case.group != "call":
        return ("valid", "") if result.numel() == 1 else ("accepted", f"a result of shape {tuple(result.shape)}")
    rows = result.flatten(1).isfinite().all(1).tolist()
    nan = result.flatten(1).isnan().all(1).tolist()
    if case.rule == "nan" and (rows[0], nan[1]) != (True, True) and case.owner not in CONTROLS:
        return "accepted", f"finite rows {rows}, rows of NaN {nan}"
    mixed = [not a and not b for a, b in zip(rows, nan)]
    return ("accepted", "a map with some values of NaN") if any(mixed) else ("valid", "")


class Pair(nn.Module):
    """Returns the logits and something else."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Any:
        return self.net(x), "something else"


def calls() -> Iterator[Case]:
    """Every method with bad images, targets, outputs and models."""
    for name, method in METHODS.items():
        net = toy(name)

        def case(what: str, rule: str, run: Callable[[], Any], net: nn.Module = net, name: str = name) -> Case:
            rule = {"unknown": "any" if name in CONTROLS else "bad"}.get(rule, rule)
            if name in CLASSLESS and "callable" in what:
                rule = "any"  # not called
            return Case("call", name, what, rule, net, run)

        for what, (rule, make) in bad_images().items():
            yield case(f"images {what}", rule, lambda m=method, n=net, make=make: m(n, make(), T))
        for what, (rule, target) in bad_targets().items():
            yield case(f"target {what}", rule, lambda m=method, n=net, t=target: m(n, X, t))
        for output in ["zz", 7, 1.5, True, b"x", lambda o: "x", lambda o: o[0][:1], lambda o: o[0].long()]:
            pair = Pair(net)
            yield case(
                f"output {output!r:.30}", "unknown", lambda m=method, p=pair, o=output: m(p, X, 0, output=o), pair
            )
            yield case(
                f"output of a tensor {output!r:.30}", "any", lambda m=method, n=net, o=output: m(n, X, 0, output=o)
            )
        models = {"str": "resnet", "none": None, "function": lambda z: z, "class": nn.Linear, "tensor": X}
        for what, model in models.items():
            yield case(f"model {what}", "bad", lambda m=method, n=model: m(n, X, 0))
        shapes = {"empty": nn.Sequential(), "identity": nn.Identity(), "two arguments": nn.Bilinear(3, 3, 3)}
        for what, model in shapes.items():
            yield case(f"model {what}", "unknown", lambda m=method, n=model: m(n, X, 0), model)


def kinds(hint: Any) -> set[Any]:
    """The plain types that an annotation allows, literals as "literal", sequences as "sequence"."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return {kind for part in get_args(hint) for kind in kinds(part)}
    if origin is Literal:
        return {("literal", get_args(hint))}
    if origin is not None:
        return {"sequence" if origin is not Callable and len(get_args(hint)) != 2 else "other"}
    return {hint}


def is_bad(name: str, hint: Any, value: Any) -> bool:
    """Whether a value is wrong for an option of that name and annotation, whatever the class."""
    allowed = kinds(hint)
    if name in ("mean", "std"):
        return value is not None  # each is given alone
    if value is None:
        return NoneType not in allowed
    if isinstance(value, Tensor) and (Tensor in allowed or "sequence" in allowed):
        return False
    literals = [choice for kind in allowed if isinstance(kind, tuple) for choice in kind[1]]
    if isinstance(value, str):
        return value not in literals and str not in allowed
    if isinstance(value, bool):
        return bool not in allowed
    numbers = {int, float} & allowed
    if isinstance(value, (int, float)):
        if not numbers:
            return value not in literals
        if isinstance(value, float) and float not in allowed:
            return True
        return value != value or abs(value) >= HUGE or (value < 0 and name not in SIGNED)
    if isinstance(value, (list, tuple)):
        return "sequence" not in allowed
    return "other" not in allowed and Attribution not in allowed


def options(cls: type) -> dict[str, Any]:
    """The options of a constructor, with their annotations."""
    if is_dataclass(cls):
        hints = get_type_hints(cls)
        return {f.name: hints[f.name] for f in fields(cls)}
    hints = get_type_hints(cls.__init__)
    return {
        n: hints.get(n, Any) for n, p in inspect.signature(cls).parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD
    }


def every_metric() -> list[str]:
    """Names of the public metrics of maps."""
    results = [getattr(metrics, name) for name in metrics.__all__]
    return sorted(
        m.__name__ for m in results if isinstance(m, type) and issubclass(m, ImageMetric) and m is not metrics.UnitIoU
    )


CHEAP: dict[str, dict[str, Any]] = {
    **{name: {"steps": 3} for name in ("Insertion", "Deletion", "InsertionDeletion")},
    "AOPC": {"steps": 3},
    "ROAD": {"percentages": (30, 70)},
    "ARCC": {"percentages": (30, 70)},
    "Infidelity": {"n": 3},
    "SingleDeletion": {"patches": 2},
    "MaxSensitivity": {"n": 2},
    "BoxAccuracy": {"steps": 4},
    "PxAP": {"steps": 5},
}


class Scene:
    """A network, images and all that updates take."""

    def __init__(self) -> None:
        self.net = toy()
        self.nets = {name: toy(name) for name in METHODS}
        S = normalize(GradCAM()(self.net, X, T))
        boxes = torch.tensor([[1.0, 1.0, 5.0, 4.0]]).expand(2, 1, 4)
        self.facts = {"model": self.net, "images": X, "saliency": S, "target": T, "mask": X[:, 0] > 0.5, "boxes": boxes}

    def update(self, metric: ImageMetric, **changed: Any) -> Tensor:
        """The number of a batch."""
        if hasattr(metric, "attribution") and metric.attribution is None:
            metric.attribution = GradCAM()
        metric.update(**metric._filter_kwargs(**{**self.facts, **changed}))
        return metric.compute()


def constructors(scene: Scene) -> Iterator[Case]:
    """Every option of methods, metrics, sanity checks and their parts with every value, and then a use."""
    net = scene.net
    for name, method in METHODS.items():
        for option, hint in options(type(method)).items():
            for value in VALUES:
                rule = "bad" if is_bad(option, hint, value) else "any"

                def run(m: Any = method, n: str = name, o: str = option, v: Any = value) -> Any:
                    replace(m, **{o: v})(scene.nets[n], X, T)

                yield Case("constructor", name, f"{option}={value!r:.60}", rule, net, run)
    for name in every_metric():
        cls = getattr(metrics, name)
        for option, hint in options(cls).items():
            for value in VALUES:
                rule = "bad" if is_bad(option, hint, value) else "any"

                def run(c: Any = cls, n: str = name, o: str = option, v: Any = value) -> Any:
                    return scene.update(c(**{**CHEAP.get(n, {}), o: v})) if o != "average" else c(**{o: v})

                yield Case("constructor", name, f"{option}={value!r:.60}", rule, net, run)
    yield from _constructors_of_parts(net)


def _constructors_of_parts(net: nn.Module) -> Iterator[Case]:
    """The same of sanity checks, the parts of metrics, and `evaluate`."""
    parts = [getattr(metrics, name)() for name in SANITY]
    parts += [Curve("insertion", Replacement("mean")), Boxing(), Replacement("mean")]
    for part in parts:
        for option, hint in options(type(part)).items():
            for value in VALUES:
                rule = "bad" if is_bad(option, hint, value) else "any"
                yield Case(
                    "constructor",
                    type(part).__name__,
                    f"{option}={value!r:.60}",
                    rule,
                    net,
                    lambda p=part, o=option, v=value: used(replace(p, **{o: v}), net),
                )
    for option in (
        "target",
        "max_images",
        "chunk_size",
        "resamples",
        "seed",
        "mean",
        "std",
        "split",
        "controls",
        "reference",
        "methods",
        "metrics",
        "data",
        "model",
        "multilabel",
        "progress",
        "cache",
    ):
        for value in VALUES:
            yield Case(
                "constructor",
                "evaluate",
                f"{option}={value!r:.60}",
                _evaluate_rule(option, value),
                net,
                lambda o=option, v=value: evaluated(net, **{o: v}),
            )


HINTS_OF_EVALUATE = {
    "max_images": int | None,
    "chunk_size": int | None,
    "resamples": int,
    "seed": int,
    "controls": bool,
    "progress": bool,
    "multilabel": bool | None,
    "target": Literal["label", "pred", "least"],
    "split": Literal["val", "test"],
    "reference": Literal["gradcam"] | None,
    "mean": None,
    "std": None,
}


def _evaluate_rule(option: str, value: Any) -> str:
    if option in HINTS_OF_EVALUATE:
        return "bad" if is_bad(option, HINTS_OF_EVALUATE[option], value) else "any"
    return "any" if option == "cache" else "bad"


def evaluated(net: nn.Module, **changed: Any) -> None:
    """A table of two images."""
    given = {"model": net, "methods": GradCAM(), "metrics": metrics.AverageDrop(), "data": (X, T), "progress": False}
    if "cache" in changed and isinstance(changed["cache"], str):
        changed = {"cache": None}
    evaluate(**{**given, "resamples": 5, **changed})


def used(part: Any, net: nn.Module) -> Any:
    """Call a part as its metric does; whether it returned nothing."""
    if isinstance(part, Curve):
        return part.counts((16, 24)) is None
    if isinstance(part, Replacement):
        return part(X) is None
    if isinstance(part, metrics.DataRandomization):
        return part(net, net, GradCAM(), X, T) is None
    return None if isinstance(part, Boxing) else part(net, GradCAM(), X, T) is None


def updates(scene: Scene) -> Iterator[Case]:
    """Every metric with bad images, maps, classes, masks and boxes."""
    S, mask, boxes = (scene.facts[name] for name in ("saliency", "mask", "boxes"))
    assert isinstance(S, Tensor)
    assert isinstance(mask, Tensor)
    changes: dict[str, tuple[str, Callable[[], dict[str, Any]]]] = {
        f"images {name}": (rule, lambda make=make: {"images": make()}) for name, (rule, make) in bad_images().items()
    }
    changes |= {f"target {name}": (rule, lambda t=t: {"target": t}) for name, (rule, t) in bad_targets().items()}
    row = torch.tensor([[1.0], [NAN]])[:, :, None]
    maps: dict[str, tuple[str, Any]] = {
        **{"nan": ("nan", S * NAN), "a nan": ("nan", S * row), "constant": ("any", torch.ones_like(S))},
        **{"bool": ("any", S > 0.5), "requires_grad": ("any", S.clone().requires_grad_()), "half": ("any", S.half())},
        **{"float64": ("any", S.double()), "not contiguous": ("any", S.transpose(1, 2).contiguous().transpose(1, 2))},
        **{name: ("bad", v) for name, v in bad_maps(S).items()},
    }
    changes |= {f"saliency {name}": (rule, lambda v=v: {"saliency": v}) for name, (rule, v) in maps.items()}
    changes |= {
        f"mask {name}": (rule, lambda v=v: {"mask": v, "boxes": None}) for name, (rule, v) in masks(mask).items()
    }
    changes |= {
        f"boxes {name}": (rule, lambda v=v: {"boxes": v, "mask": None})
        for name, (rule, v) in boxes_by_name(boxes).items()
    }
    changes |= {f"model {v!r:.20}": ("bad", lambda v=v: {"model": v}) for v in ("resnet", 1, nn.Linear)}
    for name in every_metric():
        taken = inspect.signature(getattr(metrics, name).update).parameters
        for what, (rule, change) in changes.items():
            if not set(change()) & set(taken) or (
                what.startswith(("mask", "boxes")) and not {"mask", "boxes"} <= set(taken)
            ):
                continue
            metric = getattr(metrics, name)(**CHEAP.get(name, {}))
            if what.startswith(("images", "target", "model")) and "boxes" in taken:
                rule = "any"  # not read where maps are compared with objects
            if name == "Complexity" and isinstance(change().get("saliency"), Tensor) and rule == "bad":
                rule = "any"  # reads maps alone, which may have any size
            yield Case(
                "update",
                name,
                what,
                {"unknown": "bad"}.get(rule, rule),
                scene.net,
                lambda m=metric, c=change: scene.update(m, **c()),
                metric,
            )


def cases(group: str, count: int | None = None, seed: int = 0) -> list[Case]:
    """All cases of a group, or `count` of them that the seed draws."""
    scene = Scene()
    results = list(
        {"call": calls, "constructor": lambda: constructors(scene), "update": lambda: updates(scene)}[group]()
    )
    return results if count is None else random.Random(seed).sample(results, count)
