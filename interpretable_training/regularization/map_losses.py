"""Losses of maps: how much of a map lies outside of the region where it may lie.

    energy = 1 - sum over p in M of [S[p]]+ / sum over p of [S[p]]+     (1)
    l1     = mean over p outside of M of |S[p]| / max |S|               (2)

S: saliency (B, H, W), of any scale. M: region (B, H, W), where the map may lie. [.]+: positive part. All functions
return (B,), from 0 where all of the map lies in M to 1. A map without positive values has no energy in M: (1) is 1 and
has no gradient. Where M is the whole image, (1) of a map with positive values is 0 and so is (2).

(1): Rao et al., ICCV 2023, https://arxiv.org/abs/2303.11932, after the energy-based pointing game of Wang et al.,
CVPR-W 2020. Differs from that paper: (2) does not raise the map inside of M to its maximum; theirs is the mean of
|S - M| over all pixels.
"""

from collections.abc import Callable

from torch import Tensor

MapLoss = Callable[[Tensor, Tensor], Tensor]
SMALLEST = 1e-12  # maps with a sum or maximum below it are empty


def energy(saliency: Tensor, region: Tensor) -> Tensor:
    """Return the share of the positive part of each map that lies outside of its region (1).

    >>> energy(torch.tensor([[[3.0, 1.0]]]), torch.tensor([[[True, False]]]))
    tensor([0.2500])
    """
    S = saliency.relu().flatten(1)
    total = S.sum(1)
    inside = (S * region.flatten(1)).sum(1)
    return 1 - inside / total.where(total > SMALLEST, 1.0)  # (1)


def l1(saliency: Tensor, region: Tensor) -> Tensor:
    """Return the mean of each map outside of its region, as a share of its maximum (2).

    >>> l1(torch.tensor([[[-4.0, 1.0, 3.0]]]), torch.tensor([[[True, False, False]]]))
    tensor([0.5000])
    """
    S, outside = saliency.abs().flatten(1), ~region.flatten(1)
    top = S.amax(1)
    mean = (S * outside).sum(1) / outside.sum(1).clamp(min=1)
    return mean / top.where(top > SMALLEST, 1.0)  # (2)


LOSSES: dict[str, MapLoss] = {"energy": energy, "l1": l1}
