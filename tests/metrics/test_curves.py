"""Insertion and deletion: models whose curves are known, the rule of RISE in loops, conventions one by one."""

import math

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import Deletion, Insertion, InsertionDeletion
from interpretable_training.metrics.core.perturbation import rise_kernel
from interpretable_training.metrics.core.rescoring import scored_batch

PAIR = [Insertion, Deletion]


def facts_of(model, images, saliency, target=1):
    return {"model": model, "images": images, "saliency": saliency, "target": target}


@pytest.mark.parametrize("preset", ["rise", "ca_stream", "polycam", "tgrad", "torchcam"])
def test_a_constant_model_has_the_area_p(constant, images, saliency, preset):
    facts = facts_of(constant, images, saliency)
    for metric in PAIR:
        assert_close(metric(preset=preset).measure(**facts), torch.full((5,), 30.0).double(), rtol=0, atol=1e-9)
    difference = InsertionDeletion(preset=preset).measure(**facts)
    assert_close(difference, torch.zeros(5).double(), rtol=0, atol=1e-9)


def test_the_mean_has_half_an_area_whatever_the_map(mean):
    x = torch.ones(3, 1, 6, 4).double()
    S = torch.rand(3, 6, 4, generator=torch.Generator().manual_seed(0))
    for metric in PAIR:
        for steps in (None, 6, 24):
            values = metric(steps, substrate="mean", score="logit").measure(**facts_of(mean, x, S))
            assert_close(values, torch.full((3,), 50.0).double(), rtol=0, atol=1e-9)


def test_one_pixel_that_decides(function, delta):
    """p = z[5]. First to go: deletion 1/(2n), insertion 1 - 1/(2n). Last to go: the other way round."""
    model, x, n = function(lambda z: z.flatten(1)[:, [4, 5]]), torch.ones(1, 1, 3, 4).double(), 12
    first, last = delta((3, 4), 5), 1 - delta((3, 4), 5)
    options = {"steps": n, "substrate": "mean", "score": "logit"}
    small, large = 100 / (2 * n), 100 - 100 / (2 * n)
    for S, deletion, insertion in ((first, small, large), (last, large, small)):
        facts = facts_of(model, x, S)
        assert Deletion(**options).measure(**facts).item() == pytest.approx(deletion, abs=1e-9)
        assert Insertion(**options).measure(**facts).item() == pytest.approx(insertion, abs=1e-9)
        both = InsertionDeletion(**options).measure(**facts).item()
        assert both == pytest.approx(insertion - deletion, abs=1e-9)


