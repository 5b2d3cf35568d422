"""Two runs compared: what moved, what got worse, and what cannot be compared."""

import json

import pytest
import torch

from interpretable_training.cli import main
from interpretable_training.evaluation.bootstrap import BootstrapDraws
from interpretable_training.report.class_tables import class_table, confusion_parts
from interpretable_training.report.comparison import compare_runs
from interpretable_training.report.comparison_page import comparison_data
from interpretable_training.report.journal import Journal, read_journal
from interpretable_training.report.paired_rows import paired

PASSPORT = {"metric": "energy_on_object", "facts": {"direction": "higher is better"}}


def write_run(folder, columns, preds, energy, epochs=1, pictures=None, loss=0.5):
    """A run with a bright column per image, and predictions of images whose class is their number modulo two."""
    journal = Journal(folder / "explanations")
    journal.write("run", model="Classifier", classes=["cat", "dog"])
    journal.write("passport", **PASSPORT)
    for index in range(len(columns)):
        shade = (pictures or range(len(columns)))[index]
        journal.save_image(str(index), torch.full((3, 8, 8), shade / 10), index % 2)
    for epoch in range(epochs):
        S = torch.zeros(len(columns), 4, 4)
        for index, column in enumerate(columns):
            S[index, :, column] = 1.0
        file, ends = journal.save_maps(f"maps{epoch}", S)
        rows = [
            {
                "id": str(i),
                "lo": lo,
                "hi": hi,
                "label": i % 2,
                "pred": preds[i],
                "prob": 0.5 + 0.1 * i,
                "loss": loss + i,
            }
            for i, (lo, hi) in enumerate(ends)
        ]
        when = {"epoch": epoch, "step": 10 * (epoch + 1)}
        facts = {"group": "panel", "method": "gradcam", "view": "label", "file": file, "h": 4, "w": 4, "rows": rows}
        journal.write("maps", **when, **facts)
        journal.write("values", **when, values={"xai/gradcam/energy_on_object": energy + epoch})
        journal.write("training", **when, values={"val/accuracy": 0.9, "val/loss": 0.3})
    return folder


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    folder = tmp_path_factory.mktemp("two")
    before = write_run(folder / "a", [0, 1, 2, 3], [0, 1, 0, 1], 0.7)
    after = write_run(folder / "b", [0, 1, 3, 3], [0, 0, 0, 0], 0.6, loss=0.75)
    return before, after


def test_images_are_ranked_by_the_share_that_moved(two):
    images = compare_runs(*two).images
    assert [(row["id"], row["moved"]) for row in images] == [("2", 1.0), ("0", 0.0), ("1", 0.0), ("3", 0.0)]
    assert images[0] | {"label": 0, "pred_before": 0, "pred_after": 0} == images[0]


def test_numbers_of_the_same_images_are_paired(two):
    pairs = {row["name"]: row for row in compare_runs(*two).pairs}
    assert (pairs["gradcam/moved"]["after"], pairs["gradcam/moved"]["p"]) == (0.25, None)
    assert (pairs["loss"]["difference"], pairs["loss"]["low"], pairs["loss"]["high"]) == (0.25, 0.25, 0.25)
    assert pairs["correct predictions"]["difference"] == -0.5
    assert pairs["probability of the explained class"]["difference"] == 0


