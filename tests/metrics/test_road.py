"""Imputation: theorems and a dense solver. ROAD: loops, symmetry, counts."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution.core.batching import seeded_noise
from interpretable_training.metrics import ROAD
from interpretable_training.metrics.core.imputation import impute

NEIGHBORS = {(i, j): 1 / 6 if 0 in (i, j) else 1 / 12 for i in (-1, 0, 1) for j in (-1, 0, 1) if (i, j) != (0, 0)}


def solved(image, missing):
    """The system of the definition, written down pixel by pixel and solved; image (C, H, W)."""
    C, H, W = image.shape
    holes = [(i, j) for i in range(H) for j in range(W) if missing[i, j]]
    A, b = torch.zeros(len(holes), len(holes)).double(), torch.zeros(len(holes), C).double()
    for row, (i, j) in enumerate(holes):
        for (di, dj), w in NEIGHBORS.items():
            n = (i + di, j + dj)
            if not (0 <= n[0] < H and 0 <= n[1] < W):
                continue
            A[row, row] += w
            if missing[n]:
                A[row, holes.index(n)] -= w
            else:
                b[row] += w * image[:, n[0], n[1]]
    filled = image.clone()
    for (i, j), value in zip(holes, torch.linalg.solve(A, b)):
        filled[:, i, j] = value
    return filled


@pytest.fixture
def affine():
    i, j = torch.meshgrid(torch.arange(9.0).double(), torch.arange(7.0).double(), indexing="ij")
    return torch.stack([1 + 2 * i - 3 * j, 0.5 * j])[None]


def test_one_missing_pixel_is_the_mean_of_its_neighbors():
    x = torch.randn(1, 2, 3, 3, generator=torch.Generator().manual_seed(0)).double()
    missing = torch.zeros(1, 3, 3, dtype=torch.bool)
    missing[0, 1, 1] = True
    beside = x[..., 0, 1] + x[..., 1, 0] + x[..., 1, 2] + x[..., 2, 1]
    corners = x[..., 0, 0] + x[..., 0, 2] + x[..., 2, 0] + x[..., 2, 2]
    assert_close(impute(x, missing)[..., 1, 1], beside / 6 + corners / 12, rtol=0, atol=1e-9)


def test_an_affine_image_is_restored_inside(affine):
    missing = torch.zeros(1, 9, 7, dtype=torch.bool)
    missing[0, 2:7, 1:5] = True
    missing[0, 3, 5] = True
    assert_close(impute(affine.where(~missing[:, None], 100.0), missing), affine, rtol=0, atol=1e-9)


def test_a_constant_image_is_restored_up_to_its_borders():
    x = torch.full((1, 3, 8, 6), 0.7).double()
    missing = torch.ones(1, 8, 6, dtype=torch.bool)
    missing[0, 4, 2] = False
    assert_close(impute(x.where(~missing[:, None], -5.0), missing), x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("share", [0.02, 0.3, 0.7, 0.95])
@pytest.mark.parametrize("size", [(7, 9), (1, 12), (12, 1), (2, 2)])
def test_equals_the_solution_of_the_linear_system(share, size):
    generator = torch.Generator().manual_seed(int(100 * share))
    x = torch.randn(3, 2, *size, generator=generator).double()
    missing = torch.rand(3, *size, generator=generator) < share
    missing[:, 0, 0] = False
    filled = impute(x, missing)
    for image, hole, ours in zip(x, missing, filled):
        assert_close(ours, solved(image, hole) if hole.any() else image, rtol=0, atol=1e-9)


def test_images_are_imputed_each_for_itself_and_known_pixels_stay(affine):
    x = torch.cat([affine, 1e4 * affine, 0 * affine])
    missing = torch.rand(3, 9, 7, generator=torch.Generator().manual_seed(0)) < 0.6
    filled = impute(x, missing)
    for i in range(3):
        assert_close(filled[i : i + 1], impute(x[i : i + 1], missing[i : i + 1]), rtol=1e-9, atol=1e-9)
    assert torch.equal(filled.where(~missing[:, None], 0), x.where(~missing[:, None], 0))


def test_single_precision_is_enough():
    x = torch.randn(2, 3, 40, 40, generator=torch.Generator().manual_seed(0))
    missing = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.9
    assert_close(impute(x, missing).double(), impute(x.double(), missing), rtol=0, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_images_are_imputed_as_well_as_known(dtype):
    coarse = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    x = torch.nn.functional.interpolate(coarse, scale_factor=5, mode="bilinear").to(dtype)
    missing = torch.rand(2, 40, 40, generator=torch.Generator().manual_seed(1)) < 0.9
    filled = impute(x, missing)
    assert filled.dtype == dtype
    assert_close(filled.double(), impute(x.double(), missing), rtol=0, atol=4 * torch.finfo(dtype).eps)


def test_an_image_without_a_known_pixel_is_refused():
    missing = torch.tensor([[[True, False]], [[True, True]]])
    with pytest.raises(ValueError, match="expected a known pixel in each image"):
        impute(torch.zeros(2, 1, 1, 2), missing)


@pytest.mark.parametrize("noise", [0.0, 0.01])
def test_a_constant_model_sees_no_difference(constant, images, saliency, noise):
    values = ROAD(noise=noise).measure(model=constant, images=images, saliency=saliency, target=1)
    assert_close(values, torch.zeros(5).double(), rtol=0, atol=1e-9)


@pytest.mark.parametrize(("score", "noise"), [("prob", 0.0), ("logit", 0.0), ("sigmoid", 0.0), ("prob", 0.3)])
def test_equals_loops(network, images, saliency, target, score, noise):
    """Exact counts of the 96 pixels, by falling and by rising saliency, imputed by the dense solver."""
    percentages = (10, 50, 90)
    metric = ROAD(percentages, score, noise, seed=4)
    values = metric.measure(model=network, images=images, saliency=saliency, target=target)
    eta = noise * seeded_noise(4, (3, 12, 8), images)
    for x, S, c, value in zip(images, saliency, target, values):
        order, difference = S.flatten().argsort(descending=True), 0.0
        for q in percentages:
            k = round(q / 100 * 96)
            for pixels, sign in ((order[:k], -1), (order[-k:], 1)):
                gone = torch.zeros(96, dtype=torch.bool).index_fill(0, pixels, True).view(12, 8)
                with torch.no_grad():
                    y = network((solved(x, gone) + eta * gone)[None])[0]
                value_of = {"prob": y.softmax(0), "logit": y, "sigmoid": y.sigmoid()}[score][c].item()
                difference += sign * value_of
        assert value.item() == pytest.approx(100 * difference / 3 / 2, abs=1e-7)


def test_accuracy_is_whether_the_class_is_the_predicted_one(network, images, saliency, target, curves):
    results = curves(ROAD(score="accuracy", noise=0.0), network, images, saliency, target)
    for scores in results.values():
        assert scores.shape == (5, 9)
        assert set(scores.unique().tolist()) <= {0.0, 1.0}
    again = curves(ROAD(noise=0.0), network, images, saliency, target)
    for kind, scores in results.items():  # a probability above 1/2 is the largest, one below 1/4 of 4 is not
        assert (scores[again[kind] > 0.5] == 1).all()
        assert (scores[again[kind] < 0.25] == 0).all()


def test_the_opposite_map_has_the_opposite_score(network, images, saliency, target):
    metric = ROAD(noise=0.0)
    values = metric.measure(model=network, images=images, saliency=saliency, target=target)
    opposite = metric.measure(model=network, images=images, saliency=1 - saliency, target=target)
    assert_close(values, -opposite, rtol=0, atol=1e-7)


def test_noise_is_seeded_and_does_not_depend_on_the_batch(network, images, saliency, target):
    facts = {"model": network, "images": images, "saliency": saliency, "target": target}
    values = ROAD(noise=1.0).measure(**facts)
    assert_close(ROAD(noise=1.0).measure(**facts), values, rtol=0, atol=0)
    assert (ROAD(noise=1.0, seed=1).measure(**facts) - values).abs().max() > 1e-6
    alone = ROAD(noise=1.0).measure(**{k: v if k == "model" else v[2:3] for k, v in facts.items()})
    assert_close(alone, values[2:3], rtol=0, atol=1e-9)


def test_18_images_are_scored_for_9_percentages(function, images, saliency):
    model = function(lambda z: z.flatten(1)[:, :2])
    ROAD().update(model, images, saliency, torch.ones(5, dtype=torch.long))
    assert model.seen == 18 * 5


@pytest.mark.parametrize("percentages", [[], [0], [100], [10, 120], [-5, 50]])
def test_percentages_that_remove_nothing_or_all_are_refused(percentages):
    with pytest.raises(ValueError, match="percentages as a number above 0 and below 100"):
        ROAD(percentages)


@pytest.mark.parametrize("size", [(1, 1), (2, 2)])
def test_images_too_small_for_the_percentages_are_refused(network, size):
    with pytest.raises(ValueError, match="remove some of the"):
        ROAD().update(network, torch.rand(1, 3, *size), torch.rand(1, *size), 0)
