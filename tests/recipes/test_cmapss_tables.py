"""What the recipe of C-MAPSS writes, beside the same by hand: masks, drops and the windows of the picture."""

import importlib

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM, explain
from interpretable_training.recipes import cmapss
from interpretable_training.recipes.cmapss import draw_engine, life_tables, sensors, telling

MODULE = importlib.import_module("interpretable_training.recipes.cmapss")


@pytest.fixture
def recipe(tmp_path):
    recipe = cmapss(n_train=6, max_epochs=1, output=str(tmp_path))
    recipe.data.counts |= {"val": 3, "test": 3}
    recipe.data.setup("fit")
    generator = torch.Generator().manual_seed(0)  # a network that says something, as if it had learned
    for name, weight in recipe.module.network.named_parameters():
        if "lstm" in name or "head" in name:
            weight.data += 0.3 * torch.randn(weight.shape, generator=generator)
    recipe.module.network.head.bias.data.fill_(0.5)
    return recipe


def drops(score, series, S):
    """Average drop in percent, window by window: the series is faded by its map, which is brought into 0 to 1."""
    found = []
    for x, s in zip(series, S):
        low, high = float(s.min()), float(s.max())
        m = (s - low) / (high - low) if high > low else torch.zeros_like(s)
        before, after = score(x[None]), score((x * m)[None])
        if before > 0:
            found.append(100 * max(0.0, before - after) / before)
    return sum(found) / len(found)


def test_the_tables_are_of_the_estimate_and_of_what_is_missing_to_the_largest(recipe):
    """Both explain with the network's own direction: of the wear, what lowers the estimate."""
    tables = life_tables(recipe, max_windows=1000, n=2)
    module, windows = recipe.module.eval(), recipe.data.splits["val"]
    series = torch.stack([windows[i]["image"] for i in telling(recipe.data)])
    scores = {"remaining life": lambda x: float(module(x)), "wear": lambda x: 48 - float(module(x))}
    with torch.no_grad():
        for name, target in (("remaining life", None), ("wear", 0)):
            S = GradCAM()(module, series, target)
            cell = tables[name]["gradcam", "average_drop"]
            assert cell.mean == pytest.approx(drops(scores[name], series, S), rel=1e-3)
    assert tables["wear"]["gradcam", "average_drop"].mean != tables["remaining life"]["gradcam", "average_drop"].mean


def test_the_picture_shows_one_engine_from_early_to_late_and_what_lowers_its_estimate(recipe, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(MODULE, "draw_series", lambda *arguments: seen.append(arguments))
    draw_engine(recipe, tmp_path / "a.png", n=2)
    series, maps, _, names, titles, worn, worn_name, order = seen[0]
    left = [int(title.split()[0]) for title in titles]
    assert left == sorted(left, reverse=True)
    assert left == [38, 20, 4] or all(abs(a - b) <= 1 for a, b in zip(left, (38, 19, 5)))  # 0.8, 0.4 and 0.1 of 48
    assert [48 - n for n in left] == worn.sum(1).tolist()
    assert worn_name == "worn"
    assert_close(maps["gradcam"], explain({"g": GradCAM()}, recipe.module, series, target=0)["g"])
    estimates = [int(title.split()[-1]) for title in titles]
    assert estimates == [round(float(e)) for e in recipe.module.eval()(series)]
    share = sensors(recipe)
    shown = [share[names[c]] for c in order]
    assert shown == sorted(share.values(), reverse=True)[:6]


def test_a_part_of_cmapss_without_its_folder_is_no_reason_to_draw_engines():
    with pytest.raises(ValueError, match="the folder with the files of C-MAPSS for FD002, got None; pass folder"):
        cmapss(subset="FD002")
