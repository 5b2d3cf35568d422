"""Final maps are measured as they are: by `evaluate`, by callbacks and by metrics that explain again."""

from dataclasses import replace

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import (
    FakeCAM,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    OptiCAM,
    RandomMap,
)
from interpretable_training.callbacks import InterpretabilityMetrics
from interpretable_training.metrics import (
    AverageDrop,
    AverageGain,
    Complexity,
    MaxSensitivity,
    Restricted,
    evaluate,
)

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.3, 0.25)
OPTIONS = {"mean": MEAN, "std": STD, "resamples": 5, "controls": False, "progress": False}


def black_outside(x, S):
    """Seen through the map in pixels: 0 is black."""
    mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (MEAN, STD))
    return ((x * std + mean) * S - mean) / std


def published(network, images, target, explain):
    """AD and AG of one image after the other by the published pipeline, for maps explain(x, class) (H, W)."""
    drops, gains = [], []
    for x, c in zip(images, target.tolist()):
        p = network(x[None]).softmax(1)[0, c].item()
        o = network(black_outside(x, explain(x, c))[None]).softmax(1)[0, c].item()
        drops.append(100 * max(p - o, 0) / p)
        gains.append(100 * max(o - p, 0) / (1 - p))
    return torch.tensor(drops, dtype=torch.float64), torch.tensor(gains, dtype=torch.float64)


def grad_cam_before(network, layer):
    """Grad-CAM by hand, scaled at the layer's resolution, then enlarged: its largest value may stay below 1."""

    def explain(x, c):
        A = network[: layer + 1](x[None]).detach().requires_grad_()
        (dA,) = torch.autograd.grad(network[layer + 1 :](A)[0, c], A)
        S = sum(dA[0, k].mean() * A[0, k] for k in range(A.shape[1])).clamp(min=0).detach()
        S = (S - S.min()) / (S.max() - S.min() + 2.2e-16)  # a map of zeros stays one
        return F.interpolate(S[None, None], x.shape[1:], mode="bilinear", align_corners=False)[0, 0]

    return explain


def test_grad_cam_scaled_before_enlarging_has_the_published_drop(network, images, target):
    metrics = {"ad": AverageDrop(preset="ca_stream"), "ag": AverageGain(preset="ca_stream")}
    methods = {"before": GradCAM("0", normalize="before"), "raw": GradCAM("0")}
    table = evaluate(network, methods, metrics, (images, target), **OPTIONS)
    drop, gain = published(network, images, target, grad_cam_before(network, 0))
    assert_close(table.per_image("before", "ad"), drop, rtol=1e-5, atol=1e-5)
    assert_close(table.per_image("before", "ag"), gain, rtol=1e-5, atol=1e-5)
    assert (table.per_image("raw", "ad") - drop).abs().max() > 0.1  # the second scaling is no detail


@pytest.mark.parametrize("n", ["range", "max", "sigmoid"])
def test_opti_cam_is_measured_by_its_own_mask(network, images, target, n):
    """m(u) of the printed optimization, by torch's Adam; with the sigmoid it lies between 1/2 and 1."""
    scale = {
        "range": lambda S: (S - S.min()) / (S.max() - S.min()),
        "max": lambda S: S / S.max(),
        "sigmoid": lambda S: 1 / (1 + (-S).exp()),
    }[n]

    def explain(x, c):
        A = network[:4](x[None])[0].detach().clamp(min=0)
        u = torch.full((len(A),), 0.5, dtype=A.dtype, requires_grad=True)
        adam = torch.optim.Adam([u], lr=0.1)

        def m():
            S = torch.einsum("k,kij->ij", u.softmax(0), A)
            return scale(F.interpolate(S[None, None], x.shape[1:], mode="bilinear", align_corners=False)[0, 0])

        for _ in range(4):
            adam.zero_grad()
            (-network((x * m())[None])[0, c]).backward()
            adam.step()
        return m().detach()

    metrics = {"ad": AverageDrop(), "ag": AverageGain()}
    table = evaluate(network, OptiCAM("3", steps=4, n=n), metrics, (images, target), **OPTIONS)
    drop, gain = published(network, images, target, explain)
    assert_close(table.per_image("opticam", "ad"), drop, rtol=1e-5, atol=1e-5)
    assert_close(table.per_image("opticam", "ag"), gain, rtol=1e-5, atol=1e-5)


