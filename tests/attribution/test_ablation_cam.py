from functools import partial

import pytest
import torch
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import AblationCAM

close = partial(assert_close, rtol=0, atol=1e-9)


def drops(score, A):
    """y - y[without k] for each image and channel; `score` takes features of one image, and its index."""
    weights = torch.zeros(A.shape[:2], dtype=A.dtype)
    for i in range(len(A)):
        for k in range(A.shape[1]):
            without = A[i : i + 1].clone()
            without[:, k] = 0
            weights[i, k] = score(A[i : i + 1], i) - score(without, i)
    return weights.detach()


def mix(w, A):
    return torch.einsum("bk,bk...->b...", w, A).detach()


@pytest.mark.parametrize("chunk_size", [1, 3, 256])
def test_ablation_cam_is_the_printed_formula(chunk_size, case, activations):
    network, x = case
    A, _ = activations(network, x, [1, 2])
    y = network(x)[[0, 1], [1, 2]].detach()
    w = drops(lambda a, i: network[1](a)[0, i + 1], A) / y.abs()[:, None]
    cam = AblationCAM(layer="0", relu=False, upsample=False, chunk_size=chunk_size)
    close(cam(network, x, [1, 2]), mix(w, A))


@pytest.mark.parametrize("hidden", [False, True])
@pytest.mark.parametrize("denominator", ["absolute", "signed", "none"])
def test_ablation_cam_equals_closed_form_for_linear_head(hidden, denominator, gap_linear, W, b, features):
    """y - y[without k] = W[c, k] mean(A[k]), whether the head is recognized or every channel is scored again."""
    model, target = gap_linear(W, b, hidden=hidden), torch.tensor([1, 2])
    y = model(features)[[0, 1], target].detach()
    divisor = {"absolute": y.abs(), "signed": y, "none": torch.ones_like(y)}[denominator]
    w = W[target] * features.mean((2, 3)) / divisor[:, None]
    cam = AblationCAM(layer="features", relu=False, denominator=denominator)
    close(cam(model, features, target), mix(w, features))


def test_ablation_cam_of_linear_head_needs_one_pass(gap_linear, W, b, features):
    rows = {}
    for hidden in (False, True):
        model, seen = gap_linear(W, b, hidden=hidden), Tally()
        model.features.register_forward_hook(lambda module, args, output, seen=seen: seen.append(len(args[0])))
        AblationCAM(layer="features")(model, features, torch.tensor([0, 1]))
        rows[hidden] = len(seen)
    assert rows[False] <= 2 < rows[True]  # features, and the check of the target


def test_ablation_cam_changes_sign_for_negative_logit_if_signed(gap_linear):
    """W = 1, mean(A) = 1, b = -3: y = -2, drop 1, so w = 1 / 2 or -1 / 2."""
    model, A = gap_linear([[1.0], [0]], [-3.0, 0]), torch.ones(1, 1, 2, 2, dtype=torch.float64)
    A[..., 0], A[..., 1] = 0.5, 1.5
    close(AblationCAM(layer="features")(model, A, 0), A[:, 0] / 2)
    close(AblationCAM(layer="features", relu=False, denominator="signed")(model, A, 0), -A[:, 0] / 2)


def test_ablation_cam_of_zero_logit_is_finite(gap_linear):
    A = torch.rand(1, 1, 2, 2, dtype=torch.float64)
    assert AblationCAM(layer="features")(gap_linear([[0.0], [0]]), A, 0).isfinite().all()


@pytest.mark.parametrize("hidden", [False, True])
def test_ablation_cam_gives_channel_of_zeros_no_weight(hidden, gap_linear, W, b, features, target):
    features[:, 1] = 0
    features[1, 3] = 0
    model = gap_linear(W, b, hidden=hidden)
    w = W[target] * features.mean((2, 3)) / model(features)[[0, 1], target].abs()[:, None]
    close(AblationCAM(layer="features", relu=False)(model, features, target), mix(w, features))
    assert not AblationCAM(layer="features")(model, 0 * features, target).any()


@pytest.mark.parametrize("skip", ["concatenate", "add", "batch size", "batch view"])
def test_ablation_cam_with_skip_connections_around_layer(skip, function, images):
    """A batch that grows at the layer meets the image that did not: added it may grow, concatenated it may not."""
    torch.manual_seed(0)
    stem, head = nn.Conv2d(2, 2, 3, padding=1).double(), nn.Linear(4 * 64, 3).double()

    def behind(A, x):
        if skip == "batch size":
            return head(torch.cat([A, A**2], 1).reshape(len(x), 256)).tanh()
        if skip == "batch view":
            return head(torch.cat([A, A**2], 1).reshape(len(x), 4, -1)[..., :64].flatten(1)).tanh()
        return head(torch.cat([A, x], 1).flatten(1) if skip == "concatenate" else (A + x).repeat(1, 2, 1, 1).flatten(1))

    model = function(lambda x, stem: behind(stem(x), x), stem=stem)
    A = stem(images).detach()
    w = drops(lambda a, i: behind(a, images[i : i + 1])[0, 1], A) / model(images)[:, 1].abs()[:, None]
    close(AblationCAM(layer="stem", relu=False)(model, images, 1), mix(w, A))


@pytest.mark.parametrize("grow", [False, True])
def test_ablation_cam_ablates_reused_layer_at_its_last_run(grow, function, images):
    """The last output is what the map is made of; the first may have other channels, as in bottleneck blocks."""
    torch.manual_seed(0)
    middle, head = nn.Conv2d(2, 3 if grow else 2, 1).double(), nn.Linear(3 if grow else 2, 3).double()
    score = lambda A: head(A.flatten(2).mean(2).tanh())  # noqa: E731
    model = function(lambda x, act: score(act(middle(act(x)))), act=nn.ReLU())
    A = middle(images.relu()).relu().detach()
    w = drops(lambda a, i: score(a)[0, 1], A) / model(images)[:, 1].abs()[:, None]
    close(AblationCAM(layer="act", relu=False)(model, images, 1), mix(w, A))


def test_ablation_cam_explains_probability_or_callable(gap_linear, W, b, features):
    model = gap_linear(W, b)
    head = lambda a: torch.einsum("qk,bk->bq", W, a.mean((2, 3))) + b  # noqa: E731
    w = drops(lambda a, i: head(a).softmax(1)[0, 1], features) / head(features).softmax(1)[:, 1, None]
    close(AblationCAM(layer="features", relu=False, score="prob")(model, features, 1), mix(w, features))
    margin = lambda y: y[:, 0] - y[:, 1] ** 2  # noqa: E731
    w = drops(lambda a, i: margin(head(a))[0], features) / margin(head(features)).abs()[:, None]
    close(AblationCAM(layer="features", relu=False)(model, features, margin), mix(w, features))


def test_ablation_cam_refuses_unknown_denominator(gap_linear, W, features):
    with pytest.raises(ValueError, match=r"'absolute', 'signed', 'none'.*got 'abs'"):
        AblationCAM(layer="features", denominator="abs")(gap_linear(W), features)
