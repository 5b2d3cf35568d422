import subprocess
import sys

import pytest
import torch

from interpretable_training.attribution import FakeCAM, FullGrad, GradCAM, Gradient, TGrad
from interpretable_training.metrics import SanityTable
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.recipes import sanity_checks
from interpretable_training.recipes.sanity_checks import (
    EXPECTED,
    checked_methods,
    disagreement,
    run_checks,
    sanity_checks_report,
    twin_of,
)

CHOSEN = {"gradient": Gradient(), "gradcam": GradCAM(), "fakecam": FakeCAM()}


def test_recipe_and_configuration_are_the_same_experiment(assert_same_as_config):
    assert_same_as_config(sanity_checks(), "sanity_checks")


def test_what_the_literature_says_is_of_methods_that_are_checked():
    assert {method for said in EXPECTED.values() for method in said} <= set(checked_methods())
    assert {verdict for said in EXPECTED.values() for verdict in said.values()} == {"pass", "fail"}


@pytest.fixture
def small(tmp_path, monkeypatch):
    monkeypatch.setattr(sys.modules[sanity_checks.__module__], "methods", lambda: CHOSEN)
    return sanity_checks(image_size=32, n_train=60, batch_size=12, max_epochs=1, output=str(tmp_path))


def test_all_checks_of_all_methods(small, tmp_path):
    before = {name: tensor.clone() for name, tensor in small.module.state_dict().items()}
    table = run_checks(small, by_heart=12, explained=4)
    assert table.tests == list(EXPECTED)
    assert list(table.rows) == list(CHOSEN)
    fake = table.rows["fakecam"]
    assert [fake[test].passed for test in EXPECTED] == [False, False, True]  # it never changes
    torch.testing.assert_close(small.module.state_dict(), before, rtol=0, atol=0)


def test_methods_that_read_biases_are_checked_with_the_shift_in_a_bias(small, monkeypatch):
    chosen = {"gradient": Gradient(), "fullgrad": FullGrad(), "tgrad": TGrad()}
    monkeypatch.setattr(sys.modules[sanity_checks.__module__], "methods", lambda: chosen)
    table = run_checks(small, by_heart=12, explained=2)
    found = {method: row["input invariance"] for method, row in table.rows.items()}
    assert list(found) == list(chosen)
    assert ["undone in a bias" in one.rule for one in found.values()] == [False, True, True]
    assert (found["gradient"].passed, found["fullgrad"].passed) == (True, False)


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


def test_a_disagreement_is_told_in_numbers():
    found = Check("parameter randomization", "gradcam", {"ssim": 0.75}, False, "rule", "ssim", {"ssim": [0.9, 0.75]})
    table = SanityTable([found], EXPECTED)
    assert table.disagreements() == [found]
    told = disagreement(found, "pass")
    assert "the literature says pass; ssim 0.75" in told
    assert "from the output on: 0.90, 0.75" in told


@pytest.mark.slow
def test_methods_that_show_the_image_fail_and_gradients_pass(tmp_path):
    command = [sys.executable, "-m", "interpretable_training.recipes", "sanity_checks", "--output", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    rows = {line.split("  ")[0]: line for line in done.stdout.splitlines()}
    assert rows["gradient"].count("pass") == 3
    assert "fail" in rows["guidedbackprop"]
    assert rows["fakecam (control)"].count("fail") == 2