def rise_in_loops(model, x, S, target, kind, substrate, g):
    """The curve (n + 1,) of one image (C, H, W), as the authors' class `CausalMetric` makes it."""
    H, W = S.shape
    n = math.ceil(H * W / g)
    pixels = S.flatten().tolist()
    order = sorted(range(H * W), key=lambda i: (pixels[i], i))[::-1]
    start, finish = (x.clone(), substrate) if kind == "deletion" else (substrate.clone(), x)
    curve = []
    for j in range(n + 1):
        with torch.no_grad():
            curve.append(model(start[None]).softmax(1)[0, target].item())
        for pixel in order[g * j : g * (j + 1)]:
            start[:, pixel // W, pixel % W] = finish[:, pixel // W, pixel % W]
    return np.array(curve)


def rise_auc(curve):
    return (curve.sum() - curve[0] / 2 - curve[-1] / 2) / (len(curve) - 1)


def blurred(x, kernel):
    k = torch.outer(rise_kernel(kernel, 5.0), rise_kernel(kernel, 5.0))[None, None].expand(3, 1, kernel, kernel)
    return torch.nn.functional.conv2d(x[None], k, padding=kernel // 2, groups=3)[0]


@pytest.mark.parametrize(("preset", "g", "kernel"), [("rise", 8, 11), ("ca_stream", 64, 5)])
def test_presets_follow_the_rule_of_rise(network, images, target, curves, preset, g, kernel):
    """96 pixels: one row of 8 each, or eight rows. Maps of 5 values have many ties, which a stable flip reverses."""
    S = torch.randint(0, 5, (5, 12, 8), generator=torch.Generator().manual_seed(0)).double() / 4
    for metric, kind in ((Insertion, "insertion"), (Deletion, "deletion")):
        metric = metric(preset=preset)
        results = curves(metric, network, images, S, target)[kind]
        values = metric.measure(**facts_of(network, images, S, target))
        for i, x in enumerate(images):
            substrate = blurred(x, kernel) if kind == "insertion" else torch.zeros_like(x)
            expected = rise_in_loops(network, x, S[i], target[i], kind, substrate, g)
            assert_close(results[i], torch.from_numpy(expected), rtol=0, atol=1e-9)
            assert values[i].item() == pytest.approx(100 * rise_auc(expected), abs=1e-9)


def test_the_preset_polycam_blurs_both_and_leaves_out_the_first_score(network, images, saliency, target):
    from torchvision.transforms.functional import gaussian_blur

    large = torch.nn.functional.interpolate(images, scale_factor=2)
    S = torch.nn.functional.interpolate(saliency[:, None], scale_factor=2)[:, 0]  # each value four times
    substrate = gaussian_blur(large, [11, 11], [5.0, 5.0])
    g = 16  # one row
    for metric, kind in ((Insertion, "insertion"), (Deletion, "deletion")):
        values = metric(preset="polycam").measure(**facts_of(network, large, S, target))
        curve = rise_in_loops(network, large[0], S[0], target[0], kind, substrate[0], g)
        assert values[0].item() == pytest.approx(100 * curve[1:].mean(), abs=1e-4)


@pytest.mark.parametrize(
    ("size", "steps", "counts"),
    [
        ((3, 4), None, [0, 4, 8, 12]),
        ((4, 3), None, [0, 3, 6, 9, 12]),
        ((2, 5), 4, [0, 3, 6, 9, 10]),
        ((2, 5), 6, [0, 2, 4, 6, 8, 10]),
        ((2, 2), 100, [0, 1, 2, 3, 4]),
        ((2, 2), 1, [0, 4]),
        ((1, 1), None, [0, 1]),
        ((7,), 3, [0, 3, 6, 7]),
        ((2, 2, 2), 2, [0, 4, 8]),
    ],
)
def test_steps_of_equal_size_but_for_the_last(size, steps, counts):
    assert Deletion(steps).deletion.counts(size).tolist() == counts


@pytest.mark.parametrize(("size", "rows"), [(224, 224), (64, 64), (20, 20)])
def test_steps_of_presets_follow_the_image_size(size, rows):
    """One row a step for RISE and Poly-CAM, eight rows for CA-Stream, of which the last step may have fewer."""
    for preset in ("rise", "polycam"):
        counts = Deletion(preset=preset).deletion.counts((size, size))
        assert counts.tolist() == [size * j for j in range(rows + 1)]
    counts = Deletion(preset="ca_stream").deletion.counts((size, size))
    assert counts.tolist() == [*range(0, size * size, 8 * size), size * size]
    assert Deletion(preset="ca_stream").passport()["steps"] == "8 rows of the image each"
    assert len(Deletion(28, preset="ca_stream").deletion.counts((64, 64))) == 29


def test_a_shorter_last_step_weighs_less_by_the_fraction_of_pixels(mean):
    """Of 10 pixels 3, 3, 3 and 1 go: by fractions the mean falls along a line, by steps it does not.

    By steps (1 / 2 + .7 + .4 + .1 + 0 / 2) / 4 = .425.
    """
    x, S = torch.ones(1, 1, 2, 5).double(), torch.rand(1, 2, 5)
    facts = facts_of(mean, x, S)
    by_step = Deletion(4, score="logit").measure(**facts).item()
    by_fraction = Deletion(4, score="logit", x_axis="fraction").measure(**facts).item()
    assert by_step == pytest.approx(42.5, abs=1e-9)
    assert by_fraction == pytest.approx(50, abs=1e-9)


def test_the_mean_leaves_out_the_first_score(mean):
    """Deletion in two steps has the scores 1, .5, 0: mean of the last two .25."""
    facts = facts_of(mean, torch.ones(1, 1, 2, 2).double(), torch.rand(1, 2, 2))
    assert Deletion(2, score="logit", auc="mean").measure(**facts).item() == pytest.approx(25, abs=1e-9)
    assert Insertion(2, substrate="mean", score="logit", auc="mean").measure(**facts).item() == pytest.approx(
        75, abs=1e-9
    )


def test_curves_end_where_they_must(network, images, saliency, target, curves):
    with torch.no_grad():
        clean = network(images).softmax(1)[range(5), target]
        blank = network(torch.zeros_like(images)).softmax(1)[range(5), target]
    results = curves(InsertionDeletion(steps=5, substrate="mean"), network, images, saliency, target)
    assert_close(results["deletion"][:, [0, -1]], torch.stack([clean, blank], 1), rtol=0, atol=1e-12)
    assert_close(results["insertion"][:, [0, -1]], torch.stack([blank, clean], 1), rtol=0, atol=1e-12)


def test_only_the_order_of_the_map_counts(network, images, saliency, target):
    for metric in (Insertion(steps=6), Deletion(steps=6)):
        values = metric.measure(**facts_of(network, images, saliency, target))
        monotone = metric.measure(**facts_of(network, images, saliency**3, target))
        assert_close(values, monotone, rtol=0, atol=1e-12)


def test_insertion_of_one_order_is_deletion_of_the_opposite(network, images, saliency, target, curves):
    """With the same substrate, k pixels shown of the most salient are the others hidden."""
    options = {"steps": 6, "substrate": "mean"}
    shown = curves(Insertion(**options), network, images, saliency, target)["insertion"]
    hidden = curves(Deletion(**options), network, images, 1 - saliency, target)["deletion"]
    assert_close(shown, hidden.flip(1), rtol=0, atol=1e-12)


@pytest.mark.parametrize("steps", [1, 2, 7, 12])
def test_both_curves_of_n_steps_score_2n_plus_1_images(scored, images, saliency, steps):
    model = scored(lambda z: z.flatten(1).mean(1).sigmoid())
    n = len(Deletion(steps).deletion.counts((12, 8))) - 1
    with scored_batch(model, images, saliency, torch.ones(5, dtype=torch.long)) as scored:
        for metric in (Insertion(steps), Deletion(steps), InsertionDeletion(steps), Deletion(steps, auc="mean")):
            metric.rows(scored)
    assert model.seen == 5 * (2 * n + 1)


def test_passes_are_bounded_by_the_chunk_size(function, images, saliency):
    model = function(lambda z: z.flatten(1)[:, :2])
    values = {}
    for chunk_size in (1, 7, 1000):
        model.sizes.clear()
        metric = Insertion(steps=9, score="logit", chunk_size=chunk_size)
        values[chunk_size] = metric.measure(**facts_of(model, images, saliency))
        assert max(model.sizes) <= chunk_size
    assert torch.equal(values[1], values[7])
    assert torch.equal(values[1], values[1000])


def test_a_given_tensor_is_the_substrate(function, curves):
    model = function(lambda z: torch.stack([z[:, 0, 0, 0], z[:, 1, 0, 0]], 1))
    color = torch.tensor([0.25, 0.75]).view(2, 1, 1)
    results = curves(
        Insertion(1, substrate=color, score="logit"), model, torch.ones(1, 2, 2, 2), torch.rand(1, 2, 2), 1
    )
    assert results["insertion"].tolist() == [[0.75, 1.0]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"steps": 0}, "steps as a whole number of at least 1"),
        ({"steps": -3}, "steps as a whole number of at least 1"),
        ({"preset": "risee"}, "preset to be one of"),
        ({"auc": "sum"}, "auc to be one of"),
        ({"ties": "none"}, "ties to be one of"),
        ({"x_axis": "pixels"}, "x_axis to be one of"),
        ({"score": "accuracy"}, "score to be one of"),
        ({"substrate": "white"}, "substrate to be one of"),
        ({"substrate": "black", "mean": (0.5,)}, "mean and std together"),
    ],
)
@pytest.mark.parametrize("metric", [Insertion, Deletion, InsertionDeletion])
def test_options_that_do_not_exist_are_refused(metric, options, message):
    with pytest.raises(ValueError, match=message):
        metric(**options)


def test_a_kernel_without_a_middle_is_refused(network, images, saliency, target):
    with pytest.raises(ValueError, match="kernel"):
        Insertion(kernel=4).update(network, images, saliency, target)
