import base64
import hashlib
import itertools
import json
import re

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


def test_the_page_holds_all_that_the_journal_tells(rich):
    journal, page, path = rich
    assert page["run"] == journal.run
    assert journal.run in path.read_text()[:2000]  # whose page it is, for those who look at the file
    assert [event["epoch"] for event in page["films"]["panel"]["events"]] == list(range(6))
    assert page["films"]["panel"]["tracks"] == [["gradcam", "pred"], ["layercam", "pred"]]
    assert len(page["films"]["worst"]["events"]) == 6
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


def test_maps_and_scales_reach_the_page_as_they_were_kept(rich):
    journal, page, _ = rich
    record = read_journal(journal.folder)
    lines = [line for line in record.of("maps") if line["group"] == "panel" and line["method"] == "layercam"]
    strip = page["films"]["panel"]["events"][2]["strips"]["1"]
    assert base64.b64decode(strip["src"].partition(",")[2]) == lines[2]["file"].read_bytes()
    assert strip["rows"]["id"] == [str(i) for i in range(8)]
    assert strip["rows"]["hi"] == pytest.approx([row["hi"] for row in lines[2]["rows"]], rel=1e-4)
    assert page["films"]["panel"]["scales"]["1"][1] == max(row["hi"] for line in lines for row in line["rows"])
    assert "loss" not in page["films"]["panel"]["events"][5]["strips"]["1"]["rows"]  # that no row has


def test_the_page_asks_no_network_and_lets_only_its_own_script_run(rich):
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


def test_hostile_texts_are_data_and_nothing_else(tmp_path):
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


def test_a_run_without_something_has_no_part_about_it(tmp_path):
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


def test_files_that_are_gone_are_said_and_cost_only_themselves(tmp_path):
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


def test_another_run_in_the_folder_is_left_out_and_said(tmp_path):
    first = write_journal(tmp_path / "explanations", epochs=2, count=6)
    Journal(tmp_path / "explanations").write("values", epoch=0, step=1, values={"xai/m/x": 1.0})
    page, _ = made(first.folder, run=first.run)
    assert len(page["films"]["panel"]["events"]) == 2
    assert "1 other runs" in page["missing"][0]
    assert made(first.folder)[0]["films"]["panel"]["events"] == []


def test_what_a_resumed_training_superseded_is_not_shown(tmp_path):
    journal = write_journal(tmp_path / "explanations", epochs=5, count=6)
    journal.write("resume", step=2 * STEPS)
    page, _ = made(journal.folder)
    assert [event["epoch"] for event in page["films"]["panel"]["events"]] == [0, 1]
    assert [x for x, _ in page["training"][0]["lines"][0]["points"]] == [0, 1]


def test_images_of_a_test_have_a_part_of_their_own(tmp_path):
    journal = write_journal(tmp_path / "explanations", epochs=2, count=6)
    journal.save_image("test-1", torch.rand(3, 8, 8), 1)
    file, ((lo, hi),) = journal.save_maps("test", torch.rand(1, 8, 8))
    told = {"group": "test-panel", "method": "gradcam", "view": "pred", "file": file, "h": 8, "w": 8}
    journal.write("maps", epoch=2, step=9, stage="test", **told, rows=[{"id": "test-1", "lo": lo, "hi": hi}])
    page, _ = made(journal.folder)
    assert [len(page["films"][group]["events"]) for group in ("panel", "test-panel", "test-worst")] == [2, 1, 0]
    assert page["images"]["test-1"]["label"] == 1


@pytest.mark.parametrize(("total", "count"), [(200, 200), (200, 137), (5, 2), (5, 1), (5, 0), (1, 1), (0, 0)])
def test_a_film_is_thinned_evenly_from_the_first_to_the_last(total, count):
    chosen = evenly(total, count)
    assert len(set(chosen)) == count
    assert chosen[-1:] == ([total - 1] if count else [])
    if count > 1:
        assert chosen[0] == 0
    gaps = {b - a for a, b in itertools.pairwise(chosen)}
    assert max(gaps, default=0) - min(gaps, default=0) <= 1


def test_a_film_keeps_what_fits(tmp_path):
    write_journal(tmp_path, epochs=9, count=6)
    record = read_journal(tmp_path)
    film = Film(record, "panel", parts.Axis(record), EmbeddedPictures(record))
    whole = film.size()
    film.thin(whole)
    assert len(film.kept) == 9
    film.thin(0.6 * whole)
    assert film.size() <= 0.6 * whole
    assert [event[0] for event in film.kept][:: len(film.kept) - 1] == [0, 8]
    film.thin(0)
    assert film.kept == []
    assert film.part()["scales"].keys() == {0, 1}  # of the whole run, also where nothing is shown


def long_journal(folder, noise, epochs=200):
    """16 images and 2 methods in each of 200 epochs, with 4 worst ones."""
    generator = torch.Generator().manual_seed(0)
    journal = Journal(folder)
    for index in range(16):
        journal.save_image(str(index), torch.rand(3, 224, 224, generator=generator), index)
    for epoch in range(epochs):
        for group, count in (("panel", 16), ("worst", 4)):
            for method in ("gradcam", "scorecam"):
                side = 56 if noise else 7
                maps = torch.rand(count, 1, side, side, generator=generator)
                maps = torch.nn.functional.interpolate(maps, (56, 56), mode="bilinear")[:, 0]
                file, ends = journal.save_maps(f"{group}-{method}-{epoch}", maps)
                facts = {"target": 3, "pred": 3, "label": 4, "prob": 0.1234567, "mass": 0.1234567, "entropy": 0.1234567}
                rows = [{"id": str(i), "lo": lo, "hi": hi, "loss": 1.5, **facts} for i, (lo, hi) in enumerate(ends)]
                told = {"group": group, "method": method, "view": "pred", "file": file, "h": 56, "w": 56, "rows": rows}
                journal.write("maps", epoch=epoch, step=epoch, **told)
    return journal


@pytest.mark.slow
@pytest.mark.parametrize("noise", [False, True])
def test_200_epochs_of_16_images_stay_below_30_megabytes(tmp_path, noise):
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
    assert len(page["films"]["worst"]["events"]) > 1


def test_the_scripts_are_found_where_they_are_installed(rich):
    assert all(f"// {name}" in rich[2].read_text() for name in SCRIPTS)
