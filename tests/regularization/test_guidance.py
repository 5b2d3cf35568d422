import copy
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from support.guided_steps import ENERGY, INPUT, annotated, smooth_net
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, GradCAMPlusPlus, Gradient, LayerCAM, ScoreCAM
from interpretable_training.regularization import GuidanceLoss, energy, l1

ONCE = {
    "input_gradient": INPUT,
    "energy": ENERGY,
    "energy at the last layer": replace(ENERGY, method=GradCAM()),
    "energy of two layers": replace(ENERGY, method=GradCAM(layer=["1", "3"])),
    "energy of Grad-CAM++": replace(ENERGY, method=GradCAMPlusPlus(layer="1")),
    "l1 of LayerCAM": replace(ENERGY, loss="l1", method=LayerCAM(layer="1")),
    "function": replace(ENERGY, loss=lambda S, M: (S * ~M).square().flatten(1).sum(1)),
}
OWN = {
    "input_gradient of a part": replace(INPUT, share=0.5),
    "energy of the input": replace(ENERGY, method=Gradient("l2")),
    "energy of the input of a part": replace(ENERGY, method=Gradient("l2"), share=0.5),
    "energy of a part": replace(ENERGY, share=0.5),
    "not here": replace(ENERGY, region="not_here"),
}


def guide(guidance, net, batch, **options):
    return guidance(net, batch["image"], batch["target"], batch["mask"], **options)


