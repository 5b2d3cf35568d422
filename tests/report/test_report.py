"""Data of the report page."""

import base64
import hashlib
import itertools
import json
import re
from pathlib import Path

import pytest
import torch
from support.hostile_texts import HOSTILE
from support.synthetic_journal import STEPS, write_journal

from interpretable_training.report import parts
from interpretable_training.report.film import EmbeddedPictures, Film, evenly
from interpretable_training.report.journal import Journal, read_journal
from interpretable_training.report.page import SCRIPTS, write_report


def data_of(path):
    """What the page's script reads."""
    text = path.read_text()
    return json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])


def made(folder, **options):
    path = write_report(folder, folder.parent / "report.html", **options)
    return data_of(path), path


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich") / "explanations"
    journal = write_journal(folder, epochs=6, count=8)
    return (journal, *made(folder))


def test_page_has_all_data_of_the_journal(rich):
    journal, page, path = rich
    assert page["run"] == journal.run
    assert journal.run in path.read_text()[:2000]  # whose page it is, for those who look at the file
    assert [event["epoch"] for event in page["films"]["panel"]["events"]] == list(range(6))
    assert page["films"]["panel"]["tracks"] == [["gradcam", "pred"], ["layercam", "pred"]]
    assert len(page["films"]["hardest"]["events"]) == 6
    assert set(page["images"]) == {str(i) for i in range(8)}
    assert page["metrics"][0]["title"] == "energy_on_cue"  # an alarm's comes first
    assert {chart["title"] for chart in page["training"]} == {"loss", "accuracy", "lr-AdamW"}
    assert page["metrics"][-1]["facts"]["direction"] == "higher is better"
    assert page["alarms"][0]["chart"]["thresholds"] == [0.1]
    assert page["alarms"][0]["chart"]["lines"][1]["label"] == "layercam"
    assert page["failures"][0][2:] == [2, 3]
    assert page["dropped"] == [["ExplanationLogger", "8 of 16 images", 1, 5]]
    assert page["final"][0]["rows"][0] == ["gradcam", 21.4, 78.2]
    assert page["randomization"][0][:3] == ["gradcam", "spearman 0.12, ssim 0.3", "passed"]
    assert page["settings"]["InterpretabilityMetrics"]["max_images"] == 64
    facts = dict(page["facts"])
    assert (facts["epochs"], facts["panel images"], facts["failures"]) == ("6", "8", "2")


def test_page_has_maps_and_scales_unchanged(rich):
    journal, page, _ = rich
    record = read_journal(journal.folder)
    lines = [line for line in record.of("maps") if line["group"] == "panel" and line["method"] == "layercam"]
    strip = page["films"]["panel"]["events"][2]["strips"]["1"]
    assert base64.b64decode(strip["src"].partition(",")[2]) == lines[2]["file"].read_bytes()
    assert strip["rows"]["id"] == [str(i) for i in range(8)]
    assert strip["rows"]["hi"] == pytest.approx([row["hi"] for row in lines[2]["rows"]], rel=1e-4)
    assert page["films"]["panel"]["scales"]["1"][1] == max(row["hi"] for line in lines for row in line["rows"])
    assert "loss" not in page["films"]["panel"]["events"][5]["strips"]["1"]["rows"]  # that no row has


def test_page_policy_forbids_network_and_other_scripts(rich):
    text = rich[2].read_text()
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', text)[1]
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'"
    assert rules["img-src"] == "data:"
    for tag, rule in (("script", "script-src"), ("style", "style-src")):
        body = re.search(rf"<{tag}>(.*?)</{tag}>", text, re.DOTALL)[1]
        assert rules[rule] == f"'sha256-{base64.b64encode(hashlib.sha256(body.encode()).digest()).decode()}'"
    assert set(re.findall(r"https?://[^\"'\s]*", text)) == {"http://www.w3.org/2000/svg"}  # a name, not a place
    assert not re.search(r"<(link|script|img)[^>]*(src|href)=\"(?!data:)", text)


def test_hostile_texts_stay_data(tmp_path):
    methods = {HOSTILE[0]: 0.0, HOSTILE[1]: 0.3}
    write_journal(tmp_path / "explanations", epochs=2, count=6, class_names=HOSTILE, methods=methods)
    page, path = made(tmp_path / "explanations")
    assert page["classes"] == [*HOSTILE[:-1], HOSTILE[-1].replace("\ud800", "?")]  # half a character is none
    assert [track[0] for track in page["films"]["panel"]["tracks"]] == HOSTILE[:2]
    text = path.read_text()
    assert text.count("<script") == 2
    assert text.count("</script>") == 2
    assert "<img" not in text
    assert "<b>" not in text
    assert [line["label"] for line in page["metrics"][0]["lines"]] == HOSTILE[:2]  # slashes in names of methods, too


