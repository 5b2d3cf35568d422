"""Expected Grad-CAM++. Buono and Akesson, Towards gradient faithfulness and beyond, Halmstad University, 2023.

    a[s] = g^2 / (2 g^2 + sum over a, b of A[k, a, b] g[k, a, b]^3), 0 where g = 0    (1)
    w[k] = mean over i, j of mean over s of a[s] relu(g) D                            (2) "weighted"
         = mean over i, j of mean over s of a[s] D                                    (3) "literal"
         = mean over i, j of a relu(mean over s of g) (mean over s of D)              (4) "moments"
    S    = relu(sum over k of w[k] A(x)[k])                                           (5)

A, g = dy/dA: at the draw x[s]; D: what `ExpectedGradCAM` multiplies with. In (4) a is (1) of A(x) and of the means of
g^2 and g^3 over the draws, as in Smooth Grad-CAM++.
Differs from the thesis: it prints (3), which ignores the sign of the gradient, but refers to Smooth Grad-CAM++, which
has the factor relu(g): (2).
"""

from dataclasses import dataclass, field, fields
from typing import Literal

import torch
from torch import Tensor

from .core.base import GradientCAM
from .core.baselines import Baselines, features
from .core.prepared_model import PreparedModel
from .core.targets import Resolved
from .expected_grad_cam import Difference, ExpectedGradCAM, Indices, PathDraws, for_draws, mean_map
from .grad_cam_plusplus import gradient_ratio


@dataclass(frozen=True)
class ExpectedGradCAMPlusPlus(GradientCAM):
    """Weight the channels of a layer as Expected Grad-CAM does, with the ratio of Grad-CAM++ instead of the gradient.

    >>> baselines = torch.zeros(2, 3, 16, 16)
    >>> ExpectedGradCAMPlusPlus(baselines=baselines, n=4)(network, images, target).shape
    torch.Size([4, 16, 16])

    Args:
        baselines: see `ExpectedGradCAM`, also for the options up to `chunk_size`.
        form: of the weights: "weighted" (2), "literal" (3) or "moments" (4).
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
    form: Literal["weighted", "literal", "moments"] = "weighted"

    def layer_map(self, prepared: PreparedModel, images: Tensor, target: Resolved, layer: str) -> Tensor:
        cam = ExpectedGradCAM(**{f.name: getattr(self, f.name) for f in fields(ExpectedGradCAM)})
        A = features(prepared, images, target, layer, self.chunk_size)
        sums = torch.zeros(4, self.batches * len(images), *A.shape[1:], dtype=A.dtype, device=A.device)
        if self.form != "moments":
            sums = sums[:1]

        def add(rows: PathDraws) -> None:
            at = rows.batch * len(images) + rows.i
            g, D = rows.G, rows.D
            if self.form == "moments":
                parts = [g, g**2, g**3, D]
            else:
                a = gradient_ratio(rows.A, g**2, g**2, g**3, "sum_act_grad")  # (1)
                parts = [a * g.relu() * D if self.form == "weighted" else a * D]  # (2), (3)
            for total, part in zip(sums, parts):
                total.index_add_(0, at, part / self.n)

        for_draws(cam, prepared, images, target, layer, A, add)
        if self.form == "moments":
            g, g2, g3, D = sums
            repeated = A.repeat(self.batches, *[1] * (A.ndim - 1))
            per_cell = gradient_ratio(repeated, g2, g2, g3, "sum_act_grad") * g.relu() * D  # (4)
        else:
            (per_cell,) = sums
        return mean_map(per_cell.flatten(2).mean(2), A, self.relu)  # (5)
