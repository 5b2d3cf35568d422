"""Windows, targets and scaling beside a slow reading of the same text: lists, loops and Python's own numbers."""

import math
import random
import re

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.data import CMAPSSDataModule
from interpretable_training.data.cmapss import Scaling

# The first line of NASA's train_FD001.txt, with its two blanks at the end.
FIRST = (
    "1 1 -0.0007 -0.0004 100.0 518.67 641.82 1589.70 1400.60 14.62 21.61 554.36 2388.06 9046.19 1.30 47.47 521.66 "
    "2388.02 8138.62 8.4195 0.03 392 2388 100.00 39.06 23.4190  \n"
)
# What engines of FD002 and FD004 are told to do: altitude, Mach number, throttle.
SIX = ((0, 0.0, 100), (10, 0.25, 100), (20, 0.70, 100), (25, 0.62, 60), (35, 0.84, 100), (42, 0.84, 100))
LIVES, TEST, LEFT = (31, 24, 40, 28, 35), (9, 26, 5), (120, 3, 18)
OPTIONS = {"window": 12, "stride": 3, "max_rul": 20, "n_val": 2, "sensors": (3, 11, 20)}


def line(random, engine, cycle, settings, shift):
    told = [s + random.uniform(0, noise) for s, noise in zip(settings, (0.008, 0.0019, 0))]
    sensors = [50 * s + shift + 0.1 * s * cycle + random.gauss(0, 1) for s in range(1, 22)]
    return f"{engine} {cycle} " + " ".join(f"{n:.4f}" for n in (*told, *sensors)) + "  \n"


@pytest.fixture
def files(tmp_path):
    """Three parts: one condition, six of them."""
    for subset, conditions in {"FD001": SIX[:1], "FD004": SIX}.items():
        draw = random.Random(subset)
        for kind, lives in {"train": LIVES, "test": TEST}.items():
            rows = []
            for engine, life in enumerate(lives, 1):
                for cycle in range(1, life + 1):
                    c = draw.randrange(len(conditions))
                    rows.append(line(draw, engine, cycle, conditions[c], 300 * c))
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
    found = {}
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
            found[engine, end] = x, target if split == "test" and not cap_test else min(target, OPTIONS["max_rul"])
    return found


@pytest.mark.parametrize("scaling", ["standard", "range"])
@pytest.mark.parametrize(("subset", "by_condition"), [("FD001", False), ("FD004", False), ("FD004", True)])
def test_every_window_and_target_is_that_of_a_slow_reading(files, subset, by_condition, scaling):
    data = CMAPSSDataModule(
        str(files), subset, scaling=scaling, by_condition=by_condition, cap_test=False, annotations=True, **OPTIONS
    )
    data.setup()
    chosen = {split: [engine.number for engine in data.splits[split].engines] for split in ("train", "val")}
    assert sorted(chosen["train"] + chosen["val"]) == [1, 2, 3, 4, 5]
    for split, windows in data.splits.items():
        expected = slow(files, subset, split, chosen, scaling, by_condition, cap_test=False)
        items = [windows[i] for i in range(len(windows))]
        assert {(item["engine"], item["cycle"]) for item in items} == expected.keys()
        assert len(items) == len(expected)
        for item in items:
            x, target = expected[item["engine"], item["cycle"]]
            assert_close(item["image"], torch.tensor(x), rtol=1e-4, atol=1e-4)
            assert float(item["target"]) == target


def test_the_six_conditions_are_told_apart_through_their_noise(files):
    data = CMAPSSDataModule(str(files), "FD004", **OPTIONS)
    data.setup("fit")
    engines = data.splits["train"].engines
    scaling = Scaling(engines, [2], by_condition=True)
    assert len(scaling.moments) == 6
    for engine in engines:
        keys = [tuple(key) for key in scaling.condition(engine).tolist()]
        assert keys == [tuple(map(float, SIX[nearest(settings)])) for settings in engine.settings.tolist()]


def test_test_engines_change_nothing_that_training_sees(files):
    before = CMAPSSDataModule(str(files), **OPTIONS)
    before.setup()
    (files / "test_FD001.txt").write_text((files / "test_FD001.txt").read_text().replace(".", "9."))
    after = CMAPSSDataModule(str(files), **OPTIONS)
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
def test_how_lines_are_separated_and_ordered_is_all_the_same(files, change):
    plain = CMAPSSDataModule(str(files), **OPTIONS)
    plain.setup()
    for kind in ("train", "test"):
        path = files / f"{kind}_FD001.txt"
        path.write_bytes(change(path.read_text()).encode())
    again = CMAPSSDataModule(str(files), **OPTIONS)
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
def test_files_that_lack_something_are_refused_and_named(files, kind, change, message):
    path = files / f"{kind}_FD001.txt"
    path.write_text(change(path.read_text()))
    with pytest.raises(ValueError, match=message) as caught:
        CMAPSSDataModule(str(files), **OPTIONS).setup()
    assert f"{kind}_FD001.txt" in str(caught.value)


def test_a_part_that_does_not_exist_is_refused_at_once():
    with pytest.raises(ValueError, match=r"subset to be one of .*FD001.*, got 'FD005'"):
        CMAPSSDataModule(subset="FD005")


def test_batches_are_the_same_with_workers_and_the_generators_stay(files):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    orders = []
    for workers in (0, 2, 0):
        data = CMAPSSDataModule(str(files), num_workers=workers, batch_size=4, annotations=True, **OPTIONS)
        data.setup("fit")
        assert torch.equal(torch.get_rng_state(), before)
        loader = data.train_dataloader()
        epochs = [[(b["engine"].tolist(), b["cycle"].tolist()) for b in loader] for _ in range(2)]
        assert epochs[0] != epochs[1]
        orders.append(epochs)
    assert orders[0] == orders[1] == orders[2]
