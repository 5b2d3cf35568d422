"""Test how maps are normalized, resized, blurred and used as masks."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from interpretable_training.attribution import degenerate, mask_images, normalize
from interpretable_training.attribution.core.map_operations import blur, resize

close = partial(assert_close, rtol=0, atol=1e-9)


def maps(*values):
    return torch.tensor(values, dtype=torch.float64).view(-1, 2, 2)


def test_normalize_range_spans_zero_to_one():
    S = maps([-1, 0, 1, 3], [10, 20, 30, 20])
    close(normalize(S), maps([0, 0.25, 0.5, 1], [0, 0.5, 1, 0.5]))


def test_normalize_max_divides_by_maximum():
    close(normalize(maps([0, 1, 2, 4]), "max"), maps([0, 0.25, 0.5, 1]))
    assert not normalize(maps([0, 0, 0, 0], [-1, -2, -3, 0]), "max").any()


def test_normalize_sigmoid_by_hand():
    close(normalize(maps([0, 0, 0, 0]), "sigmoid"), maps([0.5] * 4))
    close(normalize(torch.tensor([[3.0]]).double().log(), "sigmoid").item(), 0.75)


@pytest.mark.parametrize("value", [0.0, 7.0, -3.0, 1e-12])
def test_normalize_of_constant_map_is_zeros_or_ones(value):
    S = maps([value] * 4, [0, 1, 2, 4])
    close(normalize(S)[0], torch.zeros(2, 2).double())
    close(normalize(S, constant="ones")[0], torch.ones(2, 2).double())
    close(normalize(S, constant="ones")[1], normalize(S)[1])
    close(normalize(S)[1], maps([0, 0.25, 0.5, 1])[0])


def test_normalize_keeps_tiny_maps_and_ignores_rounding():
    close(normalize(1e-20 * maps([0, 1, 2, 4])), maps([0, 0.25, 0.5, 1]))
    assert not normalize(5 + 1e-12 * maps([0, 1, 2, 4])).any()


def test_normalize_keeps_nan_in_its_map():
    S = maps([0, 1, float("nan"), 4], [0, 1, 2, 4])
    assert normalize(S)[0].isnan().any()
    close(normalize(S)[1], maps([0, 0.25, 0.5, 1])[0])


@pytest.mark.parametrize("shape", [(2, 5), (2, 3, 4, 5)])
def test_normalize_of_signals_and_volumes(shape):
    S = normalize(torch.randn(shape))
    assert (S.flatten(1).amin(1) == 0).all()
    assert (S.flatten(1).amax(1) == 1).all()


@pytest.mark.parametrize("wrong", [{"mode": "minmax"}, {"constant": "one"}])
def test_normalize_refuses_unknown_options(wrong):
    with pytest.raises(ValueError, match=f"got '{next(iter(wrong.values()))}'"):
        normalize(maps([0, 1, 2, 3], [1, 1, 1, 1]), **wrong)


def test_degenerate_is_true_for_constant_and_nan_maps():
    S = maps([1, 1, 1, 1], [0, 0, 0, 0], [0, 1, 0, 0], [0, float("nan"), 1, 2], [5, 5, 5, 5 + 1e-12])
    assert degenerate(S).tolist() == [True, True, False, True, True]
    assert degenerate(torch.tensor([[[3.0]]])).tolist() == [True]
    assert degenerate(torch.tensor([[1e-20, 2e-20]])).tolist() == [False]


def test_mask_images_fades_to_zero_or_black(images):
    """Black is -mean / std after normalization."""
    mask = torch.rand(2, 8, 8, dtype=torch.float64)
    close(mask_images(images, mask), images * mask[:, None])
    mean, std = (torch.tensor(v, dtype=torch.float64).view(1, 2, 1, 1) for v in ([0.4, 0.5], [0.2, 0.3]))
    expected = ((images * std + mean) * mask[:, None] - mean) / std
    close(mask_images(images, mask, (0.4, 0.5), (0.2, 0.3)), expected)
    close(mask_images(images, torch.ones_like(mask), (0.4, 0.5), (0.2, 0.3)), images)


@pytest.mark.parametrize("axes", [1, 3])
def test_mask_images_of_signals_and_volumes(axes):
    x, mask = torch.rand(2, 2, *[3] * axes), torch.rand(2, *[3] * axes)
    close(mask_images(x, mask), x * mask[:, None])
    close(mask_images(x, 0 * mask, (1.0, 2), (2.0, 8))[:, 1], torch.full_like(mask, -0.25))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize(("axes", "mode"), [(1, "linear"), (2, "bilinear"), (3, "trilinear")])
def test_resize_is_linear_interpolation(axes, mode, corners):
    S, size = torch.rand(2, *[3] * axes, dtype=torch.float64), (7, 6, 5)[:axes]
    expected = F.interpolate(S[:, None], size, mode=mode, align_corners=corners)
    close(resize(S, size, corners), expected[:, 0])
    close(resize(S[:, None].expand(-1, 4, *S.shape[1:]), size, corners), expected.expand(-1, 4, *size))
    close(resize(S, S.shape[1:]), S)


def test_resize_two_cells_to_four_by_hand():
    """Cells lie at 1/4 and 3/4, or with aligned corners at 0 and 1."""
    S = torch.tensor([[0.0, 4]]).double()
    close(resize(S, [4]), torch.tensor([[0.0, 1, 3, 4]]).double())
    close(resize(S, [4], align_corners=True), torch.tensor([[0.0, 4 / 3, 8 / 3, 4]], dtype=torch.float64))


def test_blur_is_normalized_gaussian_with_replicated_borders():
    kernel = torch.tensor([[torch.tensor(-(i**2 + j**2) / 2).exp() for j in (-1, 0, 1)] for i in (-1, 0, 1)]).double()
    kernel = kernel / kernel.sum()
    x = torch.rand(1, 2, 4, 5, dtype=torch.float64)
    padded, expected = F.pad(x, [1] * 4, mode="replicate"), torch.zeros_like(x)
    for i in range(4):
        for j in range(5):
            expected[..., i, j] = (padded[..., i : i + 3, j : j + 3] * kernel).sum((2, 3))
    assert_close(blur(x, 3, 1.0), expected, rtol=0, atol=1e-7)


@pytest.mark.parametrize("axes", [1, 2, 3])
def test_blur_keeps_constants_and_shapes(axes):
    x = torch.full((2, 3, *(4, 5, 6)[:axes]), 2.5, dtype=torch.float64)
    close(blur(x), x)
    assert blur(x, kernel=5).shape == x.shape


def test_mask_images_needs_mean_and_std(images):
    with pytest.raises(ValueError, match=r"mean.*std"):
        mask_images(images, torch.ones(2, 8, 8), mean=(0.4, 0.5))
