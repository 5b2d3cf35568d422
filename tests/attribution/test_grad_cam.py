from functools import partial

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, degenerate

close = partial(assert_close, rtol=0, atol=1e-9)


def n(S):
    return torch.stack([(s - s.min()) / (s.max() - s.min()) if s.max() > s.min() else 0 * s for s in S])


def up(S, corners=False):
    return F.interpolate(S[:, None], (8, 8), mode="bilinear", align_corners=corners)[:, 0]


def slow(A, G):
    """(1) and (2) place by place, without relu."""
    S = torch.zeros(len(A), *A.shape[2:], dtype=A.dtype)
    for i in range(len(A)):
        for k in range(A.shape[1]):
            S[i] += G[i, k].sum() / G[i, k].numel() * A[i, k]
    return S


def test_grad_cam_equals_cam_over_cells_for_linear_head(gap_linear, W, b, features, target):
    """Then dy[c]/dA[k, i, j] = W[c, k] / Z and so is its mean; Z = 6 cells."""
    S = GradCAM(layer="features")(gap_linear(W, b), features, target)
    close(S, torch.einsum("bk,bkij->bij", W[target], features).relu() / 6)


def test_grad_cam_is_the_printed_formula(case, activations):
    network, x = case
    S = GradCAM(layer="0", relu=False, upsample=False)(network, x, [2, 0])
    assert S.min() < 0
    close(S, slow(*activations(network, x, [2, 0])))


def test_grad_cam_normalized_ignores_scale_of_logits(gap_linear, W, b, features, target):
    cam = GradCAM(layer="features", normalize="after")
    close(cam(gap_linear(W, b), features, target), cam(gap_linear(7 * W, 7 * b), features, target))


def test_grad_cam_of_class_without_weights_is_zero(gap_linear, function, W, features):
    W[1] = 0
    assert not GradCAM(layer="features")(gap_linear(W), features, 1).any()
    constant = function(lambda x, features: features(x).new_ones(len(x), 2), features=nn.Identity())
    assert not GradCAM(layer="features")(constant, features, 1).any()


def test_grad_cam_of_negative_map_is_zero_and_degenerate(gap_linear, features):
    model = gap_linear(-torch.ones(2, 4))
    S = GradCAM(layer="features")(model, features, 0)
    assert not S.any()
    assert degenerate(S).all()
    assert GradCAM(layer="features", relu=False)(model, features, 0).max() < 0


def test_grad_cam_of_probability_by_hand(gap_linear, W, b, features):
    """dp[c]/dy[q] = p[c] (1[q = c] - p[q]), so W[c] becomes p[c] (W[c] - sum over q of p[q] W[q])."""
    p = gap_linear(W, b)(features).softmax(1).detach()
    v = p[:, 0, None] * (W[0] - p @ W)
    S = GradCAM(layer="features", score="prob", relu=False)(gap_linear(W, b), features, 0)
    close(S, torch.einsum("bk,bkij->bij", v, features) / 6)


def test_grad_cam_of_sigmoid_by_hand(gap_linear, W, b, features):
    """ds/dy = s (1 - s) at s = sigmoid(y)."""
    s = gap_linear(W, b)(features)[:, 2].sigmoid().detach()
    S = GradCAM(layer="features", score="sigmoid", relu=False)(gap_linear(W, b), features, 2)
    close(S, (s * (1 - s))[:, None, None] * torch.einsum("k,bkij->bij", W[2], features) / 6)


@pytest.mark.parametrize(("rule", "gated"), [("guided", "positive"), ("deconv", "any")])
def test_grad_cam_with_guided_or_deconv_rule(rule, gated, W, images):
    """y = W mean(relu(A)): guided keeps W > 0 where A > 0, deconv W > 0 everywhere."""
    head = nn.Linear(4, 3)
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), head).double()
    head.weight.data = W.clone()
    A = model[0](images).detach()
    share = (A > 0).double().mean((2, 3)) if gated == "positive" else 1
    w = share * W[0].clamp(min=0).expand(2, 4) / 64
    close(GradCAM(layer="0", rule=rule, relu=False)(model, images, 0), torch.einsum("bk,bkij->bij", w, A))


@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("order", ["none", "before", "after"])
def test_grad_cam_rectifies_upsamples_and_normalizes_in_order(order, corners, network, images, activations):
    S = slow(*activations(network, images, [0, 1])).relu()
    expected = {"none": up(S, corners), "before": up(n(S), corners), "after": n(up(S, corners))}[order]
    close(GradCAM(layer="0", normalize=order, align_corners=corners)(network, images, [0, 1]), expected)