def test_methods_state_whether_their_maps_are_final():
    assert [GradCAM(normalize=n).final for n in ("none", "before", "after")] == [False, True, True]
    assert all(OptiCAM(n=n).final for n in ("range", "max", "sigmoid"))
    assert FakeCAM().final
    assert not any(method.final for method in (Gradient(), RandomMap()))
    with pytest.raises(AttributeError):
        GradCAM().final = True


@pytest.mark.parametrize("method", [GradCAM, GradCAMPlusPlus, OptiCAM])
@pytest.mark.parametrize(
    "options", [{}, {"relu": False}, {"layer": ["0", "3"]}, {"layer": ["0", "3"], "fusion": "max"}]
)
@pytest.mark.parametrize("normalize", ["before", "after"])
def test_final_maps_are_in_the_unit_range(network, images, target, method, options, normalize):
    made = method(**{"layer": "3", "normalize": normalize, **options})
    S = replace(made, steps=2)(network, images, target) if method is OptiCAM else made(network, images, target)
    assert made.final
    assert 0 <= S.min() <= S.max() <= 1


def test_the_part_of_a_final_map_is_not_scaled(network, images, target):
    """The complexity of a map is its mean: of 1/2 to 1 it stays above 1/2, also inside of the object."""
    batch = {"image": images, "target": target, "mask": images[:, 0] > 0}
    sigmoid = OptiCAM("3", steps=2, n="sigmoid")
    methods = {"in": Restricted(sigmoid, region="mask"), "out": Restricted(sigmoid, "outside", region="mask")}
    table = evaluate(network, methods, Complexity(), [batch], **OPTIONS)
    inside, outside = (table.per_image(name, "complexity") for name in methods)
    assert_close(inside + outside, sigmoid(network, images, target).mean((1, 2)))
    assert ((inside + outside) >= 0.5).all()
    assert table.facts["maps of in"] == "as the method returns them"


def test_final_maps_of_changed_images_are_not_scaled_either(network, images, target):
    """A sigmoid whose argument changes little changes little: scaled by its range it would change altogether."""
    method = OptiCAM("3", steps=1, n="sigmoid")
    S = method(network, images, target)
    facts = {"model": network, "images": images, "saliency": S, "target": target}
    results = MaxSensitivity(method, n=3).measure(**facts)
    assert_close(results, MaxSensitivity(method, n=3, raw=True).measure(**facts))


def test_the_table_states_how_maps_come_into_the_unit_range(network, images, target, tmp_path):
    methods = {"raw": GradCAM("3"), "before": GradCAM("3", normalize="before")}
    table = evaluate(network, methods, Complexity(), (images, target), **{**OPTIONS, "controls": True})
    assert table.facts["maps of raw"] == table.facts["maps of random"] == "scaled to [0, 1] by their range"
    assert table.facts["maps of before"] == table.facts["maps of fakecam"] == "as the method returns them"
    table.save(tmp_path)
    assert '"maps of before": "as the method returns them"' in (tmp_path / "passports.json").read_text()


class Foreign(L.LightningModule):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        return self.network(x)

    def test_step(self, batch, batch_idx):
        self(batch[0])


@pytest.mark.filterwarnings("ignore")
def test_the_callback_measures_final_maps_as_they_are(network, images, target, tmp_path):
    data = torch.utils.data.DataLoader(list(zip(images, target)), batch_size=3)
    methods = {"sigmoid": OptiCAM("3", steps=2, n="sigmoid"), "raw": GradCAM("3")}
    callback = InterpretabilityMetrics(methods, Complexity(), on_error="raise", stages=("test",))
    trainer = L.Trainer(
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[callback],
        accelerator="cpu",
        default_root_dir=tmp_path,
    )
    trainer.test(Foreign(nn.Sequential(*network)), data, verbose=False)
    S = methods["sigmoid"](network, images, target)
    assert float(trainer.callback_metrics["test/xai/sigmoid/complexity"]) == pytest.approx(S.mean().item(), rel=1e-5)
    maps = {"sigmoid": "as the method returns them", "raw": "scaled to [0, 1] by their range"}
    assert callback.settings()["maps"] == maps
