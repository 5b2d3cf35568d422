"""The order of pixels, and what they are replaced by."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution.core.map_operations import blur, smooth
from interpretable_training.metrics.core.perturbation import Replacement, rank_patches, rank_pixels, rise_kernel


@pytest.fixture
def tied():
    """Maps with many equal values."""
    return torch.randint(0, 4, (3, 5, 7), generator=torch.Generator().manual_seed(0)).double()


def order_of(rank):
    """Pixels in the order in which they go, (B, N)."""
    return rank.flatten(1).argsort(1)


def test_ranks_by_hand():
    S = torch.tensor([[[0.5, 1.0], [0.5, 0.0]]])
    assert rank_pixels(S).tolist() == [[[1, 0], [2, 3]]]
    assert rank_pixels(S, "reverse").tolist() == [[[2, 0], [1, 3]]]


def test_equal_pixels_go_by_their_index(tied):
    for S, order in zip(tied, order_of(rank_pixels(tied))):
        assert order.tolist() == sorted(range(35), key=lambda i: (-S.flatten()[i].item(), i))


def test_reverse_is_the_flipped_argsort_of_rise(tied):
    expected = np.flip(np.argsort(tied.flatten(1).numpy(), axis=1, kind="stable"), axis=-1)
    assert (order_of(rank_pixels(tied, "reverse")).numpy() == expected).all()


def test_random_ties_sort_as_well_and_depend_on_the_seed_alone(tied):
    rank = rank_pixels(tied, "random", seed=3)
    by_rank = tied.flatten(1).gather(1, order_of(rank))
    assert (by_rank.diff(dim=1) <= 0).all()
    assert torch.equal(rank, rank_pixels(tied, "random", seed=3))
    assert not torch.equal(rank, rank_pixels(tied, "random", seed=4))
    assert not torch.equal(rank, rank_pixels(tied))
    for i in range(3):
        assert torch.equal(rank[i : i + 1], rank_pixels(tied[i : i + 1], "random", seed=3))


@pytest.mark.parametrize("ties", ["index", "reverse", "random"])
def test_ranks_are_a_permutation_in_any_number_of_dimensions(ties):
    for shape in [(2, 9), (2, 3, 4), (2, 2, 3, 4), (2, 1, 1)]:
        rank = rank_pixels(torch.zeros(shape), ties)
        assert rank.shape == shape
        assert (rank.flatten(1).sort(1).values == torch.arange(rank[0].numel())).all()


def test_random_ties_leave_the_generator_alone(tied):
    before = torch.get_rng_state()
    rank_pixels(tied, "random")
    assert torch.equal(before, torch.get_rng_state())


def test_patches_are_ranked_by_their_sum():
    """Sums of 2 x 2 patches of a 3 x 5 map, where those at the border are smaller."""
    S = torch.zeros(1, 3, 5).double()
    S[0, 0, 2], S[0, 1, 3], S[0, 2, 4], S[0, 2, 0] = 0.5, 0.4, 0.8, 0.1  # patches 1 (0.9), 5 (0.8), 3 (0.1)
    expected = [[3, 3, 0, 0, 4], [3, 3, 0, 0, 4], [2, 2, 5, 5, 1]]
    assert rank_patches(S, 2)[0].tolist() == expected


def test_patches_equal_loops():
    S = torch.rand(2, 7, 9, generator=torch.Generator().manual_seed(0)).double()
    for s, rank in zip(S, rank_patches(S, 3)):
        sums = [(s[i : i + 3, j : j + 3].sum().item(), i, j) for i in range(0, 7, 3) for j in range(0, 9, 3)]
        for place, (_, i, j) in enumerate(sorted(sums, key=lambda t: -t[0])):
            assert (rank[i : i + 3, j : j + 3] == place).all()


def test_the_kernels_of_rise_are_almost_flat():
    small = torch.outer(rise_kernel(5, 5.0), rise_kernel(5, 5.0))
    assert_close(small, torch.full((5, 5), 0.04).double(), rtol=0, atol=5e-5)
    large = torch.outer(rise_kernel(11, 5.0), rise_kernel(11, 5.0))
    assert_close(large[0, 0].item(), 0.00774, rtol=0, atol=5e-6)
    assert_close(large[5, 5].item(), 0.00883, rtol=0, atol=5e-6)
    assert_close(large.sum().item(), 1.0, rtol=0, atol=1e-12)
    assert_close(large.min(), large[0, 0], rtol=0, atol=1e-12)
    assert_close(large.max(), large[5, 5], rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [1, 3, 5, 11, 31])
@pytest.mark.parametrize("sigma", [0.7, 5.0])
def test_the_kernels_of_rise_are_scipys_filter_of_an_impulse(kernel, sigma):
    ndimage = pytest.importorskip("scipy.ndimage")
    impulse = np.zeros((kernel, kernel))
    impulse[kernel // 2, kernel // 2] = 1
    k = rise_kernel(kernel, sigma)
    assert_close(torch.outer(k, k), torch.from_numpy(ndimage.gaussian_filter(impulse, sigma)), rtol=0, atol=1e-12)


@pytest.mark.parametrize("kernel", [0, 4, -3])
def test_kernels_without_a_middle_are_refused(kernel):
    with pytest.raises(ValueError, match="kernel"):
        rise_kernel(kernel, 5.0)
    with pytest.raises(ValueError, match="kernel"):
        Replacement("blur", kernel)(torch.zeros(1, 1, 8, 8))


def test_the_blur_of_rise_is_a_convolution_with_zeros_around(images):
    k = torch.outer(rise_kernel(5, 5.0), rise_kernel(5, 5.0))[None, None].expand(3, 1, 5, 5)
    expected = torch.nn.functional.conv2d(images, k, padding=2, groups=3)
    assert_close(Replacement("blur", 5)(images), expected, rtol=0, atol=1e-12)


def test_the_blur_of_rise_darkens_borders():
    """Of the 5 x 5 pixels around a corner 3 x 3 lie inside: 9/25."""
    r = Replacement("blur", 5)(torch.ones(1, 1, 20, 20).double())
    assert_close(r[0, 0, 10, 10].item(), 1.0, rtol=0, atol=1e-12)
    assert_close(r[0, 0, 0, 0].item(), 0.36, rtol=0, atol=1e-3)


def test_the_gaussian_equals_torchvision(images):
    from torchvision.transforms.functional import gaussian_blur

    expected = gaussian_blur(images, [5, 5], [5.0, 5.0])
    assert_close(Replacement("gaussian", 5)(images), expected, rtol=0, atol=1e-7)  # whose kernel is in float32
    large = torch.randn(1, 2, 16, 13, generator=torch.Generator().manual_seed(0)).double()
    assert_close(Replacement("gaussian", 11)(large), gaussian_blur(large, [11, 11], [5.0, 5.0]), rtol=0, atol=1e-7)


def test_a_blur_of_a_constant_with_mirrored_borders_changes_nothing():
    x = torch.full((1, 2, 6, 9), 0.7).double()
    assert_close(Replacement("gaussian", 5)(x), x, rtol=0, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (2, 3, 1, 6), (1, 1, 3, 2), (2, 1, 7), (1, 2, 3, 4, 5)])
@pytest.mark.parametrize("substrate", ["mean", "black", "min", "uniform", "blur", "gaussian"])
def test_replacements_have_the_shape_of_the_images(substrate, shape):
    x = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    r = Replacement(substrate)(x)
    assert r.shape == x.shape
    assert r.dtype == x.dtype
    assert r.isfinite().all()


def test_black_is_zero_before_normalization(images):
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    r = Replacement("black", mean=mean, std=std)(images)
    pixels = r * torch.tensor(std).double().view(3, 1, 1) + torch.tensor(mean).double().view(3, 1, 1)
    assert_close(pixels, torch.zeros_like(images), rtol=0, atol=1e-12)
    assert (Replacement("mean", mean=mean, std=std)(images) == 0).all()


def test_min_is_the_lowest_value_of_each_image(images):
    for x, r in zip(images, Replacement("min")(images)):
        assert (r == x.min()).all()


def test_uniform_values_lie_in_each_images_range(images):
    r = Replacement("uniform", seed=1)(images)
    for i, x in enumerate(images):
        assert x.min() <= r[i].min() < r[i].max() <= x.max()
        assert torch.equal(Replacement("uniform", seed=1)(images[i : i + 1])[0], r[i])
    assert not torch.equal(r, Replacement("uniform", seed=2)(images))


def test_a_tensor_is_broadcast(images):
    color = torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)
    assert_close(Replacement(color)(images), color.double().expand_as(images))


def test_substrates_that_do_not_exist_are_refused():
    with pytest.raises(ValueError, match="substrate to be one of"):
        Replacement("white")
    with pytest.raises(ValueError, match="mean and std together"):
        Replacement("black", std=(0.2,))


def test_smooth_works_along_every_axis():
    """A kernel (1, 0, 0) looks one cell back along each axis."""
    x = torch.arange(8.0).view(1, 1, 2, 2, 2)
    assert smooth(x, torch.tensor([1.0, 0, 0]), "constant").flatten().tolist() == [0, 0, 0, 0, 0, 0, 0, 0.0]
    x = torch.arange(27.0).view(1, 1, 3, 3, 3)
    assert smooth(x, torch.tensor([1.0, 0, 0]), "constant")[0, 0, 2, 2, 2] == x[0, 0, 1, 1, 1]


def test_blur_keeps_the_mean_of_a_signal_inside():
    x = torch.ones(1, 1, 30)
    assert_close(blur(x, 5, 1.0, "constant")[..., 2:-2], torch.ones(1, 1, 26))
