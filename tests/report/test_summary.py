"""The summary of a run states what its journal holds, in words."""

import json

import pytest
from support.synthetic_journal import write_journal

from interpretable_training.report.journal import Journal
from interpretable_training.report.page import write_report


def summary(folder):
    page = write_report(folder, folder.parent / "report.html")
    facts = json.loads((folder / "summary.json").read_text())
    assert facts["report"] == str(page)
    return facts


@pytest.fixture(scope="module")
def rich(tmp_path_factory):
    folder = tmp_path_factory.mktemp("rich") / "explanations"
    write_journal(folder, count=8)
    return summary(folder)


def test_alarms_and_failures_are_findings_with_evidence(rich):
    findings = {each["what"]: each for each in rich["findings"]}
    (alarm,) = (each for what, each in findings.items() if "planted cue" in what)
    assert alarm["evidence"] == "Raised 5 times, first at epoch 7."
    assert findings["InterpretabilityMetrics failed."]["evidence"].startswith("2 times, first at epoch 3: OutOfMemory")
    assert "8 of 16 images" in findings["ExplanationLogger skipped parts to stay within its budget."]["evidence"]
    assert findings["Maps of gradcam are stable from epoch 7."]["certainty"] == "medium"
    assert all(each["try"].endswith(".") for each in rich["findings"])


def test_last_values_are_those_of_the_journal(rich):
    assert rich["last_values"]["test/xai/gradcam/insertion"] == 78.2
    assert rich["last_values"]["val/accuracy"] == pytest.approx(0.99434, abs=1e-5)
    assert (rich["model"], rich["classes"][0]) == ("Classifier", "circle")


def test_run_without_findings_says_so(tmp_path):
    Journal(tmp_path / "explanations").write("run", model="Net")
    (finding,) = summary(tmp_path / "explanations")["findings"]
    assert finding["what"] == "Nothing was detected."


def test_shortcuts_and_randomization_are_findings(tmp_path):
    journal = Journal(tmp_path / "explanations")
    when = {"epoch": 1, "step": 20}
    journal.write("shortcuts", **when, method="gradcam", claimed=True, message="a mark stands for ring")
    journal.write("alarm", **when, name="xai/gradcam/shortcut/score", value=0.9, message="gradcam: a mark")
    rows = [
        {"method": "guidedbackprop", "similarity": {"spearman": 0.97}, "passed": False, "rule": "spearman < 0.5"},
        {"method": "gradcam", "similarity": {"spearman": 0.1}, "passed": True},
    ]
    journal.write("randomization", **when, rows=rows)
    used, random = summary(journal.folder)["findings"]
    assert (used["what"], used["certainty"]) == ("The network uses a shortcut.", "high")
    assert used["evidence"] == "ShortcutFinder with gradcam, epoch 1, step 20: a mark stands for ring"
    assert random["what"] == "Maps of guidedbackprop hardly depend on the trained weights."
    assert "spearman 0.97" in random["evidence"]


def test_confused_classes_and_empty_maps_are_findings(tmp_path):
    import torch

    journal = Journal(tmp_path / "explanations")
    journal.write("run", classes=["cat", "dog"])
    file, ends = journal.save_maps("m", torch.stack([torch.zeros(4, 4), torch.eye(4), torch.eye(4)]))
    rows = [
        {"id": str(i), "lo": lo, "hi": hi, "label": 0, "pred": 1, "degenerate": i == 0}
        for i, (lo, hi) in enumerate(ends)
    ]
    facts = {"group": "panel", "method": "gradcam", "view": "pred", "file": file, "h": 4, "w": 4, "rows": rows}
    journal.write("maps", epoch=0, step=1, **facts)
    whats = {each["what"] for each in summary(journal.folder)["findings"]}
    assert whats == {"cat is predicted as dog.", "1 of 3 maps of gradcam are empty or constant."}