@pytest.mark.parametrize("fusion", ["mean", "max"])
def test_grad_cam_fuses_normalized_maps_of_layers(fusion, network, images):
    one, two = (GradCAM(layer=name)(network, images, 1) for name in ("0", "1.0"))
    expected = (n(one) + n(two)) / 2 if fusion == "mean" else torch.maximum(n(one), n(two))
    close(GradCAM(layer=["0", "1.0"], fusion=fusion)(network, images, 1), expected)


def test_grad_cam_refuses_several_layers_without_upsampling(network, images):
    with pytest.raises(ValueError, match="one layer with upsample=False, got 2"):
        GradCAM(layer=["0", "1.0"], upsample=False)(network, images)


def test_grad_cam_ignores_in_place_activation_behind_layer(W, images):
    torch.manual_seed(0)
    stem, head = nn.Conv2d(2, 4, 1), nn.Linear(4, 3)
    tail = (nn.AdaptiveAvgPool2d(1), nn.Flatten(), head)
    models = [nn.Sequential(stem, nn.ReLU(inplace=i), *tail).double() for i in (False, True)]
    maps = [GradCAM(layer="0", relu=False)(model, images, 0) for model in models]
    A, w = stem(images).detach(), (stem(images) > 0).double().mean((2, 3)) * head.weight[0].detach() / 64
    close(maps[0], torch.einsum("bk,bkij->bij", w, A))
    close(maps[1], maps[0])


def test_grad_cam_reads_reused_layer_at_its_last_run(function, images):
    model = function(lambda x, act: act(3 * act(x) - 1).flatten(2).mean(2), act=nn.ReLU())
    A = (3 * images.relu() - 1).relu()
    close(GradCAM(layer="act")(model, images, 1), A[:, 1] / 64)


class Vit(nn.Module):
    """One class token before four patches; attention is the plain mean over tokens."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.block, self.head = nn.LayerNorm(4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        patches = F.unfold(x, 4, stride=4).transpose(1, 2)[..., :4]
        tokens = self.norm(torch.cat([torch.ones_like(patches[:, :1]), patches], 1))
        tokens = self.block(tokens + tokens.mean(1, keepdim=True))
        return self.head(tokens[:, 0])


def test_grad_cam_drops_prefix_tokens(images):
    model = Vit().double()
    S = GradCAM(layer="norm", relu=False, upsample=False)(model, images, 1)
    tokens = {}
    model.norm.register_forward_hook(lambda *args: tokens.update(A=args[2]))
    model(images)
    w = (model.head.weight[1] @ model.block.weight).detach() / 5
    close(S, (tokens["A"][:, 1:] @ w).unflatten(1, (2, 2)).detach())


def test_grad_cam_refuses_layer_with_unread_patch_tokens(images):
    with pytest.raises(ValueError, match="prefix tokens are read; better: 'norm'"):
        GradCAM(layer="block")(Vit().double(), images, 1)


def test_grad_cam_misspelt_layer_error_lists_closest_names(network, images):
    with pytest.raises(ValueError, match=r"got '1\.9'; closest: \['1\.\d'"):
        GradCAM(layer="1.9")(network, images)


@pytest.mark.parametrize("sizes", [(3,), (5,), (3, 3)])
def test_grad_cam_reads_convolutions_without_padding(sizes):
    """As at the start of LeNet: 32 - 4 = 28 cells a side."""
    body = nn.Sequential(*[nn.Conv2d(1, 1, size) for size in sizes])
    model = nn.Sequential(body, nn.AdaptiveAvgPool2d(1), nn.Flatten()).double()
    for side in (8, 28, 32):
        x = torch.randn(1, 1, side, side, dtype=torch.float64)
        A = body(x)[:, 0].detach()
        close(GradCAM(layer="0", relu=False, upsample=False)(model, x, 1), A / A.numel())


@pytest.mark.parametrize("wrong", [{"fusion": "min"}, {"normalize": "both"}, {"score": "score"}, {"rule": "signed"}])
def test_grad_cam_refuses_wrong_options(wrong, network, images):
    with pytest.raises(ValueError, match=f"'{next(iter(wrong.values()))}'"):
        GradCAM(layer=["0", "1.0"], **wrong)(network, images, 0)
