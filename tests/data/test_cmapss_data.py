"""Files in the form that NASA has them, made here: every number tells its engine, cycle and sensor."""

import math
import random
import re

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.data import CMAPSSDataModule
from interpretable_training.data.cmapss import Scaling

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


def test_window_holds_the_cycles_before_the_target(files):
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


# Windows, targets and scaling beside a slow reading of the same text: lists, loops and Python's own numbers.

# The first line of NASA's train_FD001.txt, with its two blanks at the end.
FIRST = (
    "1 1 -0.0007 -0.0004 100.0 518.67 641.82 1589.70 1400.60 14.62 21.61 554.36 2388.06 9046.19 1.30 47.47 521.66 "
    "2388.02 8138.62 8.4195 0.03 392 2388 100.00 39.06 23.4190  \n"
)
# What engines of FD002 and FD004 are told to do: altitude, Mach number, throttle.
SIX = ((0, 0.0, 100), (10, 0.25, 100), (20, 0.70, 100), (25, 0.62, 60), (35, 0.84, 100), (42, 0.84, 100))
LIVES, TEST, LEFT = (31, 24, 40, 28, 35), (9, 26, 5), (120, 3, 18)
OPTIONS = {"window": 12, "stride": 3, "max_rul": 20, "n_val": 2, "sensors": (3, 11, 20)}


def random_line(random, engine, cycle, settings, shift):
    printed = [s + random.uniform(0, noise) for s, noise in zip(settings, (0.008, 0.0019, 0))]
    sensors = [50 * s + shift + 0.1 * s * cycle + random.gauss(0, 1) for s in range(1, 22)]
    return f"{engine} {cycle} " + " ".join(f"{n:.4f}" for n in (*printed, *sensors)) + "  \n"


@pytest.fixture
def six_conditions(tmp_path):
    """Three parts: one condition, six of them."""
    for subset, conditions in {"FD001": SIX[:1], "FD004": SIX}.items():
        draw = random.Random(subset)
        for kind, lives in {"train": LIVES, "test": TEST}.items():
            rows = []
            for engine, life in enumerate(lives, 1):
                for cycle in range(1, life + 1):
                    c = draw.randrange(len(conditions))
                    rows.append(random_line(draw, engine, cycle, conditions[c], 300 * c))
            (tmp_path / f"{kind}_{subset}.txt").write_text("".join(rows))
        (tmp_path / f"RUL_{subset}.txt").write_text("".join(f"{n} \n" for n in LEFT))
    return tmp_path


def read(path):
    """engine -> list of (settings, sensors), in the order of the cycles."""
    lives = {}
    for row in path.read_text().splitlines():
        numbers = [float(word) for word in row.split()]
        lives.setdefault(int(numbers[0]), {})[int(numbers[1])] = (numbers[2:5], numbers[5:])
    return {engine: [cycles[t] for t in sorted(cycles)] for engine, cycles in lives.items()}


def nearest(settings):
    return min(range(6), key=lambda c: sum(abs(a - b) for a, b in zip(settings, SIX[c])))


def moments(values, scaling):
    if scaling == "range":
        return min(values), max(values) - min(values)
    mean = sum(values) / len(values)
    return mean, math.sqrt(sum((v - mean) ** 2 for v in values) / len(values))


def slow(folder, subset, split, chosen, scaling, by_condition, cap_test=True):
    """(engine, cycle) -> series and target, of the split whose engines are `chosen`."""
    train = read(folder / f"train_{subset}.txt")
    key = nearest if by_condition else lambda settings: 0
    known = [row for engine in chosen["train"] for row in train[engine]]
    scale = {
        (c, s): moments([sensors[s - 1] for settings, sensors in known if key(settings) == c], scaling)
        for c in {key(settings) for settings, _ in known}
        for s in OPTIONS["sensors"]
    }
    lives = read(folder / f"test_{subset}.txt") if split == "test" else {e: train[e] for e in chosen[split]}
    results = {}
    for engine, life in lives.items():
        after = dict(enumerate(LEFT, 1))[engine] if split == "test" else 0
        ends = [len(life)] if split == "test" else range(len(life), OPTIONS["window"] - 1, -OPTIONS["stride"])
        for end in ends:
            rows = [life[max(t, 0)] for t in range(end - OPTIONS["window"], end)]
            x = []
            for s in OPTIONS["sensors"]:
                parts = [(sensors[s - 1], *scale[key(settings), s]) for settings, sensors in rows]
                x.append([(raw - start) / unit for raw, start, unit in parts])
            target = len(life) - end + after
            results[engine, end] = x, target if split == "test" and not cap_test else min(target, OPTIONS["max_rul"])
    return results


@pytest.mark.parametrize("scaling", ["standard", "range"])
@pytest.mark.parametrize(("subset", "by_condition"), [("FD001", False), ("FD004", False), ("FD004", True)])
def test_every_window_and_target_is_that_of_a_slow_reading(six_conditions, subset, by_condition, scaling):
    data = CMAPSSDataModule(
        str(six_conditions),
        subset,
        scaling=scaling,
        by_condition=by_condition,
        cap_test=False,
        annotations=True,
        **OPTIONS,
    )
    data.setup()
    chosen = {split: [engine.number for engine in data.splits[split].engines] for split in ("train", "val")}
    assert sorted(chosen["train"] + chosen["val"]) == [1, 2, 3, 4, 5]
    for split, windows in data.splits.items():
        expected = slow(six_conditions, subset, split, chosen, scaling, by_condition, cap_test=False)
        items = [windows[i] for i in range(len(windows))]
        assert {(item["engine"], item["cycle"]) for item in items} == expected.keys()
        assert len(items) == len(expected)
        for item in items:
            x, target = expected[item["engine"], item["cycle"]]
            assert_close(item["image"], torch.tensor(x), rtol=1e-4, atol=1e-4)
            assert float(item["target"]) == target


