"""Files in the form that NASA has them, made here: every number tells its engine, cycle and sensor."""

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.data import CMAPSSDataModule

LIVES = (12, 9, 15, 10, 8)


def value(engine, cycle, sensor):
    return 100.0 * sensor + 7 * engine + 0.5 * cycle * (sensor % 3)


def line(engine, cycle, settings=(0.0, 0.0, 100.0), sensors=None):
    numbers = sensors or [value(engine, cycle, sensor) for sensor in range(1, 22)]
    return f"{engine} {cycle} " + " ".join(f"{n:.4f}" for n in (*settings, *numbers)) + "  \n"  # NASA's lines end so


def write(folder, subset="FD001", train=LIVES, test=(6, 3), left=(40, 2), **options):
    folder.mkdir(exist_ok=True)
    for kind, lives in {"train": train, "test": test}.items():
        rows = [line(e, t, **options) for e, life in enumerate(lives, 1) for t in range(1, life + 1)]
        (folder / f"{kind}_{subset}.txt").write_text("".join(rows))
    (folder / f"RUL_{subset}.txt").write_text("".join(f"{n} \n" for n in left))
    return folder


def module(folder, **options):
    data = CMAPSSDataModule(str(folder), **{"window": 4, "n_val": 2, "max_rul": 5, "annotations": True, **options})
    data.setup()
    return data


@pytest.fixture
def files(tmp_path):
    return write(tmp_path / "CMAPSSData")


def raw(data, item, sensor):
    """A channel of a window before it was scaled, from what the files were made of."""
    first = int(item["cycle"]) - data.window + 1
    return torch.tensor([value(int(item["engine"]), max(t, 1), sensor) for t in range(first, first + data.window)])


def test_a_window_holds_the_cycles_before_its_last_and_the_target_those_that_follow(files):
    data = module(files, sensors=(4, 2))
    train = data.splits["train"]
    engines = {engine.number: len(engine.sensors) for engine in train.engines}
    assert len(train) == sum(life - 4 + 1 for life in engines.values())
    values = {
        s: torch.cat([torch.tensor([value(e, t, s) for t in range(1, n + 1)]) for e, n in engines.items()])
        for s in (4, 2)
    }
    for i in (0, 3, len(train) - 1):
        item = train[i]
        assert item["image"].dtype == item["target"].dtype == torch.float32
        assert item["target"] == min(engines[item["engine"]] - item["cycle"], 5)
        for channel, sensor in enumerate((4, 2)):
            expected = (raw(data, item, sensor) - values[sensor].mean()) / values[sensor].std(correction=0)
            assert_close(item["image"][channel], expected, rtol=0, atol=1e-4)
    assert train[len(train) - 1]["target"] == 0


def test_every_third_window_is_taken_from_the_end_on(files):
    train = module(files, stride=3).splits["train"]
    ends = [train[i]["cycle"] for i in range(len(train)) if train[i]["engine"] == train.engines[0].number]
    life = len(train.engines[0].sensors)
    assert ends == sorted(range(life, 3, -3))


def test_validation_has_engines_of_its_own_which_the_seed_chooses(files):
    numbers = {}
    for seed in range(6):
        data = module(files, seed=seed)
        train, val = ({engine.number for engine in data.splits[split].engines} for split in ("train", "val"))
        assert (len(train), len(val), train | val) == (3, 2, {1, 2, 3, 4, 5})
        numbers[seed] = val
    assert numbers[0] == {engine.number for engine in module(files, seed=0).splits["val"].engines}
    assert len(set(map(frozenset, numbers.values()))) > 1


def test_scaling_knows_the_training_engines_alone(files):
    data = module(files, sensors=(2, 8))
    chosen = {engine.number for engine in data.splits["val"].engines}
    path = files / "train_FD001.txt"
    rows = [
        row if int(row.split()[0]) not in chosen else row.replace(".", "9.") for row in path.read_text().splitlines()
    ]
    path.write_text("\n".join(rows))
    again = module(files, sensors=(2, 8))
    assert_close(again.splits["train"].series, data.splits["train"].series, rtol=0, atol=0)
    assert (again.splits["val"].series[0] - data.splits["val"].series[0]).abs().max() > 1


def test_the_range_of_the_training_engines_becomes_0_to_1(files):
    data = module(files, sensors=(2, 8), scaling="range")
    train = torch.cat(data.splits["train"].series, 1)
    assert_close(train.amin(1), torch.zeros(2), rtol=0, atol=1e-6)
    assert_close(train.amax(1), torch.ones(2), rtol=0, atol=1e-6)


