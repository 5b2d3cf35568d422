"""Ways to train: the rival of our own, confidence made equal, and a table from the storage of a sweep."""

import json
import sys

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.testing import assert_close

from interpretable_training.recipes import remedies
from interpretable_training.recipes.evidence import training_run as run
from interpretable_training.recipes.evidence import training_table as table

PROGRAM = """
import json, os, sys
given = dict(word[2:].split("=") for word in sys.argv[1:])
better = 10 * (given["method"] == "energy")
numbers = {"same": 60.0 + better + int(given["seed"]), "swapped": 20.0, "seconds": 2.0 + better}
if given["method"] == "ca_stream":
    numbers["same"] = 30.0 if given["seed"] == "0" else float("nan")
open(os.environ["INTERPRETABLE_TRAINING_SWEEP_FILE"], "w").write(json.dumps(numbers) + "\\n")
sys.exit(given["method"] == "energy" and given["seed"] == "1")
"""


def test_half_of_the_pixels_become_random_in_range():
    torch.manual_seed(0)
    x, d = torch.randn(4, 3, 8, 8), torch.rand(4, 8, 8)
    d[:, :4] += 1.0
    other = run.without_least(x, d)
    assert torch.equal(other[:, :, :4], x[:, :, :4])
    assert (other[:, :, 4:] != x[:, :, 4:]).float().mean() > 0.9  # the median itself stays
    assert (other >= x.amin((2, 3), keepdim=True)).all()
    assert (other <= x.amax((2, 3), keepdim=True)).all()
    assert len(other[:, :, 4:].unique()) == other[:, :, 4:].numel()


def linear_module():
    network = nn.Sequential(nn.Flatten(), nn.Linear(2 * 4 * 4, 3))
    return run.SaliencyGuided(network, 3), network[1].weight


def test_sensitivity_of_a_linear_network_is_its_absolute_weights():
    module, W = linear_module()
    d = module.sensitivity(torch.randn(2, 2, 4, 4), torch.tensor([0, 2]))
    assert_close(d, W.detach().view(3, 2, 4, 4).abs().sum(1)[[0, 2]])
    assert module.network.training
    assert W.grad is None


def test_loss_of_the_rival_is_cross_entropy_plus_divergence(monkeypatch):
    module, _ = linear_module()
    monkeypatch.setattr(module, "log_step", lambda *a: None)
    x, target = torch.randn(5, 2, 4, 4), torch.tensor([0, 1, 2, 0, 1])
    monkeypatch.setattr(run, "without_least", lambda x, d: x)
    loss = F.cross_entropy(module(x), target)
    assert_close(module.training_step((x, target), 0), loss)
    monkeypatch.setattr(run, "without_least", lambda x, d: 0 * x)
    p, q = module(x).softmax(1), module(0 * x).softmax(1)
    assert_close(module.training_step((x, target), 0), loss + (p * (p / q).log()).sum(1).mean())


def test_confidence_becomes_equal():
    logits = 5 * torch.randn(50, 4, generator=torch.Generator().manual_seed(0))
    for factor in (0.3, 1.0, 7.0):
        scaled = factor * logits
        assert (run.confidence_factor(scaled) * scaled).softmax(1).amax(1).mean() == pytest.approx(0.8, abs=1e-4)


def test_images_without_cues_are_grouped_by_class():
    target = torch.tensor([0, 3, 1])
    assert remedies.agreement_groups({"target": target}).tolist() == [0, 6, 2]
    assert remedies.agreement_groups({"target": target, "cue": torch.tensor([0, 1, 1])}).tolist() == [0, 7, 2]


@pytest.fixture
def study(tmp_path, monkeypatch):
    """A sweep of a program that writes made-up numbers."""
    pytest.importorskip("optuna")
    (tmp_path / "program.py").write_text(PROGRAM)
    words = f"[{sys.executable}, {tmp_path / 'program.py'}, '${{args}}']"
    parameters = "{data: {value: marks}, method: {values: [plain, energy, ca_stream]}, seed: {values: [0, 1, 2]}}"
    (tmp_path / "sweep.yaml").write_text(f"command: {words}\nmethod: grid\nparameters: {parameters}\n")
    monkeypatch.setattr(table, "SWEEP", str(tmp_path / "sweep.yaml"))
    return tmp_path / "study"


