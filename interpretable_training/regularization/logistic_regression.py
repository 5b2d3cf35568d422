"""Logistic regression with an L1 penalty, by accelerated proximal steps.

    J(W, b) = 1/n * sum over i of CE(W z[i] + b, y[i]) + strength * sum of |W|    (1)
    V       = Q - grad J0(Q) / L                                                  (2)
    W, b    = sign(V) relu(|V| - strength / L), the last column of V               (3)
    L       = largest eigenvalue of Z^T Z / 2n                                     (4)
    Q       = P + (t - 1) / t' (P - P'),  t' = (1 + sqrt(1 + 4 t^2)) / 2           (5)

CE: cross-entropy of the softmax. J0: J without the penalty. P: W and b as the columns of one matrix, P' that of the
round before. Z: rows z[i] and a column of ones. (2)-(5): Beck and Teboulle, SIAM Journal on Imaging Sciences 2009,
https://doi.org/10.1137/080716542; t starts again at 1 where a step turns back, O'Donoghue and Candes, Foundations of
Computational Mathematics 2015, https://arxiv.org/abs/1204.3982.
"""

import math
import warnings

import torch
import torch.nn.functional as F
from torch import Tensor


def fit_logistic_regression(
    features: Tensor,
    target: Tensor,
    num_classes: int,
    strength: float,
    bias: bool = True,
    start: tuple[Tensor, Tensor] | None = None,
    tolerance: float = 1e-4,
    max_rounds: int = 20_000,
) -> tuple[Tensor, Tensor]:
    """Return W (N, d) and b (N,) that minimize (1), in float64; b is not penalized.

    >>> z = torch.tensor([[-1.0], [-1.0], [1.0], [1.0]])
    >>> W, b = fit_logistic_regression(z, torch.tensor([0, 0, 1, 1]), 2, strength=0.1)
    >>> (W[1] - W[0]).item() > 0, b.abs().max().item() < 1e-6
    (True, True)

    Args:
        features: (n, d), of a common scale.
        target: classes (n,); each class has to have an image, else there is no minimum.
        num_classes: N.
        strength: weight of the penalty, relative to the mean loss; C of scikit-learn is 1 / (n strength).
        bias: whether there is a b; zero else.
        start: W and b of a similar problem, from which fewer rounds are needed.
        tolerance: of the gradient, in which no number is larger at the end.
        max_rounds: after which a warning says that the tolerance is not reached.
    """
    Z = features.double()
    Z = torch.cat([Z, torch.full_like(Z[:, :1], float(bias))], 1)  # (n, d + 1)
    n, Y = len(Z), F.one_hot(target, num_classes).to(Z)
    penalty = torch.full_like(Z[:1], strength)
    penalty[:, -1] = 0
    L = max(float(torch.linalg.eigvalsh(Z.T @ Z)[-1]) / (2 * n), 1e-12)  # (4)
    P = Z.new_zeros(num_classes, Z.shape[1]) if start is None else torch.cat([start[0], start[1][:, None]], 1).to(Z)
    Q, t = P, 1.0
    for _ in range(max_rounds):
        gradient = ((Z @ Q.T).softmax(1) - Y).T @ Z / n
        V = Q - gradient / L  # (2)
        step = V.sign() * (V.abs() - penalty / L).relu()  # (3)
        moved, before, P = step - Q, P, step
        if L * float(moved.abs().max()) <= tolerance:
            break
        if float((moved * (P - before)).sum()) < 0:
            Q, t = P, 1.0
            continue
        following = (1 + math.sqrt(1 + 4 * t**2)) / 2
        Q, t = P + (t - 1) / following * (P - before), following  # (5)
    else:
        warnings.warn(
            f"expected a logistic regression of strength {strength:g} to end within {max_rounds} rounds, got a "
            f"gradient of {L * float(moved.abs().max()):.1g}; pass a larger strength.",
            stacklevel=2,
        )
    return P[:, :-1], P[:, -1]