def test_the_test_split_has_the_last_window_of_each_engine(files):
    test = module(files).splits["test"]
    assert [(test[i]["engine"], test[i]["cycle"]) for i in range(len(test))] == [(1, 6), (2, 3)]
    assert [float(test[i]["target"]) for i in range(2)] == [5, 2]
    whole = module(files, cap_test=False).splits["test"]
    assert [float(whole[i]["target"]) for i in range(2)] == [40, 2]


def test_what_a_short_life_lacks_is_its_first_cycle(files):
    image = module(files, sensors=(2,)).splits["test"][1]["image"][0]  # three cycles in a window of four
    assert image[0] == image[1] != image[2]


def test_a_sensor_that_never_changes_is_zero(tmp_path):
    sensors = [518.67, *range(2, 22)]
    data = module(write(tmp_path / "data", sensors=sensors), sensors=(1, 2))
    assert not data.splits["train"][0]["image"].any()


def test_conditions_are_scaled_each_by_itself(tmp_path):
    folder = write(tmp_path / "data", "FD002")
    low, high = (0.0007, 0.0003, 100.0), (35.0049, 0.8405, 100.0)
    rows = []
    for engine, life in enumerate(LIVES, 1):
        for t in range(1, life + 1):
            shift, settings = (0, low) if (engine + t) % 2 else (1000, high)
            rows.append(line(engine, t, settings, [value(engine, t, s) + shift for s in range(1, 22)]))
    (folder / "train_FD002.txt").write_text("".join(rows))
    (folder / "test_FD002.txt").write_text("".join(line(e, t, low) for e in (1, 2) for t in range(1, 7)))
    plain = torch.cat(module(folder, subset="FD002", sensors=(2,)).splits["train"].series, 1)
    data = module(folder, subset="FD002", sensors=(2,), by_condition=True)
    own = torch.cat(data.splits["train"].series, 1)
    high_ones = torch.cat([engine.settings[:, 0] > 30 for engine in data.splits["train"].engines])
    assert plain[0, high_ones].mean() > 0.9
    for rows in (high_ones, ~high_ones):
        assert_close(own[0, rows].mean(), torch.tensor(0.0), rtol=0, atol=1e-5)
        assert_close(own[0, rows].std(correction=0), torch.tensor(1.0), rtol=0, atol=1e-5)


def test_a_condition_that_training_has_not_seen_is_named(tmp_path):
    folder = write(tmp_path / "data")
    (folder / "test_FD001.txt").write_text(
        "".join(line(e, t, (42.0, 0.84, 100.0)) for e in (1, 2) for t in range(1, 7))
    )
    module(folder)
    with pytest.raises(ValueError, match=r"\[\(0\.0, 0\.0, 100\.0\)\], got \(42\.0, 0\.84, 100\.0\) in engine 1"):
        module(folder, by_condition=True)


def test_pairs_without_annotations_and_only_what_a_stage_needs(files):
    data = CMAPSSDataModule(str(files), window=4, n_val=2, batch_size=6)
    data.setup("fit")
    assert data.splits.keys() == {"train", "val"}
    series, target = next(iter(data.train_dataloader()))
    assert (series.shape, target.shape) == ((6, 14, 4), (6,))
    assert data.channel_names[:2] == ["sensor 2", "sensor 3"]


def test_missing_files_are_named_with_where_they_are(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"train_FD003\.txt, got none; download CMAPSSData\.zip from https://data"
    ):
        module(tmp_path, subset="FD003")
    write(tmp_path / "data")
    (tmp_path / "data" / "RUL_FD001.txt").unlink()
    with pytest.raises(FileNotFoundError, match=r"RUL_FD001\.txt"):
        module(tmp_path / "data")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: (f / "RUL_FD001.txt").write_text("3\n"), r"for each of the 2 engines of test_FD001\.txt, got 1"),
        (
            lambda f: (f / "train_FD001.txt").write_text("1 2 3\n"),
            r"rows of 26 numbers in .*train_FD001\.txt, got \(1, 3\)",
        ),
        (lambda f: (f / "train_FD001.txt").write_text("<html>\n"), "expected numbers between spaces in .*train_FD001"),
    ],
)
def test_files_of_another_kind_are_refused(files, change, message):
    change(files)
    with pytest.raises(ValueError, match=message):
        module(files)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"sensors": (0, 2)}, r"different sensors from 1 to 21, got \[0, 2\]"),
        ({"sensors": (2, 2)}, "different sensors"),
        ({"sensors": ()}, "different sensors"),
        ({"n_val": 5}, "n_val below 5, the number of engines, got 5"),
        ({"window": 0}, "window >= 1"),
        ({"scaling": "minmax"}, "scaling to be one of"),
    ],
)
def test_options_that_cannot_be_are_refused(files, options, message):
    with pytest.raises(ValueError, match=message):
        module(files, **options)
