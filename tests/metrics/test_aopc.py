"""AOPC: a line, loops over patches, borders."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import AOPC


def test_a_constant_model_loses_nothing(constant, images, saliency):
    values = AOPC(patch=4, steps=3).measure(model=constant, images=images, saliency=saliency, target=1)
    assert_close(values, torch.zeros(5).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("patch", "steps"), [(2, 3), (2, 12), (4, 3), (1, 48)])
def test_the_mean_falls_by_a_patch_at_a_time(mean, patch, steps):
    """s[0] - s[k] = k / patches, so that AOPC = L / (2 patches)."""
    x, S = torch.ones(2, 1, 12, 4).double(), torch.rand(2, 12, 4, generator=torch.Generator().manual_seed(0))
    metric = AOPC(patch, steps, substrate="mean", score="logit")
    values = metric.measure(model=mean, images=x, saliency=S, target=1)
    expected = 100 * steps / (2 * 48 / patch**2)
    assert_close(values, torch.full((2,), expected, dtype=torch.float64), rtol=0, atol=1e-9)


@pytest.mark.parametrize("substrate", ["min", "mean", "black"])
def test_equals_loops_over_patches_that_need_not_fit(network, images, saliency, target, substrate):
    """12 x 8 pixels in patches of 5: 3 x 2, those at the border smaller."""
    mean, std = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
    metric = AOPC(5, 4, substrate, mean=mean, std=std)
    values = metric.measure(model=network, images=images, saliency=saliency, target=target)
    black = -torch.tensor(mean).double() / torch.tensor(std).double()
    for x, S, c, value in zip(images, saliency, target, values):
        r = {"min": x.min().expand(3), "mean": torch.zeros(3).double(), "black": black}[substrate]
        patches = [(i, j) for i in (0, 5, 10) for j in (0, 5)]
        patches.sort(key=lambda p: -S[p[0] : p[0] + 5, p[1] : p[1] + 5].sum())
        z, scores = x.clone(), []
        for k in range(5):
            if k:
                i, j = patches[k - 1]
                z[:, i : i + 5, j : j + 5] = r[:, None, None]
            with torch.no_grad():
                scores.append(network(z[None]).softmax(1)[0, c].item())
        expected = 100 / 5 * sum(scores[0] - s for s in scores)
        assert value.item() == pytest.approx(expected, abs=1e-9)


def test_one_patch_that_decides(function, delta):
    """Removed first, it is missing in all steps: L / (L + 1). Never removed: 0."""
    model, x = function(lambda z: z.flatten(1)[:, [0, 15]]), torch.ones(1, 1, 4, 4).double()
    facts = {"model": model, "images": x, "target": 1}
    metric = AOPC(patch=2, steps=3, substrate="mean", score="logit")
    assert metric.measure(**facts, saliency=delta((4, 4), 10)).item() == pytest.approx(75, abs=1e-9)
    assert metric.measure(**facts, saliency=1 - delta((4, 4), 10)).item() == pytest.approx(0, abs=1e-9)


def test_a_single_pixel_is_a_patch(mean):
    x, S = torch.ones(1, 1, 1, 1).double(), torch.ones(1, 1, 1)
    values = AOPC(1, 1, "mean", score="logit").measure(model=mean, images=x, saliency=S, target=1)
    assert values.item() == pytest.approx(50, abs=1e-9)


def test_defaults_are_those_of_the_definition():
    passport = AOPC().passport()
    assert (passport["patch"], passport["steps"], passport["substrate"], passport["score"]) == (14, 10, "min", "prob")


def test_more_steps_than_patches_are_refused(network, images, saliency, target):
    with pytest.raises(ValueError, match=r"at least 5 patches of 6 pixels a side .* got 4"):
        AOPC(patch=6, steps=5).update(network, images, saliency, target)


@pytest.mark.parametrize("options", [{"patch": 0}, {"steps": 0}, {"patch": -1}])
def test_no_patches_and_no_steps_are_refused(options):
    with pytest.raises(ValueError, match=r"(patch|steps) as a whole number of at least 1"):
        AOPC(**options)