def test_the_six_conditions_are_told_apart_through_their_noise(six_conditions):
    data = CMAPSSDataModule(str(six_conditions), "FD004", **OPTIONS)
    data.setup("fit")
    engines = data.splits["train"].engines
    scaling = Scaling(engines, [2], by_condition=True)
    assert len(scaling.moments) == 6
    for engine in engines:
        keys = [tuple(key) for key in scaling.condition(engine).tolist()]
        assert keys == [tuple(map(float, SIX[nearest(settings)])) for settings in engine.settings.tolist()]


def test_test_engines_change_nothing_that_training_sees(six_conditions):
    before = CMAPSSDataModule(str(six_conditions), **OPTIONS)
    before.setup()
    (six_conditions / "test_FD001.txt").write_text((six_conditions / "test_FD001.txt").read_text().replace(".", "9."))
    after = CMAPSSDataModule(str(six_conditions), **OPTIONS)
    after.setup()
    for split in ("train", "val"):
        assert_close(after.splits[split].series, before.splits[split].series, rtol=0, atol=0)
    assert after.splits["test"].series[0].abs().max() > 10


def test_a_line_of_nasa_is_read_to_the_last_digit(tmp_path):
    for kind in ("train", "test"):
        (tmp_path / f"{kind}_FD001.txt").write_text(FIRST + FIRST.replace("1 1 ", "2 1 ", 1))
    (tmp_path / "RUL_FD001.txt").write_text("112 \n98 \n")
    engine = CMAPSSDataModule(str(tmp_path), n_val=1).engines("test")[0]
    assert engine.settings.tolist() == [[-0.0007, -0.0004, 100.0]]
    assert engine.sensors.tolist() == [[float(word) for word in FIRST.split()[5:]]]
    assert engine.left == 112


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.replace("  \n", "\n"),
        lambda text: text.rstrip(),
        lambda text: text + "\n\n",
        lambda text: text.replace(" ", "\t"),
        lambda text: "".join(sorted(text.splitlines(True), key=lambda row: row[::-1])),
    ],
    ids=["Windows", "no blanks", "no last line end", "empty lines", "tabs", "another order"],
)
def test_how_lines_are_separated_and_ordered_is_all_the_same(six_conditions, change):
    plain = CMAPSSDataModule(str(six_conditions), **OPTIONS)
    plain.setup()
    for kind in ("train", "test"):
        path = six_conditions / f"{kind}_FD001.txt"
        path.write_bytes(change(path.read_text()).encode())
    again = CMAPSSDataModule(str(six_conditions), **OPTIONS)
    again.setup()
    for split in plain.splits:
        assert_close(again.splits[split].series, plain.splits[split].series, rtol=0, atol=0)
        assert again.splits[split].index == plain.splits[split].index


def numbers_of(engine, cycle):
    return rf"^{engine} {cycle} .*\n"


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "train",
            lambda t: re.sub(numbers_of(2, 7), "", t, flags=re.M),
            "1, 2, .* of engine 2, .* got 8 in the place of cycle 7;",
        ),
        ("train", lambda t: t + t, "engine 1, .* got 1 in the place of cycle 2"),
        ("test", lambda t: re.sub(numbers_of(2, 1), "", t, flags=re.M), "engine 2, .* got 2 in the place of cycle 1"),
        ("train", lambda t: t[: t.rindex("\n", 0, -1) + 40], "numbers between spaces"),
        ("train", lambda t: t.replace(t.split()[40], "nan"), "finite .* got nan in row 2, column 15"),
        ("test", lambda t: t.replace(t.split()[40], "inf"), "finite"),
        ("train", lambda t: "", "rows of 26 numbers"),
        ("test", lambda t: t.replace(" ", ","), "numbers between spaces"),
        ("RUL", lambda t: "12 \n-3 \n5 \n", "from 0 on, got -3 in row 2, column 1"),
        ("RUL", lambda t: "nan \n3 \n5 \n", "finite"),
    ],
)
def test_files_that_lack_something_are_refused_and_named(six_conditions, kind, change, message):
    path = six_conditions / f"{kind}_FD001.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        CMAPSSDataModule(str(six_conditions), **OPTIONS).setup()
    assert f"{kind}_FD001.txt" in str(caught.value)


def test_a_part_that_does_not_exist_is_refused_at_once():
    with pytest.raises(ValueError, match=r"subset to be one of .*FD001.*, got 'FD005'"):
        CMAPSSDataModule(subset="FD005")


def test_batches_are_the_same_with_workers_and_the_generators_stay(six_conditions):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    orders = []
    for workers in (0, 2, 0):
        data = CMAPSSDataModule(str(six_conditions), num_workers=workers, batch_size=4, annotations=True, **OPTIONS)
        data.setup("fit")
        assert torch.equal(torch.get_rng_state(), before)
        loader = data.train_dataloader()
        epochs = [[(b["engine"].tolist(), b["cycle"].tolist()) for b in loader] for _ in range(2)]
        assert epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] == orders[2]
