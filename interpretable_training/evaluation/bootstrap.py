"""Bootstrap intervals of a mean over images, and of the difference of two.

    m[r] = mean over images drawn with replacement     r = 1..R                 (1)
    interval = from the 2.5th to the 97.5th percentile of m                     (2)
    p = 2 min(1 + #{r: d[r] <= 0}, 1 + #{r: d[r] >= 0}) / (R + 1), at most 1    (3)

Efron and Tibshirani, 1993. d: like m, of the differences of two columns on the same images. Images are drawn, not
rows, so that several classes of an image stay together; all columns are drawn alike.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

AT_ONCE = 2**22  # numbers drawn at a time


@dataclass(frozen=True)
class BootstrapDraws:
    """R choices of images with replacement, as how often each is drawn.

    Args:
        images: which image each row is of, (n,).
        resamples: R.
        seed: of the choices.
    """

    images: Tensor
    resamples: int = 2000
    seed: int = 0

    def means(self, values: Tensor) -> Tensor:
        """Return means (R, C) of columns (n, C) over the rows of the drawn images that have a number (1)."""
        index = self.images.unique(return_inverse=True)[1]
        n, known = int(index.max()) + 1, ~values.isnan()
        sums = values.new_zeros(n, values.shape[1]).index_add_(0, index, values.nan_to_num())
        rows = values.new_zeros(n, values.shape[1]).index_add_(0, index, known.to(values))
        generator = torch.Generator().manual_seed(self.seed)
        means = []
        chunk = max(1, AT_ONCE // n)
        for start in range(0, self.resamples, chunk):
            R = min(chunk, self.resamples - start)
            drawn = torch.randint(n, (R, n), generator=generator)
            often = values.new_zeros(R, n).scatter_add_(1, drawn, values.new_ones(R, n))
            means.append((often @ sums) / (often @ rows))
        return torch.cat(means)


def interval(m: Tensor) -> tuple[float, float]:
    """Return (2) of draws (R,); NaN where there is none."""
    m = m[~m.isnan()]
    if not len(m):
        return float("nan"), float("nan")
    low, high = m.quantile(torch.tensor([0.025, 0.975], dtype=m.dtype)).tolist()
    return low, high


def p_value(d: Tensor, rounding: float = 0.0) -> float:
    """Return (3) of draws of a difference (R,), which counts as 0 up to `rounding`; NaN where there is none."""
    d = d[~d.isnan()]
    if not len(d):
        return float("nan")
    least = min(int((d <= rounding).sum()), int((d >= -rounding).sum()))
    return min(1.0, 2 * (1 + least) / (len(d) + 1))
