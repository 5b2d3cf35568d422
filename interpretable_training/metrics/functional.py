"""Scores of single images as functions of probabilities and maps; the classes of the same names average them.

    AD  = 100 relu(p - o) / p                                 (1)
    AI  = 100 [o > p]                                         (2)
    AG  = 100 relu(o - p) / (1 - p)                           (3)
    ADD = 100 (p - d) / p                                     (4)
    Complexity = mean over pixels of S                        (5)
    ADCC = 3 / (1 / coherency + 1 / (1 - complexity) + 1 / (1 - drop))    (6)

p: probability of the class. o: of the image seen through its map S. d: seen through 1 - S. The classes name the papers.
0/0 is 0, and (6) is 0 if a term is not above 0.
"""

import torch
from torch import Tensor

from .core.rescoring import wide


def average_drop(prob: Tensor, prob_masked: Tensor, relative: bool = True) -> Tensor:
    """Return (1) of each image, (B,); the difference itself where it is not relative.

    >>> average_drop(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
    tensor([50.,  0.])
    """
    drop = (prob - prob_masked).relu()
    return 100 * (ratio_or_zero(drop, prob) if relative else drop)  # (1)


def average_increase(prob: Tensor, prob_masked: Tensor, signed: bool = False) -> Tensor:
    """Return (2) of each image, (B,); -100 for images whose class becomes less probable, if signed.

    >>> average_increase(torch.tensor([0.8, 0.5]), torch.tensor([0.4, 0.6]))
    tensor([  0., 100.])
    """
    difference = prob_masked - prob
    change = difference.sign().masked_fill(difference.isnan(), torch.nan)
    return 100 * (change if signed else change.relu())  # (2)


def average_gain(prob: Tensor, prob_masked: Tensor) -> Tensor:
    """Return (3) of each image, (B,).

    >>> average_gain(torch.tensor([0.75, 0.5]), torch.tensor([0.5, 0.75]))
    tensor([ 0., 50.])
    """
    return 100 * ratio_or_zero((prob_masked - prob).relu(), 1 - prob)  # (3)


def average_drop_in_deletion(prob: Tensor, prob_deleted: Tensor, clamp: bool = False) -> Tensor:
    """Return (4) of each image, (B,); images whose class becomes more probable count as 0, if clamped.

    >>> average_drop_in_deletion(torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75]))
    tensor([ 50., -50.])
    """
    drop = prob - prob_deleted
    return 100 * ratio_or_zero(drop.relu() if clamp else drop, prob)  # (4)


def complexity(saliency: Tensor) -> Tensor:
    """Return (5) of maps (B, H, W) in [0, 1], (B,).

    >>> complexity(torch.tensor([[[0.0, 0.5]], [[1.0, 1.0]]])).tolist()
    [0.25, 1.0]
    """
    return saliency.to(wide(saliency)).flatten(1).mean(1)  # (5)


def adcc(coherency: Tensor, complexity: Tensor, drop: Tensor) -> Tensor:
    """Return (6) of three fractions of one shape: coherency, complexity and drop, each from 0 to 1.

    >>> adcc(torch.tensor(1.0), torch.tensor(0.5), torch.tensor(0.5))
    tensor(0.6000)
    """
    terms = torch.stack([coherency, 1 - complexity, 1 - drop], -1)
    mean = 3 / (1 / terms.clamp(min=torch.finfo(terms.dtype).tiny)).sum(-1)
    return mean.masked_fill((terms <= 0).any(-1), 0)  # (6)


def ratio_or_zero(part: Tensor, whole: Tensor) -> Tensor:
    """Return part / whole; 0 where the whole is 0, NaN where it is negative, as logits may be."""
    ratio = part / whole.masked_fill(whole == 0, 1)
    return ratio.masked_fill(whole == 0, 0).masked_fill(whole < 0, torch.nan).masked_fill(part.isnan(), torch.nan)
