import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import Occlusion


def test_occlusion_of_single_pixels_of_linear_model(linear, images):
    w = torch.randn(1, 128, dtype=torch.float64)
    S = Occlusion(patch=1, stride=1)(linear(w), images)
    assert_close(S, (images * w.view(2, 8, 8)).sum(1))


def test_occlusion_of_constant_model_is_zero(function, images):
    assert not Occlusion(4, 2)(function(lambda x: x.new_ones(len(x), 3)), images).any()


@pytest.mark.parametrize(("patch", "stride"), [(3, 2), (4, 4), ((3, 5), (1, 4)), (20, 7)])
@pytest.mark.parametrize("score", ["logit", "prob"])
def test_occlusion_is_mean_over_covering_patches(patch, stride, score, network, images):
    value = torch.randn(2, 1, 1, dtype=torch.float64)
    k, t = ((v, v) if isinstance(v, int) else v for v in (patch, stride))
    total, count = torch.zeros(2, 2, 8, 8, dtype=torch.float64)

    def y(x):
        logits = network(x)
        return (logits if score == "logit" else logits.softmax(1))[:, 2].detach()

    corners = [range(0, max(8 - k[a], 0) + t[a], t[a]) for a in (0, 1)]
    for top in corners[0]:
        for left in corners[1]:
            hidden = images.clone()
            hidden[:, :, top : top + k[0], left : left + k[1]] = value
            total[:, top : top + k[0], left : left + k[1]] += (y(images) - y(hidden))[:, None, None]
            count[:, top : top + k[0], left : left + k[1]] += 1
    assert (count > 0).all()
    for chunk_size in (1, 5, 100):
        S = Occlusion(patch, stride, value=value, score=score, chunk_size=chunk_size)(network, images, 2)
        assert_close(S, total / count)


def test_occlusion_of_signals_and_volumes(case):
    net, x = case
    S = Occlusion(patch=2, stride=2)(net, x, 1)
    hidden = x.clone()
    hidden[(slice(None), slice(None), *[slice(0, 2)] * (x.ndim - 2))] = 0
    D = (net(x) - net(hidden))[:, 1].detach()
    assert_close(S[(slice(None), *[slice(0, 2)] * (x.ndim - 2))].flatten(1).amax(1), D)
    assert S.shape == x[:, 0].shape


@pytest.mark.parametrize(("patch", "stride"), [(4, 5), (4, 0), ((4, 4, 4), 2), (0, 1)])
def test_occlusion_refuses_patches_that_leave_pixels_out(patch, stride, network, images):
    with pytest.raises(
        ValueError, match=r"1 <= stride <= patch for 2 axes|(patch|stride) as a whole number of at least 1"
    ):
        Occlusion(patch, stride)(network, images)


def test_occlusion_defaults():
    assert (Occlusion().patch, Occlusion().stride, Occlusion().value, Occlusion().score) == (16, 8, 0.0, "logit")
