"""An image with a value that is not finite has a map of NaN, and changes nothing about the other images."""

import pytest
import torch
from support.attributions import METHODS, toy, toy_images

from interpretable_training.attribution import GradCAM, RandomMap, explain

CONTROLS = ("fakecam", "randommap")  # ignore the model: their docstrings say what they return
NAN, INF = float("nan"), float("inf")


def spoiled(value, rows, one=False):
    images = toy_images(3)
    for row in rows:
        if one:
            images[row, 0, 3, 5] = value
        else:
            images[row] = value
    return images


@pytest.mark.parametrize(("value", "one"), [(NAN, False), (INF, False), (NAN, True)])
@pytest.mark.parametrize("row", [0, 1])
@pytest.mark.parametrize("name", METHODS)
def test_map_is_nan_where_the_image_is_not_finite(name, row, value, one):
    net, others = toy(name), [i for i in range(3) if i != row]
    expected = METHODS[name](net, toy_images(3), 1)
    S = METHODS[name](net, spoiled(value, [row], one), 1)
    assert torch.equal(S[others], expected[others])
    if name in CONTROLS:
        assert S[row].isfinite().all()
    else:
        assert S[row].isnan().all()


@pytest.mark.parametrize("name", METHODS)
def test_batch_without_a_finite_image_has_maps_of_nan(name):
    S = METHODS[name](toy(name), spoiled(NAN, range(3)), 1)
    assert S.isfinite().all() if name in CONTROLS else S.isnan().all()


def test_control_ignores_the_other_values_of_the_batch():
    maps = RandomMap()(toy(), spoiled(NAN, [1]), 1)
    assert len({float(S[0, 0]) for S in maps}) == 3


def test_shared_passes_and_several_targets_have_rows_of_nan():
    images = spoiled(INF, [2])
    maps = explain(
        {"gradcam": GradCAM(), "half": GradCAM(score="prob"), "random": RandomMap()}, toy(), images, [[0, 1]] * 3
    )
    assert all(maps[name][2].isnan().all() for name in ("gradcam", "half"))
    assert maps["random"][2].isfinite().all()
    assert torch.equal(maps["gradcam"][:2], GradCAM()(toy(), toy_images(3), [[0, 1]] * 3)[:2])
