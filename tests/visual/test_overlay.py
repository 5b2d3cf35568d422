import torch
from matplotlib import colormaps
from torch.testing import assert_close

from interpretable_training.visual import denormalize, overlay


def test_denormalize_undoes_a_normalization_and_stays_in_range():
    images = torch.tensor([-1.0, 0.0, 10.0]).view(1, 1, 1, 3)
    shown = denormalize(images, mean=(0.5,), std=(0.25,))
    assert shown.flatten().tolist() == [0.25, 0.5, 1.0]


def test_overlay_is_brightest_where_the_map_is_highest():
    saliency = torch.zeros(1, 8, 8)
    saliency[0, 2:4, 5:7] = 3.0
    shown = overlay(torch.full((1, 3, 8, 8), 0.2), saliency)
    assert shown.dtype == torch.uint8
    assert shown.shape == (1, 8, 8, 3)
    brightness = shown[0].float().mean(2)
    assert brightness[2:4, 5:7].min() > brightness[0, 0] + 50


def test_overlay_ignores_a_single_bright_pixel():
    saliency = torch.zeros(1, 20, 20)
    saliency[0, 10:] = 1.0
    with_outlier = saliency.clone()
    with_outlier[0, 0, 0] = 1000.0
    pictures = torch.full((1, 3, 20, 20), 0.5)
    assert torch.equal(overlay(pictures, saliency)[0, 10:], overlay(pictures, with_outlier)[0, 10:])


def test_overlay_of_constant_or_nan_map_is_gray():
    pictures = torch.rand(2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    flat = torch.stack([torch.full((6, 6), 7.0), torch.full((6, 6), torch.nan)])
    shown = overlay(pictures, flat).float()
    assert torch.corrcoef(torch.stack([shown.mean(3).flatten(), pictures.mean(1).flatten()]))[0, 1] > 0.99


def test_overlay_scale_makes_maps_comparable():
    pictures = torch.full((2, 3, 8, 8), 0.3)
    ramp = torch.arange(64.0).view(1, 8, 8)
    maps = torch.cat([ramp, ramp / 2])
    assert torch.equal(*overlay(pictures, maps))  # each on its own scale
    one = overlay(pictures, maps, scale=(0, 63))
    assert one[0].float().mean() > one[1].float().mean() + 20
    half = overlay(pictures, maps, scale=torch.tensor([[0, 63], [0, 31.5]]))
    assert torch.equal(half[0], half[1])
    assert torch.equal(half[0], one[0])


def test_overlay_colors_equal_matplotlib():
    """The formula of the docstring, worked out with matplotlib's own look-up."""
    ramp = torch.linspace(-0.2, 1.2, 64).view(1, 8, 8)
    shown = overlay(torch.full((1, 3, 8, 8), 0.5), ramp, scale=(0, 1))
    S = ramp[0].clamp(0, 1)
    heat = torch.from_numpy(colormaps["inferno"](S.numpy())[..., :3]).float()
    weight = 0.65 * (0.35 + 0.65 * S[..., None])
    assert_close(shown[0].float(), 255 * ((1 - weight) * 0.5 + weight * heat), atol=0.51, rtol=0)