def test_paired_interval_is_that_of_the_bootstrap_of_evaluate():
    a, b = torch.rand(2, 30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    row = paired("x", dict(enumerate(a.tolist())), dict(enumerate(b.tolist())))
    draws = BootstrapDraws(torch.arange(30)).means((b - a)[:, None])[:, 0]
    low, high = draws.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert (row["low"], row["high"]) == (pytest.approx(low, rel=1e-4), pytest.approx(high, rel=1e-4))


def test_classes_and_confusions_count_images_of_both_runs(two):
    comparison = compare_runs(*two)
    assert comparison.confusions == [{"label": 1, "pred": 0, "before": 0, "after": 2}]
    cat, dog = comparison.classes
    assert (cat["correct_before"], cat["correct_after"], cat["moved"]) == (2, 2, 0.5)
    assert (dog["correct_before"], dog["correct_after"], dog["moved"]) == (2, 0, 0)


def test_limits_count_changes_for_the_worse_only(two):
    comparison = compare_runs(*two)
    assert comparison.violations({"energy_on_object": 0.2, "moved": 0.25, "loss": 0.3, "accuracy": 0}) == []
    (text,) = comparison.violations({"energy_on_object": 0.05})
    assert text == "gradcam/energy_on_object changed from 0.7 to 0.6, by more than 0.05 for the worse"
    better = compare_runs(*reversed(two))
    assert better.violations({"energy_on_object": 0}) == []
    with pytest.raises(ValueError, match=r"got 'energy_on_objects'; closest: \['energy_on_object'"):
        comparison.violations({"energy_on_objects": 0.1})


def test_other_pictures_under_the_same_number_are_not_compared(two, tmp_path):
    other = write_run(tmp_path / "c", [0, 1, 2, 3], [0, 1, 0, 1], 0.7, pictures=[0, 1, 2, 9])
    comparison = compare_runs(two[0], other)
    assert {row["id"] for row in comparison.images} == {"0", "1", "2"}
    assert comparison.missing == ["1 images have other pictures in the second run"]


def test_checkpoint_leads_to_its_step(tmp_path):
    run = write_run(tmp_path / "run", [0, 1], [0, 1], 0.2, epochs=3)
    (run / "checkpoints").mkdir()
    for epoch in range(3):
        torch.save({"global_step": 10 * (epoch + 1)}, run / "checkpoints" / f"{epoch}.ckpt")
    rows = compare_runs(run / "checkpoints" / "0.ckpt", run / "checkpoints" / "1.ckpt").metrics
    assert {row["name"]: row["difference"] for row in rows} == {
        "gradcam/energy_on_object": 1.0,
        "val/accuracy": 0.0,
        "val/loss": 0.0,
    }


def test_tables_of_evaluate_are_paired(tmp_path):
    for name, numbers in (("a", (1, 2, 3)), ("b", (2, 3, 5))):
        (tmp_path / name).mkdir()
        lines = [f"{i},0,gradcam,0,{number}" for i, number in enumerate(numbers)]
        (tmp_path / name / "values.csv").write_text("\n".join(["image,class,method,degenerate,insertion", *lines]))
        passports = {"metrics": {"insertion": {"direction": "higher is better"}}}
        (tmp_path / name / "passports.json").write_text(json.dumps(passports))
    (row,) = compare_runs(tmp_path / "a", tmp_path / "b").pairs
    assert (row["name"], row["before"], row["after"], row["images"]) == (
        "gradcam/insertion",
        2,
        pytest.approx(3.3333),
        3,
    )
    assert row["direction"] == "higher is better"


@pytest.mark.parametrize(
    ("place", "message"),
    [("nowhere", "does not exist"), ("", "journals in it: .*a.*b"), ("a/explanations/journal.jsonl", "checkpoint of")],
)
def test_paths_without_one_run_are_refused(two, place, message):
    with pytest.raises(ValueError, match=message):
        compare_runs(two[0].parent / place, two[1])


def test_command_writes_page_and_json_and_returns_an_exit_code(two, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    words = ["compare", *map(str, two), "--limit", "energy_on_object=0.05"]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 1
    facts = json.loads((tmp_path / "comparison.json").read_text())
    assert facts["failed"] == ["gradcam/energy_on_object changed from 0.7 to 0.6, by more than 0.05 for the worse"]
    assert "limit exceeded" in capsys.readouterr().out
    assert "Where evidence moved" in (tmp_path / "comparison.html").read_text()
    main([*words, "--limit", "energy_on_object=0.2", "--output", "out/page.html"])  # the last limit of a name counts
    assert json.loads((tmp_path / "out" / "page.json").read_text())["failed"] == []


@pytest.mark.parametrize("word", ["moved", "=1", "moved=x", "moved=-1", "moved=nan"])
def test_limits_without_name_or_number_are_refused(two, word, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        main(["compare", *map(str, two), f"--limit={word}"])
    assert ended.value.code == 2
    assert "expected a limit NAME=NUMBER" in capsys.readouterr().err


def test_page_has_charts_of_both_runs_and_ranked_images(two):
    data = comparison_data(compare_runs(*two), [], 1e7)
    lines = [line["label"] for chart in data["charts"]["metrics"] for line in chart["lines"]]
    assert lines == ["before: gradcam", "after: gradcam"]
    assert data["images"][0]["id"] == "2"
    assert [len(side["films"]["panel"]["events"]) for side in data["sides"]] == [1, 1]


def test_report_has_classes_and_confusions(two):
    run = read_journal(two[1] / "explanations")
    table = class_table(run)
    assert table["head"] == ["class", "images", "correct", "probability", "loss"]
    assert [row[:3] for row in table["rows"]] == [[0, 2, 2], [1, 2, 0]]
    assert table["rows"][1][3:] == [0.7, 2.75]
    assert confusion_parts(run) == [{"label": 1, "pred": 0, "images": [("1", "panel"), ("3", "panel")]}]
