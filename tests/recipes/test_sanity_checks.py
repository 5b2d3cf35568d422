import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from interpretable_training.attribution import FakeCAM, FullGrad, GradCAM, Gradient, TGrad
from interpretable_training.metrics import DataRandomization, InputInvariance, ParameterRandomization, SanityTable
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.recipes import sanity_checks
from interpretable_training.recipes.sanity_checks import (
    EXPECTED,
    READ_BIASES,
    checked_methods,
    disagreement,
    run_checks,
    sanity_checks_report,
    twin_of,
)

CHOSEN = {"gradient": Gradient(), "gradcam": GradCAM(), "fakecam": FakeCAM()}


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(sanity_checks(), "sanity_checks")


def test_expected_verdicts_are_of_checked_methods():
    assert {method for said in EXPECTED.values() for method in said} <= set(checked_methods())
    assert {verdict for said in EXPECTED.values() for verdict in said.values()} == {"pass", "fail"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[sanity_checks.__module__], "checked_methods", lambda: CHOSEN)
    return sanity_checks(image_size=32, n_train=60, batch_size=12, max_epochs=1, output=str(tmp_path))


def test_all_checks_of_all_methods(small, tmp_path):
    before = {name: tensor.clone() for name, tensor in small.module.state_dict().items()}
    table = run_checks(small, by_heart=12, explained=4)
    assert table.tests == list(EXPECTED)
    assert list(table.rows) == list(CHOSEN)
    fake = table.rows["fakecam"]
    assert [fake[test].passed for test in EXPECTED] == [False, False, True]  # it never changes
    torch.testing.assert_close(small.module.state_dict(), before, rtol=0, atol=0)


@pytest.mark.slow
def test_bias_readers_are_checked_with_a_shift_in_a_bias(small, monkeypatch):
    chosen = {"gradient": Gradient(), "fullgrad": FullGrad(), "tgrad": TGrad()}
    monkeypatch.setattr(sys.modules[sanity_checks.__module__], "checked_methods", lambda: chosen)
    table = run_checks(small, by_heart=12, explained=2)
    results = {method: row["input invariance"] for method, row in table.rows.items()}
    assert list(results) == list(chosen)
    assert ["undone in a bias" in one.rule for one in results.values()] == [False, True, True]
    assert (results["gradient"].passed, results["fullgrad"].passed) == (True, False)


def test_training_is_watched_and_the_report_is_written(small, tmp_path):
    trainer, module, data = small
    trainer.fit(module, data)
    folder = tmp_path / "sanity_checks" / "version_0"
    assert "xai/guidedbackprop/randomization_ssim" in (folder / "metrics.csv").read_text()
    text = sanity_checks_report(small, by_heart=12, explained=4)
    assert (folder / "sanity.txt").read_text().strip() in text
    assert "| gradcam |" in (folder / "sanity.md").read_text()


def test_the_twin_is_another_network_and_the_generator_stays(small):
    state = torch.get_rng_state()
    twin = twin_of(small)
    assert torch.equal(torch.get_rng_state(), state)
    assert type(twin) is type(small.module.network)
    assert twin is not small.module.network


def test_disagreement_is_reported_in_numbers():
    results = Check("parameter randomization", "gradcam", {"ssim": 0.75}, False, "rule", "ssim", {"ssim": [0.9, 0.75]})
    table = SanityTable([results], EXPECTED)
    assert table.disagreements() == [results]
    printed = disagreement(results, "pass")
    assert "the literature says pass; ssim 0.75" in printed
    assert "from the output on: 0.90, 0.75" in printed


@pytest.mark.slow
def test_methods_that_show_the_image_fail_and_gradients_pass(tmp_path):
    command = [sys.executable, "-m", "interpretable_training.recipes", "sanity_checks", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert rows["gradient"].count("pass") == 3
    assert "fail" in rows["guidedbackprop"]
    assert rows["fakecam (control)"].count("fail") == 2


# The pages that show the table of the sanity checks show that of the recipe.

DOCS = Path(__file__).parents[2] / "docs"


@pytest.fixture
def script():
    spec = importlib.util.spec_from_file_location("make_sanity_table", DOCS / "make_sanity_table.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def between_marks(page, mark):
    _, text, _ = (DOCS / page).read_text(encoding="utf-8").split(mark)
    return text.strip()


def test_pages_have_methods_checks_and_verdicts_of_the_recipe(script):
    rows = [line.strip("| ").split(" | ") for line in between_marks("metrics.md", script.MARK).splitlines()]
    table = {row[0]: row[1:] for row in rows[2 : 2 + len(checked_methods())]}
    assert (
        rows[0][-3:] == list(EXPECTED) == [c.name for c in (ParameterRandomization, DataRandomization, InputInvariance)]
    )
    assert list(table) == list(checked_methods())
    lines = between_marks("recipes.md", script.MARK).splitlines()
    text = {line.split("  ")[0]: line.split() for line in lines[2 : 2 + len(checked_methods())]}
    for name, cells in table.items():
        assert " ".join(text[name]).endswith(" ".join(cells))
    for check, said in EXPECTED.items():  # a star where the cell says something else
        for name, verdict in said.items():
            cell = table[name][list(EXPECTED).index(check)]
            assert ("*" in cell) == (not cell.startswith(verdict))


def test_bias_readers_are_methods_that_split_the_score():
    assert {name for name, method in checked_methods().items() if isinstance(method, READ_BIASES)} == {
        "fullgrad",
        "tgrad",
    }


def test_a_run_of_the_recipe_fills_both_pages_and_nothing_else(script, tmp_path, monkeypatch):
    for page in ("metrics.md", "recipes.md"):
        (tmp_path / page).write_text(f"a\n{script.MARK}\nold\n{script.MARK}\nb\n")
    (tmp_path / "sanity.md").write_text("| table |\n")
    (tmp_path / "sanity.txt").write_text("text ↓\n", encoding="utf-8")
    monkeypatch.setattr(script, "HERE", tmp_path)
    monkeypatch.setattr(sys, "argv", ["make_sanity_table.py", str(tmp_path)])
    script.main()
    assert (tmp_path / "metrics.md").read_text() == f"a\n{script.MARK}\n| table |\n{script.MARK}\nb\n"
    filled = (tmp_path / "recipes.md").read_text(encoding="utf-8")
    assert filled == f"a\n{script.MARK}\n```text\ntext ↓\n```\n{script.MARK}\nb\n"