def test_page_omits_parts_without_data(tmp_path):
    journal = Journal(tmp_path / "metrics" / "explanations")
    journal.write("values", epoch=0, step=5, values={"xai/gradcam/insertion": 50.0, "xai/gradcam/nan": float("nan")})
    page, _ = made(journal.folder)
    assert [chart["title"] for chart in page["metrics"]] == ["insertion"]
    assert page["films"]["panel"]["events"] == page["alarms"] == page["training"] == page["failures"] == []
    assert page["cost"] == {}
    assert page["images"] == {}

    journal = Journal(tmp_path / "panel" / "explanations")
    file, ((lo, hi),) = journal.save_maps("m", torch.rand(1, 8, 8))
    row = {"id": "1", "target": 0, "lo": lo, "hi": hi}
    facts = {"group": "panel", "method": "m", "view": "pred", "file": file, "h": 8, "w": 8, "rows": [row]}
    journal.write("maps", epoch=None, step=None, **facts)  # of an image that was never kept, at no time
    page, _ = made(journal.folder)
    assert page["images"] == {"1": {"src": None, "label": None}}
    assert page["films"]["panel"]["events"][0]["strips"]["0"]["rows"] == {
        "id": ["1"],
        "lo": [pytest.approx(lo, rel=1e-4)],
    } | {
        "hi": [pytest.approx(hi, rel=1e-4)],
        "target": [0],
    }

    journal = Journal(tmp_path / "nothing" / "explanations")
    journal.write("run")
    page, _ = made(journal.folder)
    assert page["model"] == "A run"


def test_missing_files_are_reported_and_the_rest_is_shown(tmp_path):
    journal = write_journal(tmp_path / "explanations", epochs=3, count=6)
    (journal.folder / "images" / "2.png").unlink()
    (journal.folder / "images" / "3.png").write_bytes(b"no picture")
    next((journal.folder / "maps").glob("panel-*")).unlink()
    with (journal.folder / "journal.jsonl").open("a") as file:
        file.write('{"kind": "val')
    page, _ = made(journal.folder)
    assert [name for name, image in page["images"].items() if image["src"] is None] == ["2", "3"]
    assert page["films"]["panel"]["lost"] == 1
    assert sum(len(event["strips"]) for event in page["films"]["panel"]["events"]) == 5
    assert "1 broken lines" in page["missing"][0]


def test_other_run_in_the_folder_is_left_out_and_reported(tmp_path):
    first = write_journal(tmp_path / "explanations", epochs=2, count=6)
    Journal(tmp_path / "explanations").write("values", epoch=0, step=1, values={"xai/m/x": 1.0})
    page, _ = made(first.folder, run=first.run)
    assert len(page["films"]["panel"]["events"]) == 2
    assert "1 other runs" in page["missing"][0]
    assert made(first.folder)[0]["films"]["panel"]["events"] == []


def test_page_omits_lines_replaced_by_a_resumed_training(tmp_path):
    journal = write_journal(tmp_path / "explanations", epochs=5, count=6)
    journal.write("resume", step=2 * STEPS)
    page, _ = made(journal.folder)
    assert [event["epoch"] for event in page["films"]["panel"]["events"]] == [0, 1]
    assert [x for x, _ in page["training"][0]["lines"][0]["points"]] == [0, 1]


def test_test_images_have_their_own_part(tmp_path):
    journal = write_journal(tmp_path / "explanations", epochs=2, count=6)
    journal.save_image("test-1", torch.rand(3, 8, 8), 1)
    file, ((lo, hi),) = journal.save_maps("test", torch.rand(1, 8, 8))
    printed = {"group": "test-panel", "method": "gradcam", "view": "pred", "file": file, "h": 8, "w": 8}
    journal.write("maps", epoch=2, step=9, stage="test", **printed, rows=[{"id": "test-1", "lo": lo, "hi": hi}])
    page, _ = made(journal.folder)
    assert [len(page["films"][group]["events"]) for group in ("panel", "test-panel", "test-hardest")] == [2, 1, 0]
    assert page["images"]["test-1"]["label"] == 1


