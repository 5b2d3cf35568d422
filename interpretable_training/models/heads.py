"""Find the head of a backbone, what it reads, and how the backbone pools its last stage."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .taps import ModuleRun, run_modules


@dataclass(frozen=True)
class Head:
    """Part of a backbone after the pooling.

    Attributes:
        names: Modules that compute logits from pooled maps, one after the other; none where the backbone's
            `forward_head` (timm) does.
        cells: Number of pooled cells that it reads as (B, d * cells); 0 where it reads maps.
        last: Whether these maps are (B, h, w, d) instead of (B, d, h, w).
        modules: Names of all modules that run in it.
    """

    names: tuple[str, ...]
    cells: int
    last: bool = False
    modules: frozenset[str] = frozenset()

    def __call__(self, backbone: nn.Module, q: Tensor) -> Tensor:
        """Return logits of q (B, d), those of a map that is q everywhere."""
        if not self.names:
            return backbone.forward_head(q[:, None, None] if self.last else q[:, :, None, None])  # type: ignore[operator]
        if self.cells:
            x = q if self.cells == 1 else q[:, :, None].expand(-1, -1, self.cells).flatten(1)
        else:
            x = q[:, :, None, None]
        for name in self.names:
            x = backbone.get_submodule(name)(x)
        return x.flatten(1)


def find_head(
    backbone: nn.Module,
    given: str | nn.Module | None,
    ran: Sequence[ModuleRun],
    logits: Tensor,
    last: ModuleRun,
    A: Tensor,
    layout: str,
) -> tuple[Head, str]:
    """Return the head that follows the last stage `last`, and the name of the backbone's pooling: "gap" or "own".

    A: maps (B, d, h, w) of the last stage, in the output of its module in `layout`.
    """
    if given is None and hasattr(backbone, "forward_head") and layout != "tokens":
        head, received = Head((), 0, layout == "last"), None
    else:
        head, received = _find_modules(backbone, given, ran, logits, last, A.shape[1], layout)
    pooling = _pooling(backbone, head, last, received, logits, A, layout)
    modules, _ = run_modules(backbone, A.mean((2, 3)), head)
    _check_linear(backbone, modules)
    return Head(head.names, head.cells, head.last, frozenset(r.name for r in modules)), pooling


def _find_modules(
    backbone: nn.Module,
    given: str | nn.Module | None,
    ran: Sequence[ModuleRun],
    logits: Tensor,
    last: ModuleRun,
    d: int,
    layout: str,
) -> tuple[Head, Tensor]:
    """Return the given head, or the module that returns the logits, and what it receives."""
    made = [r for r in ran if r.output is logits and not f"{last.name}.".startswith(f"{r.name}.")]
    if given is not None:
        made = [r for r in ran if given in (r.name, r.module)]
    if not made or not isinstance(made[-1].input, Tensor) or made[-1].input.ndim not in (2, 4):
        got = "found none" if given is None else f"got {given!r}"
        raise ValueError(
            f"expected a head, a module of {type(backbone).__name__} that makes its logits of pooled features (B, d) "
            f"or maps (B, d, h, w), {got}; pass head= with the name of one that runs, or num_classes= for a new "
            "linear head."
        )
    chain = [made[-1]]
    while layout != "first" and given is None:  # norms between the pooling of tokens and the classifier
        before = [r for r in ran if r.output is chain[0].input and isinstance(r.input, Tensor) and r.input.ndim == 2]
        before = [r for r in before if r.input is not r.output]
        if not before:
            break
        chain.insert(0, before[-1])
    received = chain[0].input
    cells, rest = divmod(received.shape[1], d)
    if rest or (received.ndim == 4 and cells != 1) or round(cells**0.5) ** 2 != cells or not cells:
        raise ValueError(
            f"expected a head that reads the {d} channels of the last stage {last.name!r}, but {chain[0].name!r} reads "
            f"{tuple(received.shape[1:])}; pass stages= that end with the map that is pooled, and head=, or "
            "num_classes= for a new linear head."
        )
    return Head(tuple(r.name for r in chain), cells if received.ndim == 2 else 0), received


def _pooling(
    backbone: nn.Module, head: Head, last: ModuleRun, received: Any, logits: Tensor, A: Tensor, layout: str
) -> str:
    """Return "gap" if the head reads the averages of the last stage, "own" for tokens that are pooled otherwise.

    Raise ValueError for feature maps that are pooled otherwise: stages and head may not be those that belong together.
    """
    why = "other features"
    if received is not None:
        size = received.shape[2:] if received.ndim == 4 else (round(head.cells**0.5),) * 2
        one, other = F.adaptive_avg_pool2d(A, tuple(size)).flatten(1), received.flatten(1)
    else:
        one, other = logits[:0], logits
        try:
            one = backbone.forward_head(last.tensor)  # type: ignore[operator]
        except Exception as error:  # heads raise many types for maps of another stage
            why = f"{type(error).__name__}: {error}"
    if one.shape == other.shape and (one.is_meta or torch.allclose(one, other, rtol=1e-2, atol=1e-3)):
        attended = received is None and not _averages(backbone, head, last, logits, A)
        return "own" if attended or (one.is_meta and layout == "tokens") else "gap"
    if layout == "tokens":
        return "own"
    what = repr(head.names[-1]) if head.names else "forward_head"
    raise ValueError(
        f"expected the head {what} of {type(backbone).__name__} to read the averages of the last stage "
        f"{last.name!r}, got {why}; pass stages= that end with the map that is pooled, and head= with the name of "
        "what follows the pooling, or num_classes= for a new linear head."
    )


def _averages(backbone: nn.Module, head: Head, last: ModuleRun, logits: Tensor, A: Tensor) -> bool:
    """Whether `forward_head` returns the same logits for a map of averages: it does not if it pools by attention."""
    if logits.is_meta:
        return True
    return torch.allclose(head(backbone, A.mean((2, 3))), logits, rtol=1e-2, atol=1e-3)


def _check_linear(backbone: nn.Module, ran: Sequence[ModuleRun]) -> None:
    """Raise ValueError if the last step of the head is not linear."""
    weighted = [r.module for r in ran if next(r.module.parameters(recurse=False), None) is not None]
    module = weighted[-1] if weighted else None
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1)):
        return
    got = "no learned module" if module is None else type(module).__name__
    raise ValueError(
        f"expected a head of {type(backbone).__name__} that ends in a linear classifier, nn.Linear or a convolution of "
        f"1 x 1, got {got}; pass head= with the name of its classifier, or num_classes= for a new linear head."
    )
