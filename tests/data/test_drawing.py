import math

import pytest
import torch

from interpretable_training.data.drawing import DISTRACTORS, REACH, SHAPES, cover


@pytest.mark.parametrize("name", SHAPES)
def test_shapes_have_the_area_of_the_unit_circle_within_reach(name):
    size, scale, angle = (201, 201), torch.tensor([50.0]), torch.tensor([0.7])
    center = torch.tensor([[100.5, 100.5]])
    covered = cover([SHAPES[name]], torch.tensor([0]), center, scale, angle, size)[0]
    assert covered.sum().item() == pytest.approx(math.pi * 50**2, rel=0.005)
    y, x = (covered > 0.5).nonzero().T - 100
    assert x.float().hypot(y.float()).max() <= REACH * 50


def test_a_pixel_is_covered_by_the_share_that_lies_inside():
    """A square with sides at 10 - 4.25 and 10 + 4.25: a quarter of columns 5 and 14 lies inside."""
    scale = torch.tensor([2 * 4.25 / math.sqrt(math.pi)])
    center = torch.tensor([[10.0, 10.0]])
    square = cover([SHAPES["square"]], torch.tensor([0]), center, scale, torch.zeros(1), (20, 20))
    assert square[0, 10, 4:7].tolist() == pytest.approx([0, 0.25, 1], abs=1e-5)
    assert square[0, 10, 13:16].tolist() == pytest.approx([1, 0.25, 0], abs=1e-5)


def test_rotation_turns_x_towards_y():
    """A stick along x, turned by a quarter, lies along y."""
    center, scale, turn = torch.tensor([[10.5, 10.5]]), torch.tensor([6.0]), torch.tensor([math.pi / 2])
    stick = cover(DISTRACTORS[:1], torch.tensor([0]), center, scale, turn, (21, 21), 1.0)
    assert stick[0, 5:16, 10].min() == 1
    assert stick[0, 10, :8].max() == 0


def test_kind_minus_one_draws_nothing():
    nothing = cover(DISTRACTORS, torch.tensor([-1]), torch.zeros(1, 2), torch.ones(1), torch.zeros(1), (8, 8), 3.0)
    assert nothing.shape == (1, 8, 8)
    assert nothing.max() == 0


@pytest.mark.parametrize("outline", DISTRACTORS, ids=lambda outline: outline.__name__)
def test_distractors_are_thin(outline):
    """Beside any shape of the same scale, which covers pi, they cover little."""
    center, scale = torch.tensor([[100.0, 100.0]]), torch.tensor([50.0])
    lines = cover([outline], torch.tensor([0]), center, scale, torch.zeros(1), (200, 200), 0.12 * 50)
    assert 0.05 < lines.sum() / (math.pi * 50**2) < 0.35