@pytest.mark.parametrize(("total", "count"), [(200, 200), (200, 137), (5, 2), (5, 1), (5, 0), (1, 1), (0, 0)])
def test_film_is_thinned_evenly_from_first_to_last(total, count):
    chosen = evenly(total, count)
    assert len(set(chosen)) == count
    assert chosen[-1:] == ([total - 1] if count else [])
    if count > 1:
        assert chosen[0] == 0
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_film_keeps_the_steps_that_fit(tmp_path):
    write_journal(tmp_path, epochs=9, count=6)
    record = read_journal(tmp_path)
    film = Film(record, "panel", parts.Axis(record), EmbeddedPictures(record))
    whole = film.size()
    film.thin(whole)
    assert len(film.shown) == 9
    film.thin(0.6 * whole)
    assert film.size() <= 0.6 * whole
    assert [event[0] for event in film.shown][:: len(film.shown) - 1] == [0, 8]
    film.thin(0)
    assert film.shown == []
    assert film.part()["scales"].keys() == {0, 1}  # of the whole run, also where nothing is shown


def long_journal(folder, noise, epochs=200):
    """16 images and 2 methods in each of 200 epochs, with 4 hardest ones."""
    generator = torch.Generator().manual_seed(0)
    journal = Journal(folder)
    for index in range(16):
        journal.save_image(str(index), torch.rand(3, 224, 224, generator=generator), index)
    for epoch in range(epochs):
        for group, count in (("panel", 16), ("hardest", 4)):
            for method in ("gradcam", "scorecam"):
                side = 56 if noise else 7
                maps = torch.rand(count, 1, side, side, generator=generator)
                maps = torch.nn.functional.interpolate(maps, (56, 56), mode="bilinear")[:, 0]
                file, ends = journal.save_maps(f"{group}-{method}-{epoch}", maps)
                facts = {"target": 3, "pred": 3, "label": 4, "prob": 0.1234567, "mass": 0.1234567, "entropy": 0.1234567}
                rows = [{"id": str(i), "lo": lo, "hi": hi, "loss": 1.5, **facts} for i, (lo, hi) in enumerate(ends)]
                printed = {
                    "group": group,
                    "method": method,
                    "view": "pred",
                    "file": file,
                    "h": 56,
                    "w": 56,
                    "rows": rows,
                }
                journal.write("maps", epoch=epoch, step=epoch, **printed)
    return journal


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
def test_report_of_200_epochs_stays_below_30_megabytes(tmp_path, noise):
    journal = long_journal(tmp_path / "explanations", noise)
    page, path = made(journal.folder)
    assert path.stat().st_size < 30e6
    epochs = [event["epoch"] for event in page["films"]["panel"]["events"]]
    assert page["films"]["panel"]["total"] == 200
    assert (epochs[0], epochs[-1]) == (0, 199)
    assert len(epochs) == 200 if not noise else 100 < len(epochs) < 200
    page, path = made(journal.folder, max_megabytes=5)
    assert 4e6 < path.stat().st_size < 5e6
    assert len(page["films"]["panel"]["events"]) > 1
    assert len(page["films"]["hardest"]["events"]) > 1


def test_page_contains_the_installed_scripts(rich):
    assert all(f"// {name}" in rich[2].read_text() for name in SCRIPTS)


