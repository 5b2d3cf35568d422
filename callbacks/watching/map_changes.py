"""Small maps of an explanation step, and how much they differ from those of an earlier one.

    similarity = spearman(S, S')                                    (1)
    shift      = 1/2 sum over pixels of |S / sum S - S' / sum S'|   (2)

S, S': maps of the same image and class, of their magnitudes in (2).
"""

from torch import Tensor

from interpretable_training.callbacks.watching.explanations import Explained
from interpretable_training.metrics.core.similarity import spearman
from interpretable_training.report.journal import shrink
from interpretable_training.report.map_distance import moved_mass

Maps = dict[str, Tensor]  # method -> small maps (n, h, w)


def small_maps(explained: Explained) -> Maps:
    """Return the maps of the only view, as small as in the journal, on a scale that half precision can hold."""
    maps: Maps = next(iter(explained.maps.values()), {})
    shrunk = {name: shrink(S if S.ndim == 3 else S.flatten(1)[:, None]) for name, S in maps.items()}  # signals, volumes
    scaled = {name: S / S.flatten(1).abs().amax(1).clamp(min=1e-30)[:, None, None] for name, S in shrunk.items()}
    return {name: S.half().float() for name, S in scaled.items()}  # exactly the values of a checkpoint


def compare_maps(now: Tensor, then: Tensor) -> dict[str, Tensor]:
    """Return (1) and (2) of maps (n, h, w), NaN where one is constant or has no mass."""
    return {"similarity": spearman(now, then), "shift": moved_mass(now, then)}  # (1), (2)
