import pytest
import torch
from torch.autograd import gradcheck
from torch.testing import assert_close

from interpretable_training.regularization import energy, l1

# Two maps of 2 x 2 pixels; the region is the upper row.
S = torch.tensor([[[3.0, 1.0], [4.0, -2.0]], [[0.0, 2.0], [0.0, 0.0]]])
UPPER = torch.tensor([[True, True], [False, False]]).expand(2, 2, 2)
LOSSES = {"energy": energy, "l1": l1}


def test_energy_equals_the_share_outside_by_hand():
    assert_close(energy(S, UPPER), torch.tensor([0.5, 0.0]))  # 4 of 3 + 1 + 4


def test_l1_equals_the_scaled_mean_outside_by_hand():
    assert_close(l1(S, UPPER), torch.tensor([0.75, 0.0]))  # (4 + 2) / 2 pixels / 4


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_map_inside_of_its_region_has_no_loss_and_gradient(loss):
    inside = (S.abs() * UPPER).requires_grad_()
    assert_close(loss(inside, UPPER), torch.zeros(2))
    gradient = torch.autograd.grad(loss(inside, UPPER).sum(), inside)[0]
    assert_close(gradient[:, 0], torch.zeros(2, 2))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_a_region_of_the_whole_image_has_no_loss(loss):
    assert_close(loss(S, torch.ones(2, 2, 2, dtype=torch.bool)), torch.zeros(2))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_losses_do_not_depend_on_the_scale_of_the_map(loss):
    assert_close(loss(1e4 * S, UPPER), loss(S, UPPER))
    assert_close(loss(1e-4 * S, UPPER), loss(S, UPPER))


def test_empty_maps_have_all_or_no_loss_and_a_gradient_of_zero():
    empty = torch.zeros(2, 2, 2, requires_grad=True)
    assert_close(energy(empty, UPPER), torch.ones(2))
    assert_close(l1(empty, UPPER), torch.zeros(2))
    for loss in LOSSES.values():
        assert_close(torch.autograd.grad(loss(empty, UPPER).sum(), empty)[0], torch.zeros(2, 2, 2))


@pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)
def test_derivatives_of_losses_equal_finite_differences(loss):
    torch.manual_seed(0)
    saliency = torch.randn(3, 4, 5, dtype=torch.float64, requires_grad=True)
    region = torch.rand(3, 4, 5) > 0.5
    assert gradcheck(lambda S: loss(S, region), saliency)
