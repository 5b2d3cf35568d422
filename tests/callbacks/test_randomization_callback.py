"""What the callback that randomizes the network finds, when it does so, and what it leaves as it was."""

import json
import math

import pytest
import torch
from support.watched import Memory, Module, fit, loader, small_network, trainer_of

from interpretable_training.attribution import FakeCAM, GradCAM, Gradient
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.callbacks import RandomizationTest
from interpretable_training.callbacks.watching.session import session_of
from interpretable_training.metrics import ParameterRandomization


def lines(folder):
    (journal,) = folder.rglob("journal.jsonl")
    return [json.loads(line) for line in journal.read_text().splitlines()]


class Looks(RandomizationTest):
    """Keeps what it found, and the weights and images it was found with."""

    def run(self, trainer, pl_module):
        context = session_of(trainer).context(self.options, pl_module)
        self.images = torch.cat([picked.images for _, picked in context.batches(trainer)])
        self.weights = {name: t.clone() for name, t in pl_module.network.state_dict().items()}
        self.generator = torch.get_rng_state()
        self.mode = pl_module.training
        self.checks = super().run(trainer, pl_module)
        assert torch.equal(torch.get_rng_state(), self.generator)
        assert pl_module.training is self.mode
        return self.checks


def test_numbers_are_those_of_the_trained_network(tmp_path):
    test = ParameterRandomization("independent", similarity=("spearman", "ssim"), threshold=0.9, seed=3)
    methods = {"fake": FakeCAM(), "gradient": Gradient()}
    watcher, logger = Looks(methods, max_images=5, test=test, on_error="raise"), Memory()
    fit(tmp_path, [watcher], max_epochs=2, logger=logger)
    network = small_network()
    network.load_state_dict(watcher.weights)
    assert len(watcher.images) == 5
    assert test(network, methods, watcher.images) == watcher.checks
    (line,) = [line for line in lines(tmp_path) if line["kind"] == "randomization"]
    for row, check in zip(line["rows"], watcher.checks):
        assert (row["method"], row["passed"], row["rule"]) == (check.method, check.passed, check.rule)
        assert row["similarity"] == pytest.approx(check.similarity)
        for kind, value in check.similarity.items():
            (sent,) = [m[name] for _, m in logger.numbers for name in m if name == key(check.method, kind)]
            assert sent == pytest.approx(value)


def key(method, kind):
    return f"xai/{method}/randomization_{kind}"


def test_it_runs_once_at_the_end_and_leaves_the_weights_as_trained(tmp_path):
    alone, watched = Module(), Module()
    fit(tmp_path / "a", [], alone, max_epochs=2)
    logger = Memory()
    fit(tmp_path / "b", [RandomizationTest(max_images=3, on_error="raise")], watched, max_epochs=2, logger=logger)
    for a, b in zip(alone.parameters(), watched.parameters()):
        assert torch.equal(a, b)
    assert logger.steps(key("gradcam", "ssim")) == [8]
    assert logger.steps(key("gradcam", "spearman_abs")) == [8]


def test_scheduled_tests_are_logged_and_the_last_is_not_repeated(tmp_path):
    logger = Memory()
    watcher = RandomizationTest(max_images=3, every_n_epochs=1, on_error="raise")
    trainer = fit(tmp_path, [watcher], max_epochs=2, logger=logger)
    tests = [line for line in lines(tmp_path) if line["kind"] == "randomization"]
    assert [line["epoch"] for line in tests] == [0, 1]
    assert float(trainer.callback_metrics[key("gradcam", "ssim")]) == pytest.approx(
        tests[-1]["rows"][0]["similarity"]["ssim"]
    )
    assert len(logger.steps(key("gradcam", "ssim"))) == 2


def test_test_stage_logs_with_its_prefix(tmp_path):
    logger, module = Memory(), Module()
    trainer = trainer_of(tmp_path, [RandomizationTest(max_images=3, stages=["test"], on_error="raise")], logger=logger)
    trainer.test(module, loader(), verbose=False)
    assert {"test/" + key("gradcam", kind) for kind in ("ssim", "spearman_abs")} <= trainer.callback_metrics.keys()


class Nothing(Attribution):
    """A constant map, which is like no other."""

    def attribute(self, prepared, images, target):
        return torch.zeros_like(images[:, 0])


def test_a_map_that_cannot_be_compared_is_null_in_the_journal(tmp_path):
    logger = Memory()
    fit(tmp_path, [RandomizationTest({"no": Nothing()}, max_images=3, on_error="raise")], max_epochs=1, logger=logger)
    (line,) = [line for line in lines(tmp_path) if line["kind"] == "randomization"]
    assert line["rows"][0]["passed"] is None
    assert line["rows"][0]["similarity"] == {"ssim": None, "spearman_abs": None}
    assert all(math.isnan(m[key("no", "ssim")]) for _, m in logger.numbers if key("no", "ssim") in m)


class Fails(Gradient):
    def attribute(self, prepared, images, target):
        raise RuntimeError("boom")


def test_a_method_that_fails_does_not_end_the_training(tmp_path):
    watcher = RandomizationTest({"fails": Fails(), "gradcam": GradCAM()}, max_images=3)
    with pytest.warns(UserWarning, match="boom"):
        fit(tmp_path, [watcher], max_epochs=1)
    assert sum(watcher.errors.reasons.values()) == 1
    with pytest.raises(RuntimeError, match="boom"):
        fit(tmp_path / "raises", [RandomizationTest({"fails": Fails()}, max_images=3, on_error="raise")], max_epochs=1)


def test_settings_name_the_methods_and_the_test():
    watcher = RandomizationTest([GradCAM(), Gradient()], max_images=3)
    assert list(watcher.methods) == ["gradcam", "gradient"]
    assert watcher.settings()["methods"]["gradient"] == repr(Gradient())
    assert "stages=2" in watcher.settings()["test"]
    other = RandomizationTest([GradCAM()], max_images=3, test=ParameterRandomization(seed=1))
    assert other.state_key != watcher.state_key


class Named(Module):
    """Its network returns two things, of which the second are the logits."""

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = small_network()

        def forward(self, images):
            return {"features": images.flatten(1), "scores": self.inner(images)}

    def __init__(self):
        super().__init__(self.Network())

    def loss(self, batch):
        return torch.nn.functional.cross_entropy(self(batch[0])["scores"], batch[1])


def test_the_logits_are_those_that_were_named(tmp_path):
    watcher = Looks({"gradient": Gradient()}, max_images=3, output="scores", on_error="raise")
    module = Named()
    fit(tmp_path, [watcher], module, max_epochs=1)
    for network, output in ((module.network, "scores"), (module.network.inner, None)):
        (results,) = watcher.test(network, {"gradient": Gradient()}, watcher.images, output=output)
        assert watcher.checks[0].curves == results.curves
