import torch

from interpretable_training.attribution import FakeCAM


def test_fake_cam_is_one_everywhere_but_at_the_top_left(network, images):
    S = FakeCAM()(network, images)
    assert S.shape == (2, 8, 8)
    assert (S[:, 0, 0] == 0).all()
    assert S.sum() == 2 * 63


def test_fake_cam_of_signals_and_volumes_hides_one_cell(function):
    model = function(lambda x: x.flatten(1))
    for shape in ((1, 1, 5), (1, 1, 2, 3, 4)):
        S = FakeCAM()(model, torch.rand(shape))
        cells = torch.Size(shape[2:]).numel()
        assert S.mean() == 1 - 1 / cells
        assert S.flatten()[0] == 0
