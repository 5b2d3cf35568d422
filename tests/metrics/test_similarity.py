"""Similarities of maps: identities, loops, scipy and scikit-image."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close
from torchmetrics.functional.image import structural_similarity_index_measure

from interpretable_training.attribution import normalize
from interpretable_training.metrics.core.similarity import (
    cell_and_block,
    hog,
    hog_similarity,
    pearson,
    ranks,
    spearman,
    ssim,
)
from interpretable_training.metrics.sanity.checks import similarities

ALL = [pearson, spearman, ssim, hog_similarity, lambda a, b: hog_similarity(a, b, "pearson")]
SIZES = [(24, 30), (16, 16), (96, 64)]


def maps(*size, seed=0):
    return torch.randn(3, *size, generator=torch.Generator().manual_seed(seed)).double()


def smooth_maps(*size, seed=0):
    """Maps with structure, as methods give them."""
    coarse = maps(*[max(2, n // 6) for n in size], seed=seed)
    return torch.nn.functional.interpolate(coarse[:, None], size, mode="bilinear")[:, 0]


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("similarity", ALL)
def test_a_map_is_like_itself(similarity, size):
    S = smooth_maps(*size)
    assert_close(similarity(S, S), torch.ones(3).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("similarity", ALL)
def test_it_does_not_matter_which_map_comes_first_nor_the_batch(similarity):
    a, b = smooth_maps(24, 30), smooth_maps(24, 30, seed=1) + smooth_maps(24, 30)
    both = similarity(a, b)
    assert_close(both, similarity(b, a), rtol=0, atol=1e-12)
    assert_close(similarity(a[1:2], b[1:2]), both[1:2], rtol=0, atol=1e-12)
    assert ((both >= -1) & (both < 1)).all()


@pytest.mark.parametrize("similarity", ALL)
def test_nothing_is_like_a_constant_map(similarity):
    a, b = smooth_maps(24, 30), smooth_maps(24, 30, seed=1)
    a[0], b[1] = 0.3, 0
    assert similarity(a, b).isnan().tolist() == [True, True, False]
    assert similarity(a[:1], a[:1]).isnan().all()
    a[2, 0, 0] = torch.nan
    assert similarity(a, b).isnan().all()


@pytest.mark.parametrize("similarity", ALL)
def test_units_do_not_matter(similarity):
    a, b = smooth_maps(24, 30), smooth_maps(24, 30, seed=1)
    assert_close(similarity(a, b), similarity(1e-20 * a, 3e12 * b + 1), rtol=0, atol=1e-3)
    assert_close(similarity(a, b), similarity(5 * a, 2 * b + 1), rtol=0, atol=1e-6)


def test_a_map_and_its_opposite():
    S = maps(5, 6)
    minus = -torch.ones(3).double()
    assert_close(pearson(S, -S), minus, rtol=0, atol=1e-12)
    assert_close(spearman(S, -S), minus, rtol=0, atol=1e-12)
    assert_close(spearman(S, -S, magnitude=True), -minus, rtol=0, atol=1e-12)
    assert (ssim(smooth_maps(24, 30), -smooth_maps(24, 30)) < 0).all()


def test_monotone_changes_keep_the_ranks():
    S = maps(5, 6)
    assert_close(spearman(S, S.exp()), torch.ones(3).double(), rtol=0, atol=1e-12)
    assert (pearson(S, S.exp()) < 0.999).all()


def test_an_affine_change_keeps_the_correlation():
    S = maps(5, 6)
    assert_close(pearson(S, 2 * S - 7), torch.ones(3).double(), rtol=0, atol=1e-12)


def test_pearson_by_hand():
    """(1, 2, 3, 6) and (2, 1, 4, 5): deviations (-2, -1, 0, 3) and (-1, -2, 1, 2), 10 / sqrt(14 * 10)."""
    a, b = torch.tensor([[[1.0, 2], [3, 6]]]), torch.tensor([[[2.0, 1], [4, 5]]])
    assert pearson(a, b).item() == pytest.approx(10 / math.sqrt(140), abs=1e-12)
    assert spearman(a, b).item() == pytest.approx(1 - 6 * 2 / (4 * 15), abs=1e-12)


def test_equal_values_share_the_mean_of_their_ranks():
    values = torch.tensor([[0.5, 0.0, 0.5, 2.0, -1.0, 0.5]])
    assert ranks(values).tolist() == [[4, 2, 4, 6, 1, 4]]
    assert ranks(torch.tensor([[-0.0, 0.0]])).tolist() == [[1.5, 1.5]]


@pytest.mark.parametrize("levels", [3, 1000])
def test_correlations_equal_scipys(levels):
    stats = pytest.importorskip("scipy.stats")
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randint(-levels, levels, (2, 3, 5, 7), generator=generator).double()
    for ours, theirs in ((pearson, stats.pearsonr), (spearman, stats.spearmanr)):
        expected = [theirs(x.flatten().numpy(), y.flatten().numpy()).statistic for x, y in zip(a, b)]
        assert_close(ours(a, b), torch.tensor(expected).double(), rtol=0, atol=1e-12)
    expected = [stats.spearmanr(x.flatten().abs().numpy(), y.flatten().abs().numpy()).statistic for x, y in zip(a, b)]
    assert_close(spearman(a, b, magnitude=True), torch.tensor(expected).double(), rtol=0, atol=1e-12)


def test_maps_of_any_number_of_axes_and_precision_are_compared():
    for size in ((40,), (14, 13, 12)):
        a, b = maps(*size), maps(*size, seed=1)
        for similarity in (pearson, spearman, ssim):
            assert similarity(a, b).shape == (3,)
            assert_close(similarity(a.float(), b.float()), similarity(a, b), rtol=0, atol=1e-4)


def gaussian():
    k = np.exp(-0.5 * (np.arange(-5, 6) / 1.5) ** 2)
    k = np.outer(k, k)
    return k / k.sum()


def ssim_in_loops(x, y, data_range=1.0, bias=1.0):
    """Window by window, of two maps (H, W) in [0, 1]."""
    k, (H, W), results = gaussian(), x.shape, []
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2
    for i in range(H - 10):
        for j in range(W - 10):
            u, v = x[i : i + 11, j : j + 11], y[i : i + 11, j : j + 11]
            mu, mv = (k * u).sum(), (k * v).sum()
            vu, vv = bias * (k * (u - mu) ** 2).sum(), bias * (k * (v - mv) ** 2).sum()
            uv = bias * (k * (u - mu) * (v - mv)).sum()
            results.append((2 * mu * mv + c1) * (2 * uv + c2) / ((mu**2 + mv**2 + c1) * (vu + vv + c2)))
    return np.mean(results)


@pytest.mark.parametrize("size", [(11, 11), (13, 20)])
def test_ssim_equals_loops(size):
    a, b = smooth_maps(*size), maps(*size, seed=1)
    x, y = (normalize(v).numpy() for v in (a, b))
    expected = [ssim_in_loops(*pair) for pair in zip(x, y)]
    assert_close(ssim(a, b), torch.tensor(expected).double(), rtol=0, atol=1e-9)
    expected = [ssim_in_loops(*pair, 2.0, 121 / 120) for pair in zip(x, y)]
    assert_close(ssim(a, b, skimage_compat=True), torch.tensor(expected).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize("size", SIZES)
def test_ssim_equals_scikit_image(size):
    structural_similarity = pytest.importorskip("skimage.metrics").structural_similarity
    a, b = smooth_maps(*size), smooth_maps(*size, seed=1)
    pairs = list(zip(normalize(a).numpy(), normalize(b).numpy()))
    for options, theirs in (
        ({}, {"data_range": 1.0, "use_sample_covariance": False}),
        ({"skimage_compat": True}, {"data_range": 2.0}),
    ):
        expected = [structural_similarity(x, y, gaussian_weights=True, sigma=1.5, **theirs) for x, y in pairs]
        assert_close(ssim(a, b, **options), torch.tensor(expected).double(), rtol=0, atol=1e-9)


def hog_in_loops(x, cell, block):
    """Of a map (H, W): votes pixel by pixel, then blocks of cells, clipped."""
    (H, W), rows, columns = x.shape, x.shape[0] // cell, x.shape[1] // cell
    votes = np.zeros((rows, columns, 9))
    for i in range(rows * cell):
        for j in range(columns * cell):
            dy = x[i + 1, j] - x[i - 1, j] if 0 < i < H - 1 else 0.0
            dx = x[i, j + 1] - x[i, j - 1] if 0 < j < W - 1 else 0.0
            angle = math.degrees(math.atan2(dy, dx)) % 180
            votes[i // cell, j // cell, int(angle / 20 + 1e-6) % 9] += math.hypot(dx, dy) / cell**2
    results = []
    for i in range(rows - block + 1):
        for j in range(columns - block + 1):
            v = votes[i : i + block, j : j + block].ravel()
            v = np.minimum(v / math.sqrt((v**2).sum() + 1e-10), 0.2)
            results.append(v / math.sqrt((v**2).sum() + 1e-10))
    return np.array(results)


@pytest.mark.parametrize(("size", "cell"), [((8, 8), 4), ((13, 18), 4), ((60, 84), 4), ((72, 80), 5)])
def test_hog_of_small_maps_equals_loops(size, cell):
    """About 14 cells a side, of 4 pixels or more, in blocks of 2 x 2."""
    S = normalize(smooth_maps(*size))[:2]
    for x, ours in zip(S, hog(S)):
        expected = hog_in_loops(x.numpy(), cell, 2)
        assert_close(ours.flatten(0, 1), torch.from_numpy(expected), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("size", "cell", "block"), [((30, 41), 4, 2), ((96, 72), 5, 2), ((224, 240), 16, 3)])
def test_hog_equals_scikit_image(size, cell, block):
    theirs = pytest.importorskip("skimage.feature").hog
    S = normalize(smooth_maps(*size))
    expected = [theirs(x.numpy(), 9, (cell, cell), (block, block), block_norm="L2-Hys") for x in S]
    assert_close(hog(S).flatten(1), torch.from_numpy(np.stack(expected)), rtol=0, atol=1e-6)


def test_hog_similarity_equals_scipy_and_scikit_image():
    theirs, stats = pytest.importorskip("skimage.feature").hog, pytest.importorskip("scipy.stats")
    a, b = smooth_maps(224, 224)[:1], smooth_maps(224, 224, seed=1)[:1]
    results = [theirs(normalize(v)[0].numpy(), 9, (16, 16), (3, 3), block_norm="L2-Hys") for v in (a, b)]
    assert hog_similarity(a, b).item() == pytest.approx(stats.spearmanr(*results).statistic, abs=1e-4)
    assert hog_similarity(a, b, "pearson").item() == pytest.approx(stats.pearsonr(*results).statistic, abs=1e-6)


def test_hog_of_a_ramp_by_hand():
    """A ramp to the right has gradients of 0 degrees; one down has 90, the fifth bin of nine. Blocks have norm 1."""
    right = torch.arange(16.0).double().expand(1, 16, 16) / 15
    for S, bin_ in ((right, 0), (-right, 0), (right.mT, 4)):
        blocks = hog(S)
        assert blocks.shape == (1, 3, 3, 36)
        votes = blocks.view(1, 3, 3, 4, 9)
        assert (votes[..., bin_] > 0).all()
        assert_close(votes.sum(), votes[..., bin_].sum(), rtol=0, atol=1e-12)
        assert_close(blocks.square().sum(-1), torch.ones(1, 3, 3).double(), rtol=0, atol=1e-6)


def test_histograms_do_not_see_the_sign_of_a_gradient():
    S = smooth_maps(32, 32)
    assert_close(hog_similarity(S, -S, "pearson"), torch.ones(3).double(), rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("similarity", "size", "message"),
    [
        (ssim, (10, 30), "at least 11 pixels a side"),
        (hog_similarity, (7, 30), "at least 8 pixels a side"),
        (hog_similarity, (30,), r"expected maps \(B, H, W\)"),
        (hog_similarity, (16, 16, 16), r"expected maps \(B, H, W\)"),
    ],
)
def test_maps_that_are_too_small_or_no_maps(similarity, size, message):
    with pytest.raises(ValueError, match=message):
        similarity(maps(*size), maps(*size, seed=1))


def test_what_cannot_be_compared():
    with pytest.raises(ValueError, match="of the same shape"):
        ssim(maps(12, 12), maps(12, 13))
    with pytest.raises(ValueError, match="correlation to be one of"):
        hog_similarity(maps(12, 12), maps(12, 12), "kendall")


def four_maps(*size, seed=0):
    return torch.randn(4, *size, generator=torch.Generator().manual_seed(seed)).double()


@pytest.mark.parametrize("size", [(11, 40), (32, 32), (57, 23)])
def test_ssim_equals_torchmetrics(size):
    a, b = four_maps(*size), four_maps(*size, seed=1) + 2 * four_maps(*size)
    x, y = (normalize(v)[:, None] for v in (a, b))
    options = {"sigma": 1.5, "kernel_size": 11, "data_range": 1.0, "reduction": "none", "return_full_image": True}
    local = structural_similarity_index_measure(x, y, **options)[1]  # also at borders, of images that go on mirrored
    assert_close(ssim(a, b), local[:, 0, 5:-5, 5:-5].flatten(1).mean(1), rtol=0, atol=1e-6)


def test_the_four_similarities_look_at_what_they_say():
    """Signs matter to the first alone; SSIM and HOG are those of magnitudes."""
    a, b = four_maps(24, 30), four_maps(24, 30, seed=1) + four_maps(24, 30)
    results = similarities(a, b)
    assert_close(results["spearman"], spearman(a, b))
    assert_close(results["spearman_abs"], spearman(a.abs(), b.abs()))
    assert_close(results["ssim"], ssim(a.abs(), b.abs()))
    assert_close(results["hog"], hog_similarity(a.abs(), b.abs()))
    assert (results["ssim"] - ssim(a, b)).abs().min() > 1e-3


@pytest.mark.parametrize(("side", "kinds"), [(7, 2), (8, 3), (10, 3), (11, 4), (224, 4)])
def test_similarities_are_left_out_where_maps_are_too_small_for_them(side, kinds):
    assert len(similarities(four_maps(side, 230), four_maps(side, 230, seed=1))) == kinds


def test_ranks_of_large_integers_and_of_infinities():
    """Ranks count; they never subtract."""
    values = torch.tensor([[2**52, 2**52 + 1, -(2**52), 2**52]]).double()
    assert ranks(values).tolist() == [[2.5, 4, 1, 2.5]]
    assert ranks(torch.tensor([[1.0, torch.inf, -torch.inf]])).tolist() == [[2, 3, 1]]


def test_half_precision_maps_are_compared_in_double():
    a, b = four_maps(16, 16).half(), four_maps(16, 16, seed=1).half()
    for kind, value in similarities(a, b).items():
        assert_close(value, similarities(a.double(), b.double())[kind], rtol=0, atol=1e-12)


def test_sizes_of_cells_and_blocks():
    """A fourteenth of the side, four pixels at least; the authors' 16 and 3 x 3 cells from 224 on."""
    sides = {8: (4, 2), 69: (4, 2), 70: (5, 2), 78: (5, 2), 223: (15, 2), 224: (16, 3), 448: (16, 3)}
    assert {side: cell_and_block(side) for side in sides} == sides
