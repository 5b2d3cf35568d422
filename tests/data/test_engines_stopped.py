"""Engines that are stopped: what is known of their wear stays beside the cycles it belongs to."""

import torch

from interpretable_training.data import EnginesDataModule
from interpretable_training.data.cmapss import Engine, Scaling, Windows

SIZES = {"n_train": 3, "n_val": 2, "n_test": 200, "window": 20, "max_rul": 16, "annotations": True}


def test_a_stopped_engine_still_fills_a_window_and_is_stopped_at_any_time_before():
    """So no test window is padded; from the last cycle back to the first full window, all times occur."""
    data = EnginesDataModule(**SIZES)
    engines = data.engines("test")
    lengths = torch.tensor([len(engine.sensors) for engine in engines])
    lives = lengths + torch.tensor([engine.left for engine in engines])
    assert lengths.min() >= 20
    assert lengths.min() < 25
    assert (lives - lengths).min() == 0
    assert (lives - lengths > 16).float().mean() > 0.5  # most are stopped while they are sound
    assert (lives >= 20 + 16).all()
    assert (lives < 20 + 16 + 60).all()


def test_the_mask_of_a_short_life_is_moved_with_its_cycles():
    sensors = torch.arange(5.0, dtype=torch.float64)[:, None].expand(5, 21)
    engine = Engine(1, torch.zeros(5, 3, dtype=torch.float64), sensors, 0, torch.tensor([0, 0, 0, 1, 1]).bool())
    windows = Windows([engine], Scaling([engine], [2], False), 8, None, None, True)
    item = windows[0]
    assert item["mask"].tolist() == [False] * 6 + [True] * 2
    assert item["cycle"] == 5
    raw = item["image"][0] * sensors[:, 0].std(correction=0).float() + 2
    torch.testing.assert_close(raw, torch.tensor([0.0, 0, 0, 0, 1, 2, 3, 4]))
