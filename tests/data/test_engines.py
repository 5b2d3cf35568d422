import pytest
import torch
from torch.testing import assert_close

from interpretable_training.data import EnginesDataModule
from interpretable_training.data.cmapss import Engine, Scaling, Windows

SMALL = {"n_train": 12, "n_val": 3, "n_test": 20, "window": 20, "max_rul": 16, "annotations": True}


def engines(**options):
    data = EnginesDataModule(**{**SMALL, **options})
    data.setup()
    return data


def items(data, split):
    return [data.splits[split][i] for i in range(len(data.splits[split]))]


def test_the_worn_cycles_of_a_window_tell_the_target():
    for split in ("train", "val", "test"):
        results = items(engines(), split)
        assert all(16 - int(item["mask"].sum()) == item["target"] for item in results)
        assert all((item["mask"].int().diff() >= 0).all() for item in results)  # wear does not end


def test_wear_moves_the_telling_sensors_and_no_other():
    data = engines(n_train=100, stride=4)
    results = [item for item in items(data, "train") if item["target"] == 0]  # the last window of each engine
    moved = torch.stack([item["image"][:, -4:].mean(1) - item["image"][:, :4].mean(1) for item in results]).mean(0)
    assert data.worn_sensors == [1, 4]
    assert moved[1] > 1.5
    assert moved[4] < -1.5
    assert moved[[0, 2, 3, 5, 6, 7]].abs().max() < 0.5


def test_test_engines_are_stopped_before_their_end():
    results = items(engines(), "test")
    assert len(results) == 20
    assert len({float(item["target"]) for item in results}) > 5
    assert any(item["target"] == 16 for item in results)


def test_an_engine_depends_on_its_number_and_the_seed_alone():
    torch.manual_seed(1)
    before = torch.get_rng_state()
    a, b = engines(), engines(n_train=7)
    assert torch.equal(torch.get_rng_state(), before)
    assert_close(a.engines("train")[3].sensors, b.engines("train")[3].sensors, rtol=0, atol=0)
    other = engines(seed=1).engines("train")[3].sensors
    assert a.engines("val")[0].sensors.shape != other.shape or not torch.equal(a.engines("train")[3].sensors, other)


def test_batches_carry_what_metrics_of_regions_need():
    batch = next(iter(engines(batch_size=5).val_dataloader()))
    assert {name: tuple(value.shape) for name, value in batch.items()} == {
        "image": (5, 8, 20),
        "target": (5,),
        "mask": (5, 20),
        "engine": (5,),
        "cycle": (5,),
    }


def test_there_is_at_least_one_engine():
    with pytest.raises(ValueError, match="n_train >= 1"):
        EnginesDataModule(n_train=0)


# Engines that are stopped: what is known of their wear stays beside the cycles it belongs to.

SIZES = {"n_train": 3, "n_val": 2, "n_test": 200, "window": 20, "max_rul": 16, "annotations": True}


def test_stopped_engine_fills_a_window_at_any_time_of_its_wear():
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
