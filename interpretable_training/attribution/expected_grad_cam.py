"""Expected Grad-CAM. Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023.

    x[s] = x'[s] + a[s] (x - x'[s])                                       (1)
    w[k] = mean over i, j of mean over s of dy/dA(x[s])[k, i, j] D[k, i, j]    (2)
    S    = relu(sum over k of w[k] A(x)[k])                               (3)
    D    = A(x) - A(x'[s])                                                (4) "layer_diff"
         = A(x - x'[s])                                                   (5) "encode_diff"
         = dA(x[s])/da[s]                                                 (6) "tangent"

A: activations of `layer`. x'[s]: drawn from `baselines`. a[s] ~ U(0, 1). y: logit of the target class. The thesis wants
the derivative of (1) encoded at the layer; D is what that can mean. Only with (6) the sum over k, i, j of (2) tends to
y(x) - mean y(x'). With several batches of draws, S is the mean of the maps (3) of each.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import torch
import torch.autograd.forward_ad as fwad
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from .core.activation_gates import gates
from .core.base import GradientCAM, full
from .core.baselines import Baselines, as_baselines, features
from .core.batching import in_chunks
from .core.capture import capture, gradients, grid_of, ran, tap
from .core.gradient_sums import per_input
from .core.input_gradients import refuse_no_grad_inside
from .core.precision import wide
from .core.prepared_model import Output, PreparedModel, prepare, prepare_model
from .core.targets import Resolved, Target, take

Difference = Literal["layer_diff", "encode_diff", "tangent"]
Indices = Literal["iid", "sequential"] | Sequence[int]


class PathDraws(NamedTuple):
    """Draws of one chunk: draw s of image i, in mini-batch `batch`; A, G = dy/dA and D at x[s] (rows, K, *spatial).

    dx is (x - x') dy/dx at x[s], (rows, C, ...), with `of_input`.
    """

    s: Tensor
    i: Tensor
    batch: Tensor
    A: Tensor
    G: Tensor
    D: Tensor
    dx: Tensor | None


class Convergence(NamedTuple):
    """Convergence of the gradients over the draws, in their order.

    difference: |sum of the first s gradients, over draws, channels and cells|, (B, S). change: change of the mean
    gradient by draw s, as a share of it, (B, S). settled: number of draws after which the change was below the
    tolerance five times in a row, -1 if never, (B,). delta: sum of (2) - (y(x) - mean y(x')), (B,).
    """

    difference: Tensor
    change: Tensor
    settled: Tensor
    delta: Tensor


@dataclass(frozen=True)
class ExpectedGradCAM(GradientCAM):
    """Weight the channels of a layer by gradients times feature differences, averaged over paths from baselines.

    >>> ExpectedGradCAM(baselines=torch.zeros(2, 3, 16, 16), n=4)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        baselines: images (N, C, ...) of the training data, normalized like `images`, or from `cache_baselines`.
        n: draws in a mini-batch.
        batches: number of mini-batches; their maps are averaged.
        draws: "iid"; "sequential", one baseline after the other; or a list of indices of baselines, repeated in order.
        alpha: a[s] of each mini-batch: "uniform" in [0, 1], or "linspace", from 0 to 1 in equal steps.
        one_baseline_per_batch: start all draws of a mini-batch at the same baseline.
        difference: D of (2).
        seed: of the draws, which are the same for every image.
        chunk_size: images per pass; None chooses it by device and image size.
    """

    baselines: Tensor | Baselines = field(kw_only=True)
    n: int = 50
    batches: int = 1
    draws: Indices = "iid"
    alpha: Literal["uniform", "linspace"] = "uniform"
    one_baseline_per_batch: bool = False
    difference: Difference = "layer_diff"
    seed: int = 0
    chunk_size: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not all(isinstance(number, int) and number >= 1 for number in (self.n, self.batches)):
            raise ValueError(f"expected n and batches of at least 1, got n={self.n}, batches={self.batches}.")

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        A = features(prepared, images, target, layer, self.chunk_size)
        w = torch.zeros(self.batches * len(images), A.shape[1], dtype=A.dtype, device=A.device)

        def add(rows: PathDraws) -> None:
            w.index_add_(0, rows.batch * len(images) + rows.i, (rows.G * rows.D).flatten(2).mean(2) / self.n)  # (2)

        for_draws(self, prepared, images, target, layer, A, add)
        return mean_map(w, A, self.relu)

    def convergence(
        self,
        model: nn.Module,
        images: Tensor,
        target: Target = None,
        *,
        output: Output = None,
        tolerance: float = 1e-3,
    ) -> Convergence:
        """Return how the gradients of the (first) layer converge over the draws, and the completeness error."""
        with prepare_model(model, output) as prepared:
            images = prepare(prepared, images)
            resolved = one_class(prepared, images, target)
            layer = self.layers(prepared, images, resolved)[0]
            return _convergence(self, prepared, images, resolved, layer, tolerance)


def one_class(prepared: PreparedModel, images: Tensor, target: Target) -> Resolved:
    """Return `target` resolved; refuse several classes per image."""
    resolved = prepared.resolve(images, target)
    if isinstance(resolved, Tensor) and resolved.ndim > 1:
        raise ValueError(f"expected one target per image, got {tuple(resolved.shape)}; call once per target.")
    return resolved


def mean_map(w: Tensor, A: Tensor, relu: bool) -> Tensor:
    """Return (3) for the weights (batches * B, K), averaged over mini-batches: (B, *spatial)."""
    S = torch.einsum("nbk,bk...->nb...", w.view(-1, *A.shape[:2]), A)
    return (S.relu() if relu else S).mean(0)


def for_draws(
    cam: ExpectedGradCAM,
    prepared: PreparedModel,
    images: Tensor,
    target: Resolved,
    layer: str,
    A: Tensor,
    visit: Callable[[PathDraws], None],
    of_input: bool = False,
) -> None:
    """Call `visit` with the draws of each chunk, draw 0 of all images first; `A` are the features of the images.

    Args:
        of_input: compute the gradient at the input, too.
    """
    baselines = as_baselines(cam.baselines)
    baselines.check(images)
    index, a = draw_paths(cam)
    index, a = index.to(images.device), a.to(images.device, wide(images))
    base = baselines.images.to(images)
    from_layer = cam.difference == "layer_diff"
    A0, where = baselines.of_layer(prepared, layer, index, target, cam.chunk_size) if from_layer else (A[:0], index)

    def run(rows: slice) -> None:
        pair = torch.arange(rows.start, rows.stop, device=images.device)
        s, i = pair // len(images), pair % len(images)
        start, part = base[index[s]], take(target, i)
        way = images[i] - start
        x = start + per_input(a[s], images) * way  # (1)
        gradients_of = _at_layer_and_input if of_input else _at_layer
        A_s, G, dx = gradients_of(cam, prepared, x, part, layer)
        if from_layer:
            D = A[i] - A0[where[s]]  # (4)
        elif cam.difference == "encode_diff":
            D = features(prepared, way, part, layer, cam.chunk_size)  # (5)
        else:
            D = _tangent(prepared, x, way, layer, A_s)  # (6)
        visit(PathDraws(s, i, s // cam.n, A_s, G, D, None if dx is None else full(way) * dx))

    in_chunks(run, len(index) * len(images), cam.chunk_size, images)


def draw_paths(cam: ExpectedGradCAM) -> tuple[Tensor, Tensor]:
    """Return the index of the baseline and a of each draw, (batches * n,) each."""
    generator = torch.Generator().manual_seed(cam.seed)
    N, total = len(as_baselines(cam.baselines)), cam.batches if cam.one_baseline_per_batch else cam.batches * cam.n
    if isinstance(cam.draws, str) and cam.draws == "iid":
        index = torch.randint(N, (total,), generator=generator)
    else:
        listed = list(range(N)) if isinstance(cam.draws, str) else _indices(cam.draws)
        if not listed or not 0 <= min(listed) <= max(listed) < N:
            raise ValueError(f"expected draws 'iid', 'sequential' or indices from 0 to {N - 1}, got {cam.draws!r}.")
        index = torch.tensor(listed)[torch.arange(total) % len(listed)]
    if cam.one_baseline_per_batch:
        index = index.repeat_interleave(cam.n)
    if cam.alpha == "linspace":
        return index, torch.linspace(0, 1, cam.n, dtype=torch.float64).repeat(cam.batches)
    return index, torch.rand(cam.batches * cam.n, generator=generator, dtype=torch.float64)


def _indices(draws: Sequence[int]) -> list[int]:
    """Return `draws` as integers; an empty list where they are no whole numbers."""
    try:
        return [] if any(isinstance(i, bool) for i in draws) else [operator.index(i) for i in draws]
    except TypeError:
        return []


AtPoint = tuple[Tensor, Tensor, Tensor | None]  # A, dy/dA and, at the input, dy/dx


def _at_layer(cam: ExpectedGradCAM, prepared: PreparedModel, x: Tensor, target: Resolved, layer: str) -> AtPoint:
    with gates(cam.rule) as rule:
        captured = capture(prepared, x, [layer], target, score=cam.score, rule=rule)
    return full(captured.A[layer].detach()), full(captured.dA[layer]), None


def _at_layer_and_input(
    cam: ExpectedGradCAM, prepared: PreparedModel, x: Tensor, target: Resolved, layer: str
) -> AtPoint:
    with torch.enable_grad(), tap(prepared.module, [layer]) as outputs:
        x = x.detach().requires_grad_()
        y = prepared.score(x, target, cam.score)
        A = ran(outputs, layer)[-1]
        if A.is_leaf:  # A does not depend on x
            refuse_no_grad_inside(prepared, x)
        grads = gradients(y, {"A": A, "x": x})
    grid = grid_of(prepared, x, layer, A, target)
    if grid.prefix and not grid.read(grads["A"]).any():
        capture(prepared, x.detach(), [layer], target, score=cam.score)  # refuses patch tokens that are not read
    return full(grid.read(A.detach())), full(grid.read(grads["A"])), full(grads["x"])


def _tangent(prepared: PreparedModel, x: Tensor, way: Tensor, layer: str, A_s: Tensor) -> Tensor:
    """Return the derivative (6) of the features A_s along the path: forward-mode differentiation, one pass."""
    problem = None
    unfused = sdpa_kernel(SDPBackend.MATH)  # fused attention has no forward mode
    with torch.no_grad(), unfused, fwad.dual_level(), tap(prepared.module, [layer], gradient=False) as outputs:
        try:
            prepared.run(fwad.make_dual(x, way))
        except NotImplementedError as error:  # does not matter behind the layer
            problem = error
        if problem is not None and layer not in outputs:
            raise _no_forward_mode(problem)
        A, tangent = fwad.unpack_dual(ran(outputs, layer)[-1])
    grid = grid_of(prepared, x, layer, A, None)
    if problem is not None and not torch.allclose(full(grid.read(A)), A_s, 0.01, 0.01 * float(A_s.abs().max())):
        raise _no_forward_mode(problem)  # the layer runs again behind the operation that failed
    return full(grid.read(torch.zeros_like(A) if tangent is None else tangent))


def _no_forward_mode(problem: Exception) -> RuntimeError:
    return RuntimeError(
        f"expected a model that can be differentiated in forward mode with difference='tangent', got: {problem}; "
        "pass difference='layer_diff'."
    )


def _convergence(
    cam: ExpectedGradCAM, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str, tolerance: float
) -> Convergence:
    A = features(prepared, images, target, layer, cam.chunk_size)
    mean, phi = torch.zeros_like(A), A.new_zeros(len(A))
    total = A.new_zeros(len(A))
    difference, change = (A.new_zeros(len(A), cam.batches * cam.n) for _ in range(2))

    def follow(rows: PathDraws) -> None:
        phi.index_add_(0, rows.i, (rows.G * rows.D).flatten(1).sum(1) / difference.shape[1])
        for s, i, G in zip(rows.s.tolist(), rows.i.tolist(), rows.G):
            total[i] += G.sum()
            difference[i, s] = total[i].abs()
            before = mean[i].clone()
            mean[i] += (G - before) / (s + 1)
            change[i, s] = (mean[i] - before).norm() / mean[i].norm().clamp(min=torch.finfo(A.dtype).tiny)

    for_draws(cam, prepared, images, target, layer, A, follow)
    quiet = (change < tolerance).unfold(1, 5, 1).all(2) if change.shape[1] >= 5 else change[:, :0].bool()
    first = quiet.float().argmax(1) + 5 if quiet.shape[1] else torch.zeros_like(phi).long()
    settled = torch.where(quiet.any(1), first, -1)
    return Convergence(difference, change, settled, phi - _rise(cam, prepared, images, target))


@torch.no_grad()
def _rise(cam: ExpectedGradCAM, prepared: PreparedModel, images: Tensor, target: Resolved) -> Tensor:
    """Return y(x) - mean of y(x') over the draws, (B,)."""
    used, counts = draw_paths(cam)[0].to(images.device).unique(return_counts=True)
    base, y = as_baselines(cam.baselines).images.to(images)[used], full(prepared.score(images, target, cam.score))
    mean = torch.zeros_like(y)

    def run(rows: slice) -> None:
        output = prepared.run(base[rows])
        for i in range(len(images)):
            one = target[i].expand(rows.stop - rows.start) if isinstance(target, Tensor) else target
            mean[i] += (full(prepared.score_in(output, one, cam.score)) * counts[rows]).sum() / counts.sum()

    in_chunks(run, len(base), cam.chunk_size, base)
    return y - mean
