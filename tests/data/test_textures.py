import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from interpretable_training.data.textures import TEXTURES, Canvas, draw_textures


def draw(kind: torch.Tensor, size: tuple[int, int], seed: int = 0) -> torch.Tensor:
    return draw_textures(kind, len(kind), size, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("size", [(16, 16), (20, 48), (50, 17)])
def test_textures_are_pictures_of_any_size(size):
    pictures = draw(torch.arange(12) % 6, size)
    assert pictures.shape == (12, 3, *size)
    assert pictures.isfinite().all()
    assert pictures.amin() >= 0
    assert pictures.amax() <= 1
    assert pictures.std((2, 3)).mean(1).min() > 0.02  # each has structure
    assert torch.cdist(pictures.flatten(1), pictures.flatten(1)).fill_diagonal_(torch.inf).min() > 1


def test_the_kind_of_one_picture_changes_no_other():
    kinds = torch.arange(12) % 6
    changed = kinds.clone()
    changed[3] = 0
    rest = torch.arange(12) != 3
    one, two = draw(kinds, (16, 16)), draw(changed, (16, 16))
    assert torch.equal(one[rest], two[rest])
    assert not torch.equal(one[3], two[3])
    generator = torch.Generator().manual_seed(0)
    assert torch.equal(draw_textures(kinds[:5], 12, (16, 16), generator), one[:5])


def test_field_has_the_spectrum_of_its_gain():
    """A gain that passes one frequency leaves a wave of this frequency."""
    canvas = Canvas(torch.randn(3, 2, 16, 16), torch.rand(3, 7, 1, 1))
    fx, fy = canvas.frequencies()
    z = canvas.field(((fx == 2) & (fy == 0)).float())
    assert_close(z.mean((1, 2)), torch.zeros(3), rtol=0, atol=1e-5)
    assert_close(z.var((1, 2)), torch.ones(3))
    assert_close(z, z[:, :1].expand_as(z))  # alike in all rows
    assert_close(z, z.roll(8, 2), rtol=0, atol=1e-4)  # two periods of 8 pixels
    assert_close(z, -z.roll(4, 2), rtol=0, atol=1e-4)


@pytest.mark.parametrize("gray", [False, True])
def test_textures_are_told_apart_in_color_and_in_gray(gray):
    """By the nearest neighbors in colors, or in energies of frequency bands along x and y and gray levels."""
    kind = torch.arange(600) % len(TEXTURES)
    pictures = draw(kind, (32, 32))
    luma = torch.einsum("nchw,c->nhw", pictures, torch.tensor([0.299, 0.587, 0.114]))
    spectrum = F.adaptive_avg_pool2d(torch.fft.rfft2(luma - luma.mean((1, 2), keepdim=True)).abs().log1p(), 4)
    features = torch.cat([spectrum.flatten(1), luma.mean((1, 2))[:, None]], 1) if gray else pictures.mean((2, 3))
    features = (features - features.mean(0)) / features.std(0)
    nearest = torch.cdist(features[400:], features[:400]).argmin(1)
    assert (kind[:400][nearest] == kind[400:]).float().mean() > (0.8 if gray else 0.85)  # chance is 1/6
