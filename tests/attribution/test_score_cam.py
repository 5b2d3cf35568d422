from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ScoreCAM

close = partial(assert_close, rtol=0, atol=1e-9)
MODES = {1: "linear", 2: "bilinear", 3: "trilinear"}


def scores(network, x, target, A, mean=None, std=None, corners=False, score=lambda y: y):
    """u[k] = y(M[k] * x) - y(x[b]) and y(M[k] * x), one channel at a time; masked in pixel space with mean and std."""
    kind = {"mode": MODES[x.ndim - 2], "align_corners": corners}
    mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, *[1] * (x.ndim - 2)) for v in (mean or [0, 0], std or [1, 1]))
    masked = torch.zeros(A.shape[:2], dtype=A.dtype)
    black = torch.zeros(len(x), dtype=A.dtype)
    for i, c in enumerate(target):
        pixels = x[i] * std + mean
        black[i] = score(network(((0 * pixels) - mean)[None] / std))[0, c]
        for k in range(A.shape[1]):
            M = F.interpolate(A[i, k][None, None], x.shape[2:], **kind)[0, 0]
            M = (M - M.min()) / (M.max() - M.min())
            masked[i, k] = score(network(((pixels * M - mean) / std)[None]))[0, c]
    return masked.detach(), black.detach()


def mix(w, A):
    return sum(w[:, k].view(-1, *[1] * (A.ndim - 2)) * A[:, k] for k in range(A.shape[1]))


@pytest.mark.parametrize("black", [{}, {"mean": [0.4, 0.5], "std": [0.2, 0.3]}], ids=["mean color", "black"])
@pytest.mark.parametrize("corners", [False, True])
def test_score_cam_is_the_printed_formula(black, corners, case, activations):
    network, x = case
    A, _ = activations(network, x, [1, 2])
    y, y0 = scores(network, x, [1, 2], A, corners=corners, **black)
    w = ((y - y0[:, None]).exp().T / (y - y0[:, None]).exp().sum(1)).T
    cam = ScoreCAM(layer="0", upsample=False, relu=False, align_corners=corners, chunk_size=3, **black)
    close(cam(network, x, [1, 2]), mix(w, A))


def test_score_cam_weights_raw_and_increase_by_hand(network, images, activations):
    A, _ = activations(network, images, [1, 2])
    black = {"mean": [0.4, 0.5], "std": [0.2, 0.3]}
    y, y0 = scores(network, images, [1, 2], A, **black)
    cam = dict(layer="0", upsample=False, relu=False, **black)
    close(ScoreCAM(weights="raw", **cam)(network, images, [1, 2]), mix(y, A))
    close(ScoreCAM(weights="increase", **cam)(network, images, [1, 2]), mix(y - y0[:, None], A))


def test_score_cam_of_probability(network, images, activations):
    A, _ = activations(network, images, [1, 2])
    p, _ = scores(network, images, [1, 2], A, score=lambda y: y.softmax(1))
    S = ScoreCAM(layer="0", upsample=False, score="prob", weights="raw")(network, images, [1, 2])
    close(S, mix(p, A).relu())


def test_score_cam_of_constant_model_is_mean_of_channels(function, features):
    model = function(lambda x, features: 0 * features(x).flatten(1)[:, :2] + 3, features=nn.Identity())
    close(ScoreCAM(layer="features")(model, features, 0), features.mean(1))


def test_score_cam_of_one_channel_is_the_channel(gap_linear, features):
    model = gap_linear([[-5.0], [1]])
    close(ScoreCAM(layer="features")(model, features[:, :1], 0), features[:, 0])


def test_score_cam_ignores_order_of_channels(network, images):
    S = ScoreCAM(layer="0")(network, images, 1)
    order = [2, 0, 3, 1]
    body, head = network[0][0], network[1][0]
    body.weight.data, body.bias.data = body.weight.data[order], body.bias.data[order]
    head.weight.data = head.weight.data[:, order]
    close(ScoreCAM(layer="0")(network, images, 1), S)


def test_score_cam_skip_constant_by_hand(gap_linear, features):
    """y = mean(A[0]) and M[1] = 0: with the constant channel w[1] = e^0 / (e^0 + e^y(M[0] x))."""
    A = features[:1, :2].clone()
    A[:, 1] = 2.0
    model = gap_linear([[1.0, 0], [0, 0]])
    close(ScoreCAM(layer="features")(model, A, 0), A[:, 0])
    M = (A[0, 0] - A[0, 0].min()) / (A[0, 0].max() - A[0, 0].min())
    w = torch.tensor([(M * A[0, 0]).mean(), 0.0], dtype=torch.float64).softmax(0)
    close(ScoreCAM(layer="features", skip_constant=False)(model, A, 0)[0], w[0] * A[0, 0] + w[1] * 2)


@pytest.mark.parametrize("weights", ["softmax", "raw", "increase"])
def test_score_cam_of_constant_channels_is_zero(weights, gap_linear):
    A = torch.ones(1, 2, 3, 3, dtype=torch.float64)
    assert not ScoreCAM(layer="features", weights=weights)(gap_linear([[1.0, 2], [3, 4]]), A, 0).any()


def test_score_cam_softmax_needs_no_pass_of_masked_image(gap_linear, W, features):
    """Features, then 4 channels of 2 images in one chunk; "increase" adds the masked image."""
    model, rows = gap_linear(W), Tally()
    model.register_forward_hook(lambda module, args, output: rows.append(len(output)))
    for weights, expected in (("softmax", [2, 8]), ("increase", [2, 8, 2])):
        rows.clear()
        ScoreCAM(layer="features", weights=weights)(model, features, torch.tensor([0, 1]))
        assert rows[-len(expected) :] == expected
        assert sum(rows) <= sum(expected) + 2


def test_score_cam_refuses_unknown_weights(gap_linear, W, features):
    with pytest.raises(ValueError, match=r"'softmax', 'raw', 'increase'.*got 'max'"):
        ScoreCAM(layer="features", weights="max")(gap_linear(W), features)
