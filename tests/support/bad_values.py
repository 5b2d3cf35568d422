"""Bad and unusual images, targets, maps, masks, boxes and values of options, by name."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from interpretable_training.attribution import GradCAM
from support.attributions import toy_images

X, T = toy_images(2), torch.tensor([0, 1])
NAN, INF, HUGE = float("nan"), float("inf"), 2**63
VALUES = [-1, 0, 1, 1.5, -1.5, HUGE, -(2**70), 10**20, NAN, INF, -INF, 1e300, "x", "", None, True, 1j, b"1", [], {}, ()]
VALUES += [(1.0,), (0.5, 0.5), (NAN,) * 3, (0.0,) * 3, ("a", "b", "c"), [None], object(), GradCAM, torch.ones(2, 5)]
VALUES += [torch.tensor(NAN), torch.tensor([1, 2]), torch.ones(3, dtype=torch.complex64), torch.ones(3, device="meta")]
VALUES += [np.float64(-1), np.array(["a"]), lambda *_: None]


FINE: dict[str, Callable[[], Any]] = {
    "constant": lambda: torch.ones_like(X),
    "half": lambda: X.half(),
    "float64": lambda: X.double(),
    "not contiguous": lambda: X.transpose(2, 3).contiguous().transpose(2, 3),
    "requires_grad": lambda: X.clone().requires_grad_(),
    "not a leaf": lambda: X.clone().requires_grad_() * 1,
    "parameter": lambda: nn.Parameter(X.clone()),
    "1e-38": lambda: X * 1e-38,
    "1 pixel": lambda: X[:, :, :1, :1],
}


def bad_images() -> dict[str, tuple[str, Callable[[], Any]]]:
    """Images by name: the rule and what makes them."""
    one = X.clone()
    one[1, 0, 3, 5] = NAN
    bad: dict[str, Callable[[], Any]] = {
        "uint8": lambda: (X * 255).byte(),
        "bool": lambda: X > 0,
        "int64": lambda: X.long(),
        "complex64": lambda: X.to(torch.complex64),
        "sparse": lambda: X.to_sparse(),
        "quantized": lambda: torch.quantize_per_tensor(X, 0.1, 0, torch.quint8),
        "nested": lambda: torch.nested.nested_tensor([X[0], X[1]]),
        "meta": lambda: X.to("meta"),
        "0d": lambda: X[0, 0, 0, 0],
        "2d": lambda: X[0, 0],
        "3d": lambda: X[0],
        "no image": lambda: X[:0],
        "no channel": lambda: X[:, :0],
        "no row": lambda: X[:, :, :0],
        "str": lambda: "cat.png",
        "bytes": lambda: b"",
        "none": lambda: None,
        "number": lambda: 1.5,
        "list": lambda: X.tolist(),
        "numpy": lambda: X.numpy(),
    }
    unknown: dict[str, Callable[[], Any]] = {  # a method that runs no model cannot refuse them
        "1 channel": lambda: X[:, :1],
        "4 channels": lambda: torch.cat([X, X[:, :1]], 1),
        "5d": lambda: X[:, :, None],
        "channels last": lambda: X.permute(0, 2, 3, 1),
    }
    nan: dict[str, Callable[[], Any]] = {
        "nan": lambda: torch.stack([X[0], X[1] * NAN]),
        "inf": lambda: torch.stack([X[0], X[1] * INF]),
        "a nan": lambda: one,
    }
    return {
        name: (rule, make)
        for rule, made in {"bad": bad, "unknown": unknown, "any": FINE, "nan": nan}.items()
        for name, make in made.items()
    }


BAD_TARGETS: list[Any] = [
    -1,
    -(2**63),
    HUGE,
    2**70,
    1.5,
    NAN,
    "x",
    "",
    "topk:",
    "topk:0",
    "topk:99",
    "topk:-1",
    "label",
    b"1",
    1j,
    {0: 1},
    {1},
]
BAD_TARGETS += [
    [0],
    [0, 1, 2],
    [],
    ["a", "b"],
    [0.0, 1.0],
    [[0], [0, 1]],
    [None, 0],
    object(),
    [HUGE, 0],
    [0, -1],
    [[], []],
]
BAD_TARGETS += [torch.tensor([0, 1, 2]), torch.tensor([0.0, 1.0]), torch.tensor([True, False]), torch.tensor([0j, 1j])]
BAD_TARGETS += [torch.tensor([0, -1]), torch.zeros(2, 1, 1, dtype=torch.long), torch.zeros(2, 0, dtype=torch.long)]
BAD_TARGETS += [
    torch.zeros(0, dtype=torch.long),
    T.to_sparse(),
    T.to("meta"),
    np.array([0.0, 1.0]),
    np.array(["a", "b"]),
]


def bad_targets() -> dict[str, tuple[str, Any]]:
    """Targets by name: the rule and the value."""
    unknown = [4, 10**6, 2**62, torch.tensor([0, 2**62])]
    fine = [
        True,
        np.int64(1),
        np.array([0, 1]),
        (0, 1),
        torch.tensor(1),
        T.byte(),
        T.short(),
        "topk:2",
        "pred",
        "least",
    ]
    fine += [torch.tensor([[0, 1], [1, 2]]), torch.tensor([[0, 9], [1, 9]])[:, 0]]
    scores: dict[str, Callable[[Any], Any]] = {
        "a sum": lambda o: o[:, 0].sum(),
        "a column": lambda o: o[:, :1],
        "one": lambda o: o[:1, 0],
        "twice": lambda o: torch.cat([o[:, 0], o[:, 1]]),
        "none": lambda o: None,
        "integers": lambda o: o[:, 0].long(),
        "complex": lambda o: o[:, 0].to(torch.complex64),
        "a list": lambda o: o[:, 0].tolist(),
        "on another device": lambda o: o[:, 0].to("meta"),
    }
    neutral = {"detached": lambda o: o[:, 0].detach(), "mixed": lambda o: o[:, 0] * o[:, 1]}
    return {
        **{f"{v!r:.60}": ("bad", v) for v in BAD_TARGETS},
        **{f"{v!r:.60}": ("unknown", v) for v in unknown},
        **{f"{v!r:.60}": ("any", v) for v in fine},
        **{f"callable: {name}": ("unknown", v) for name, v in scores.items()},
        **{f"callable: {name}": ("any", v) for name, v in neutral.items()},
    }


def bad_maps(S: Tensor) -> dict[str, Any]:
    results = {
        "negative": S - 2,
        "large": S * 50,
        "4d": S[:, None],
        "2d": S[0],
        "another size": S[:, :8, :8],
        "one": S[:1],
    }
    results |= {
        "three": torch.cat([S, S[:1]]),
        "int": (S * 255).long(),
        "uint8": (S * 255).byte(),
        "meta": S.to("meta"),
    }
    results |= {
        "complex": S.to(torch.complex64),
        "numpy": S.numpy(),
        "sparse": S.to_sparse(),
        "str": "x",
        "inf": S * INF,
    }
    return {
        **results,
        "list": S.tolist(),
        "empty": S[:0],
        "none": None,
        "quantized": torch.quantize_per_tensor(S, 0.1, 0, torch.quint8),
    }


def masks(mask: Tensor) -> dict[str, tuple[str, Any]]:
    fine = {"empty": mask & False, "bool": mask, "float": mask.float(), "full": mask | True, "2": mask.long() * 2}
    bad = {
        "half sized": mask[:, :4],
        "4d": mask[:, None],
        "nan": mask.float() * NAN,
        "one": mask[:1],
    }
    bad |= {"negative": -mask.float(), "str": "x", "complex": mask.to(torch.complex64), "meta": mask.to("meta")}
    bad |= {
        "number": 1,
        "list": mask.tolist(),
        "sparse": mask.float().to_sparse(),
        "numpy": mask.numpy(),
        "0d": torch.tensor(True),
    }
    return {**{k: ("any", v) for k, v in fine.items()}, **{k: ("bad", v) for k, v in bad.items()}}


def boxes_by_name(boxes: Any) -> dict[str, tuple[str, Any]]:
    fine = {"2d": boxes[:, 0], "outside": boxes + 100, "negative": boxes - 4, "integers": boxes.long()}
    fine |= {
        "none of some": [boxes[0], boxes[1][:0]],
        "no box": [[], []],
        "padding": boxes * NAN,
        "lists": boxes.tolist(),
    }
    bad = {"inverted": boxes.flip(2), "inf": boxes * INF, "5 columns": torch.zeros(2, 1, 5)}
    bad |= {"one": boxes[:1], "str": "x", "number": 3, "complex": boxes.to(torch.complex64), "meta": boxes.to("meta")}
    bad |= {
        "0d": torch.tensor(1.0),
        "strings": [["a"], ["b"]],
        "4d": boxes[None],
        "nothing": None,
        "sparse": boxes.to_sparse(),
    }
    return {**{k: ("any", v) for k, v in fine.items()}, **{k: ("bad", v) for k, v in bad.items()}}