def test_table_counts_failures_and_compares_the_same_seeds(study, tmp_path):
    tables = table.training_tables(study, tmp_path)
    head, plain, stream, energy = tables["training"]
    assert [row[1] for row in (plain, stream, energy)] == ["plain", "ca_stream", "energy"]
    assert (plain[2], energy[2]) == ("61 ± 2.5", "71 ± 13")  # 4.303 * 1 / sqrt 3; 12.706 * sqrt 2 / sqrt 2
    assert (plain[-1], energy[-1]) == ("0 of 3", "1 of 3")
    assert stream[2:] == ["", *[""] * (len(head) - 4), "3 of 3"]  # at chance, or no number
    assert energy[head.index("cost")] == "6 ± 0"
    gains = {row[1]: row for row in tables["training_gains"]}
    assert gains["energy"][2:4] == ["**10 ± 0**", "0 ± 0"]
    assert gains["ca_stream"][2] == ""
    raw = (tmp_path / "training_runs.csv").read_text().splitlines()
    assert len(raw) == 10
    assert raw[0] == "data,method,seed,same,swapped,seconds,cost"
    assert "marks,energy,1,,,," in raw
    assert "marks,ca_stream,0,30,20,2,1" in raw  # a failed training keeps its numbers


def test_finished_runs_stay(study, tmp_path):
    first = table.training_tables(study, tmp_path)
    (study / "run_0000" / "mark").touch()
    assert table.training_tables(study, tmp_path) == first
    assert (study / "run_0000" / "mark").exists()
    assert not (study / "run_0009").exists()


def test_a_run_prints_its_numbers_or_gives_them_to_its_sweep(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(run, "EPOCHS", 1)
    monkeypatch.setattr(run, "MEASURED", 4)
    threads = torch.get_num_threads()
    run.training_run("digits", "plain", 0)
    printed = json.loads(capsys.readouterr().out)
    assert {"same", "worst group", "drop", "energy on object", "randomization", "seconds"} <= set(printed)
    monkeypatch.setenv(run.FILE, str(tmp_path / "metrics.jsonl"))
    run.training_run("digits", "plain", 0)
    torch.set_num_threads(threads)
    written = json.loads((tmp_path / "metrics.jsonl").read_text())
    seconds = written.pop("seconds"), printed.pop("seconds")
    assert min(seconds) > 0
    assert written == printed


@pytest.mark.parametrize("method", ["guided_gradient_0.1", "ca_stream", "saliency_guided", "background_swap"])
def test_each_way_trains_another_network(method, monkeypatch):
    monkeypatch.setattr(run, "EPOCHS", 2)  # backgrounds are swapped from the second one on
    plain, other = (run.trained("decoy_digits", name, 0)[0] for name in ("plain", method))
    x = torch.randn(2, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert plain(x).shape == other(x).shape == (2, 10)
        assert not torch.equal(plain(x), other(x))


def test_a_stream_is_trained_after_its_network(monkeypatch):
    trainings = []
    monkeypatch.setattr(run, "fit", lambda module, data, callbacks: trainings.append(type(module).__name__))
    run.trained("digits", "ca_stream", 0)
    assert trainings == ["Classifier", "CAStreamClassifier"]


class Answers:
    """Test data of two batches; the network's answer is the image."""

    def setup(self, stage):
        self.batches = [
            {"image": torch.eye(3)[[0, 0, 1]], "target": torch.tensor([0, 0, 1]), "group": torch.tensor([0, 0, 1])},
            {"image": torch.eye(3)[[2] * 10], "target": torch.tensor([1] * 9 + [2]), "group": torch.tensor([1] * 10)},
        ]

    def test_dataloader(self):
        return self.batches


def test_accuracies_by_hand():
    """4 of 13 are right; 2 of 11 in group 1, group 0 has too few images to count."""
    network = nn.Linear(3, 3, bias=False)
    nn.init.eye_(network.weight)
    numbers, logits = remedies.accuracies(network, {"same": Answers()})
    assert numbers["same"] == pytest.approx(400 / 13)
    assert numbers["worst group"] == pytest.approx(200 / 11)
    assert logits["same"].shape == (13, 3)