def test_axis_is_steps_for_several_explanations_per_epoch(tmp_path):
    journal = Journal(tmp_path)
    for step in (5, 10, 15):
        journal.write("values", epoch=step // 10, step=step, stage="fit", values={"xai/m/x": float(step)})
        journal.write("values", epoch=step // 10, step=step, stage="test", values={"test/xai/m/x": 7.0})
    record = read_journal(tmp_path)
    axis = parts.Axis(record)
    assert axis.name == "step"
    (chart,) = parts.metric_charts(record, axis)
    assert chart["lines"] == [{"label": "m", "points": [(5, 5), (10, 10), (15, 15)]}]  # without those of the test
    assert parts.final_tables(record) == [{"title": "test", "head": ["", "x"], "rows": [["m", 7.0]]}]


def test_alarm_chart_has_all_methods_and_the_threshold(tmp_path):
    journal = Journal(tmp_path)
    for epoch, (a, b) in enumerate([(0.1, 0.2), (0.9, 0.3), (0.95, 0.4)]):
        when = {"epoch": epoch, "step": epoch, "stage": "fit"}
        values = {"xai/m/alarm/alike": a, "xai/n/alarm/alike": b, "xai/m/alarm/border": 0.1, "xai/m/insertion": 1.0}
        journal.write("values", **when, callback="ExplanationAlarms", values=values)
        if a > 0.8:
            journal.write("alarm", **when, name="xai/m/alarm/alike", value=a, threshold=0.8, message=f"m: {a}")
    record = read_journal(tmp_path)
    (alarm,) = parts.alarms(record, parts.Axis(record))
    assert alarm["raised"] == [{"message": "m: 0.95", "count": 2, "first": 1}]
    lines = [
        {"label": "m", "points": [(0, 0.1), (1, 0.9), (2, 0.95)]},
        {"label": "n", "points": [(0, 0.2), (1, 0.3), (2, 0.4)]},
    ]
    assert alarm["chart"] == {"title": "alike", "lines": lines, "thresholds": [0.8]}
    titles = [chart["title"] for chart in parts.metric_charts(record, parts.Axis(record))]
    assert titles == ["alarm/border", "insertion"]  # the one that was raised is shown once


def test_drift_is_averaged_and_costs_are_summed(tmp_path):
    journal = Journal(tmp_path)
    for epoch, value in enumerate((0.5, 1.0)):
        rows = [
            {"id": i, "previous": {"similarity": value - 0.1 * i} if epoch else None, "first": {}} for i in range(2)
        ]
        journal.write("drift", epoch=epoch, step=epoch, method="m", rows=rows)
        for callback, seconds in (("A", 1.0), ("B", 3.0)):
            values = {"xai/seconds": seconds, "xai/share_of_epoch": seconds / 40, "xai/megabytes": 0.25}
            journal.write("values", epoch=epoch, step=epoch, callback=callback, values=values)
    record = read_journal(tmp_path)
    charts, own = parts.drift(record, parts.Axis(record))
    title = "similarity to the previous"
    assert charts == [{"title": title, "facts": None, "lines": [{"label": "m", "points": [(1, 0.95)]}]}]
    assert own == {"m": {"0": {title: [(1, 1.0)]}, "1": {title: [(1, 0.9)]}}}
    cost = parts.costs(record, parts.Axis(record))
    assert cost["rows"] == [["A", 2.0, "2.5%", 0.5], ["B", 6.0, "7.5%", 0.5]]
    assert (cost["seconds"], cost["share"]) == (8.0, "10.0%")


def test_metric_chart_counts_images_without_value(tmp_path):
    journal = Journal(tmp_path)
    for epoch, left in enumerate((4, 2)):
        values = {"xai/m/energy": 3.0, "xai/m/energy/invalid": left, "xai/m/insertion": 1.0, "xai/m/on_cue": 2.0}
        journal.write("values", epoch=epoch, step=epoch, values=values)
    record = read_journal(tmp_path)
    charts = parts.metric_charts(record, parts.Axis(record))
    assert [chart["title"] for chart in charts] == ["on_cue", "energy", "insertion"]  # first those that say where
    assert [chart["undefined"] for chart in charts] == [None, 4, None]


def test_training_chart_has_one_line_per_split(tmp_path):
    journal = Journal(tmp_path)
    values = {"val/loss": 1.0, "train/loss": 2.0, "train/loss_step": 9.0, "train/loss_epoch": 2.0, "lr": 0.1}
    journal.write("training", epoch=0, step=0, values={**values, "val_acc": 0.5})
    record = read_journal(tmp_path)
    charts = parts.training_charts(record, parts.Axis(record))
    results = {chart["title"]: [(line["label"], line["points"][0][1]) for line in chart["lines"]] for chart in charts}
    assert results == {"loss": [("train", 2.0), ("val", 1.0)], "lr": [("lr", 0.1)], "acc": [("val", 0.5)]}


def test_split_keys_accepts_method_names_with_slashes(tmp_path):
    journal = Journal(tmp_path)
    journal.write("drift", epoch=0, step=0, method="a/b", rows=[])
    record = read_journal(tmp_path)
    keys = ["xai/a/b/insertion", "test/xai/c/insertion", "xai/seconds", "loss", "xai/c/alarm/alike"]
    results = {keys[0]: ("a/b", "insertion"), keys[1]: ("c", "insertion"), keys[4]: ("c", "alarm/alike")}
    assert parts.split_keys(record, keys) == results


def test_sample_report_of_the_pages_opens_without_a_run():
    page = Path(__file__).parents[2] / "docs" / "sample_report.html"
    text = page.read_text()
    assert page.stat().st_size < 1.5e6
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert data["model"]
    assert len(data["films"]["panel"]["events"]) >= 2
    assert all(image["src"].startswith("data:image/") for image in data["images"].values())
