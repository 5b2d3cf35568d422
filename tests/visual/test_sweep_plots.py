import random

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from interpretable_training.visual.sweep_plots import Scale, axis_limits, axis_share, draw_sweep

SCALES = [Scale("model.lr", log=True), Scale("width"), Scale("kind", ["b", "a", None]), Scale("on", [True, False])]


def runs(count, seed=0):
    rng = random.Random(seed)
    return [
        (
            {
                "model.lr": 10 ** rng.uniform(-5, 0),
                "width": rng.randint(1, 9),
                "kind": rng.choice(["b", "a", None]),
                "on": rng.choice([True, False]),
            },
            rng.random(),
        )
        for _ in range(count)
    ]


@pytest.mark.parametrize("number", [1, 2, 3, 4])
@pytest.mark.parametrize("count", [1, 12])
def test_sweep_is_drawn_for_any_number_of_parameters(tmp_path, number, count):
    draw_sweep(SCALES[:number], runs(count), "val/accuracy", tmp_path / "s.png")
    pixels = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
    assert pixels.shape[0] > 300
    red = (pixels[..., 0] > 180) & (pixels[..., 1] < 80) & (pixels[..., 2] < 80)
    assert red.sum() > 50  # the best run is marked


def test_sweep_of_equal_values_is_drawn(tmp_path):
    same = [({"model.lr": 0.1, "width": 3, "kind": "a"}, 0.5)] * 3
    draw_sweep(SCALES[:3], same, "m", tmp_path / "s.png")
    assert (tmp_path / "s.png").exists()


def test_scale_places_choices_at_equal_distances():
    assert [Scale("x", [10.0, 0.0, 0.1]).position(value) for value in (0.0, 0.1, 10.0)] == [0, 1, 2]
    assert [Scale("x", ["b", "a"]).position(value) for value in ("b", "a")] == [0, 1]
    assert Scale("x").position(7) == 7


def test_axis_share_and_limits_follow_the_values():
    axes = Figure().subplots()
    axes.set_yscale("log")
    axes.set_ylim(1e-4, 1)
    assert axis_share(axes, 1e-2) == pytest.approx(0.5)
    assert axis_limits([1e-4, 1], Scale("x", log=True)) == pytest.approx((10**-4.2, 10**0.2))
    assert axis_limits([0, 10], Scale("x")) == (-0.5, 10.5)
