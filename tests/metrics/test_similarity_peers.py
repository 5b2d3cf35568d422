"""SSIM against torchmetrics, histograms against a loop over their definition, and both on real kinds of maps."""

import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.image import structural_similarity_index_measure

from interpretable_training.attribution import normalize
from interpretable_training.metrics.core.similarity import cell_and_block, hog_similarity, ranks, spearman, ssim
from interpretable_training.metrics.sanity.checks import similarities


def maps(*size, seed=0):
    return torch.randn(4, *size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("size", [(11, 40), (32, 32), (57, 23)])
def test_ssim_equals_torchmetrics(size):
    a, b = maps(*size), maps(*size, seed=1) + 2 * maps(*size)
    x, y = (normalize(v)[:, None] for v in (a, b))
    options = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0, "reduction": "none", "return_full_image": True}
    local = structural_similarity_index_measure(x, y, **options)[1]  # also at borders, of images that go on mirrored
    assert_close(ssim(a, b), local[:, 0, 5:-5, 5:-5].flatten(1).mean(1), rtol=0, atol=1e-6)


def test_the_four_similarities_look_at_what_they_say():
    """Signs matter to the first alone; SSIM and HOG are those of magnitudes."""
    a, b = maps(24, 30), maps(24, 30, seed=1) + maps(24, 30)
    found = similarities(a, b)
    assert_close(found["spearman"], spearman(a, b))
    assert_close(found["spearman_abs"], spearman(a.abs(), b.abs()))
    assert_close(found["ssim"], ssim(a.abs(), b.abs()))
    assert_close(found["hog"], hog_similarity(a.abs(), b.abs()))
    assert (found["ssim"] - ssim(a, b)).abs().min() > 1e-3


@pytest.mark.parametrize(("side", "kinds"), [(7, 2), (8, 3), (10, 3), (11, 4), (224, 4)])
def test_similarities_are_left_out_where_maps_are_too_small_for_them(side, kinds):
    assert len(similarities(maps(side, 230), maps(side, 230, seed=1))) == kinds


def test_ranks_of_large_integers_and_of_infinities():
    """Ranks count; they never subtract."""
    values = torch.tensor([[2**52, 2**52 + 1, -(2**52), 2**52]]).double()
    assert ranks(values).tolist() == [[2.5, 4, 1, 2.5]]
    assert ranks(torch.tensor([[1.0, torch.inf, -torch.inf]])).tolist() == [[2, 3, 1]]


def test_half_precision_maps_are_compared_in_double():
    a, b = maps(16, 16).half(), maps(16, 16, seed=1).half()
    for kind, value in similarities(a, b).items():
        assert_close(value, similarities(a.double(), b.double())[kind], rtol=0, atol=1e-12)


def test_sizes_of_cells_and_blocks():
    """A fourteenth of the side, four pixels at least; the authors' 16 and 3 x 3 cells from 224 on."""
    sides = {8: (4, 2), 69: (4, 2), 70: (5, 2), 78: (5, 2), 223: (15, 2), 224: (16, 3), 448: (16, 3)}
    assert {side: cell_and_block(side) for side in sides} == sides