@pytest.mark.parametrize("guidance", [*ONCE.values(), *OWN.values()], ids=[*ONCE, *OWN])
def test_gradient_of_the_loss_equals_finite_differences(guidance):
    net, batch = smooth_net(), annotated(guided=4)
    parameters, generator = [*net.parameters()], torch.Generator().manual_seed(3)
    with torch.enable_grad():
        guidance_part = guide(guidance, net, batch)[1].guidance
    gradient = torch.autograd.grad(guidance_part, parameters, materialize_grads=True)
    assert any(g.abs().max() > 1e-6 for g in gradient)
    for _ in range(3):
        v = [torch.randn(p.shape, generator=generator, dtype=p.dtype) for p in parameters]
        ends = []
        for h in (1e-6, -1e-6):
            other = copy.deepcopy(net)
            for p, direction in zip(other.parameters(), v):
                p.data += h * direction
            ends.append(guide(guidance, other, batch)[1].guidance.detach())
        assert_close((ends[0] - ends[1]) / 2e-6, sum((g * d).sum() for g, d in zip(gradient, v)), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("classes", [3, 1])
def test_input_gradient_equals_the_formula_written_out(classes):
    net, batch = smooth_net(), annotated(guided=4)
    net[-1] = nn.Linear(5, classes).double()
    x = batch["image"].clone().requires_grad_()
    logits = net(x)
    p = logits.softmax(1) if classes > 1 else torch.cat([logits.sigmoid(), 1 - logits.sigmoid()], 1)
    d = torch.autograd.grad(p.log().sum(), x)[0]
    expected = (d[:4] * ~batch["mask"][:4, None]).square().sum() / 4
    results = guide(INPUT, net, batch, criterion=lambda logits, _: logits.mean())[1]
    assert_close(results.guidance, expected)
    assert results.guided == 4


def test_grad_cam_energy_equals_the_weights_of_a_linear_head():
    """Behind average pooling, w[k] of Grad-CAM is W[c, k] / (h w)."""
    net, batch = smooth_net(), annotated()
    A = net[:4](batch["image"])
    S = torch.einsum("bk,bkij->bij", net[-1].weight[batch["target"]], A).relu()
    S = F.interpolate(S[:, None], (16, 16), mode="bilinear")[:, 0]
    guidance = replace(ENERGY, method=GradCAM())
    assert_close(guide(guidance, net, batch)[1].guidance, energy(S, batch["mask"]).mean())
    assert_close(guide(replace(guidance, loss="l1"), net, batch)[1].guidance, l1(S, batch["mask"]).mean())


@pytest.mark.parametrize("name", sorted(ONCE.keys() - {"input_gradient"}))
def test_the_shared_pass_gives_the_maps_of_explain(name):
    guidance, net, batch, results = ONCE[name], smooth_net(), annotated(), {}
    guide(replace(guidance, loss=lambda S, M: results.setdefault("S", S).flatten(1).sum(1)), net, batch)
    S = guidance.method(net, batch["image"], batch["target"], create_graph=True)
    assert_close(results["S"], S)
    maps = results["S"], S
    assert_close(*(torch.autograd.grad(T.square().sum(), [*net.parameters()], materialize_grads=True) for T in maps))


def test_total_loss_is_the_sum_and_differentiates_both_parts():
    net, batch = smooth_net(), annotated()
    loss, parts = guide(ENERGY, net, batch)
    assert_close(loss, F.cross_entropy(net(batch["image"]), batch["target"]) + 2 * parts.guidance)
    assert_close(parts.output, net(batch["image"]))


def test_images_without_region_are_not_guided():
    net, batch = smooth_net(), annotated(guided=2)
    some = {name: values[:2] for name, values in batch.items()}
    for guidance in (ENERGY, INPUT):
        results, expected = guide(guidance, net, batch)[1], guide(guidance, net, some)[1]
        assert results.guided == expected.guided == 2
        assert_close(results.guidance, expected.guidance)
    batch["mask"][:] = False
    loss, parts = guide(ENERGY, net, batch)
    assert (parts.guidance, parts.guided) == (None, 0)
    assert_close(loss, parts.classification, rtol=0, atol=0)


def test_not_here_is_the_complement_of_a_region():
    net, batch = smooth_net(), annotated()
    others = {**batch, "mask": ~batch["mask"]}
    for guidance in (ENERGY, INPUT):
        avoided = guide(replace(guidance, region="not_here"), net, batch)[1]
        assert_close(avoided.guidance, guide(guidance, net, others)[1].guidance)


def test_share_guides_the_first_images_with_a_region():
    net, batch = smooth_net(), annotated(n=8)
    batch["mask"][0] = False
    losses = {"S": None}
    guidance = replace(ENERGY, share=0.25, loss=lambda S, M: losses.update(S=S) or S.flatten(1).mean(1))
    assert guide(guidance, net, batch)[1].guided == 2
    assert_close(losses["S"], ENERGY.method(net, batch["image"], batch["target"])[1:3])
    for part in (replace(INPUT, share=0.25), replace(guidance, method=Gradient())):
        assert guide(part, net, batch)[1].guided == 2


def test_a_pass_of_its_own_changes_no_statistics_of_batch_norm():
    net, batch = smooth_net(), annotated()
    net = nn.Sequential(nn.BatchNorm2d(3).double(), *net)
    plain = copy.deepcopy(net)
    plain(batch["image"])
    for guidance in (replace(INPUT, share=0.5), replace(ENERGY, method=Gradient())):
        other = copy.deepcopy(net)
        guide(guidance, other, batch)[0].backward()
        assert_close(other.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_weight_rises_after_the_first_guided_step():
    guidance = GuidanceLoss(weight=2.0, start_step=3, warmup_steps=4)
    assert [guidance.weight_at(step) for step in (0, 2, 3, 4, 6, 7, 99)] == [0, 0, 0.5, 1.0, 2.0, 2.0, 2.0]
    assert GuidanceLoss(weight=2.0).weight_at(None) == 2.0
    with pytest.raises(ValueError, match=r"expected step=\.\.\. because of start_step=3"):
        guidance.weight_at(None)


@pytest.mark.parametrize("guidance", [ENERGY, INPUT], ids=["energy", "input gradient"])
def test_scale_of_float16_changes_no_result(guidance):
    net, batch = smooth_net(), annotated()
    assert_close(guide(guidance, net, batch, scale=1024.0)[0], guide(guidance, net, batch)[0])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("name", sorted({**ONCE, **OWN}.keys() - {"function"}))
def test_mixed_precision_stays_close_to_float32(name, dtype):
    guidance, net, batch = {**ONCE, **OWN}[name], smooth_net().float(), annotated()
    batch["image"] = batch["image"].float()
    exact = guide(guidance, net, batch)[1].guidance
    with torch.autocast("cpu", dtype):
        mixed = guide(guidance, net, batch, scale=256.0)[1].guidance
    assert mixed.dtype == torch.float32
    assert_close(mixed, exact, rtol=0.05, atol=0.01)


def test_logits_are_picked_from_the_output():
    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = smooth_net()

        def forward(self, images):
            return {"features": images, "scores": self.inner(images)}

    batch = annotated()

    def criterion(output, target):
        return F.cross_entropy(output["scores"], target)

    for guidance in (replace(ENERGY, method=GradCAM(layer="inner.1")), INPUT):
        results = guide(guidance, Wrapped(), batch, criterion=criterion, output="scores")[1].guidance
        inner = replace(guidance, method=GradCAM(layer="1"))
        assert_close(results, guide(inner, smooth_net(), batch)[1].guidance)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"loss": "rrr"}, "expected loss to be one of .*'input_gradient', 'energy', 'l1'.* got 'rrr'"),
        ({"region": "mark"}, "expected region to be one of .* got 'mark'"),
        ({"method": ScoreCAM()}, "expected a method whose maps can be differentiated, got ScoreCAM"),
        ({"method": "gradcam"}, "expected a method whose maps can be differentiated, got 'gradcam'"),
        ({"weight": -1.0}, "expected weight >= 0, got -1"),
        ({"weight": float("nan")}, "expected weight >= 0, got nan"),
        ({"share": 0.0}, r"expected share in \(0, 1\], got 0"),
        ({"start_step": -1}, "expected start_step >= 0"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        GuidanceLoss(**options)


def test_masks_of_another_size_are_refused():
    batch = annotated()
    batch["mask"] = batch["mask"][:, ::2, ::2]
    with pytest.raises(
        ValueError, match=r"expected a region \(6, 16, 16\) of booleans.* got \(6, 8, 8\) of torch.bool"
    ):
        guide(ENERGY, smooth_net(), batch)
    with pytest.raises(ValueError, match=r"expected a region .* of torch.float32; resize masks"):
        ENERGY(smooth_net(), batch["image"], batch["target"], torch.ones(6, 16, 16))


def test_networks_without_grid_are_refused():
    net, batch = nn.Sequential(nn.Flatten(), nn.Linear(3 * 16 * 16, 3)).double(), annotated()
    with pytest.raises(
        ValueError, match=r"expected a model with a layer whose output is a grid .* got none in Sequential"
    ):
        guide(GuidanceLoss("energy"), net, batch)
    assert guide(INPUT, net, batch)[1].guided == 6


@pytest.mark.parametrize("target", [torch.zeros(6, 3), torch.zeros(6), None])
def test_targets_without_one_class_per_image_are_refused(target):
    batch = {**annotated(), "target": target}
    with pytest.raises(ValueError, match=r"expected a target \(6,\) of class numbers.* loss='input_gradient'"):
        guide(ENERGY, smooth_net(), batch, criterion=lambda logits, _: logits.mean())


def test_maps_at_the_resolution_of_a_layer_are_refused():
    guidance = replace(ENERGY, method=GradCAM(layer="1", upsample=False))
    with pytest.raises(
        ValueError, match=r"expected maps \(6, 16, 16\) at the resolution of the images, got \(6, 8, 8\)"
    ):
        guide(guidance, smooth_net(), annotated())
