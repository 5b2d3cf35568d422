"""The table of checks, and the similarities in it."""

import copy
import math

import pytest
import torch
from torch import nn

from interpretable_training.attribution import FakeCAM, Gradient
from interpretable_training.metrics import DataRandomization, SanityTable, memorize
from interpretable_training.metrics.sanity.checks import Check, Rule, similarities


def check(test, method, value, passed, undefined=0):
    rule = Rule("ssim", 0.5)
    return Check(test, method, {"ssim": value, "hog": 0.1}, passed, rule.text("here"), "ssim", n_undefined=undefined)


TABLE = SanityTable(
    [
        check("a", "cam", 0.123, True),
        check("a", "guided", 0.9, False),
        check("b", "cam", 0.7, False),
        check("b", "odd", math.nan, None, 3),
    ],
    {"a": {"cam": "pass", "guided": "pass"}, "b": {"cam": "fail"}},
)


def test_the_table_in_words():
    lines = TABLE.to_text().splitlines()
    assert lines[0].split() == ["a", "b"]
    assert lines[1].split() == ["cam", "pass", "(0.12)", "fail", "(0.7)"]
    assert lines[2].split() == ["guided", "fail*", "(0.9)", "-"]
    assert lines[3].split() == ["odd", "-", "undecided", "(nan)"]
    assert "a: passes if the ssim similarity, here, is below 0.5; beside the verdict: ssim." in lines
    assert "* not as in the literature." in lines
    assert "b, odd: 3 comparisons left out, since a map is constant or not a number." in lines
    assert [results.method for results in TABLE.disagreements()] == ["guided"]


def test_the_table_as_markdown_and_as_records():
    text = TABLE.to_markdown()
    assert text.startswith("|  | a | b |\n| --- | --- | --- |\n| cam | pass (0.12) | fail (0.7) |\n")
    assert TABLE.records()[0]["similarity"] == {"ssim": 0.123, "hog": 0.1}
    assert str(TABLE) == TABLE.to_text()


@pytest.mark.parametrize(("value", "passed"), [(0.49, True), (0.5, False), (math.nan, None)])
def test_the_rule(value, passed):
    assert Rule("ssim", 0.5).passed({"ssim": value}) is passed
    assert Rule("ssim", 0.5).passed({}) is None


def test_a_map_and_its_negative():
    S = torch.rand(3, 32, 32, generator=torch.Generator().manual_seed(0))
    results = {kind: value.mean().item() for kind, value in similarities(S, -S).items()}
    assert results == pytest.approx({"spearman": -1, "spearman_abs": 1, "ssim": 1, "hog": 1})
    assert list(similarities(S[:, :8], -S[:, :8])) == ["spearman", "spearman_abs", "hog"]
    assert list(similarities(S[:, :7], -S[:, :7])) == ["spearman", "spearman_abs"]
    assert list(similarities(S[:, 0], S[:, 1])) == ["spearman", "spearman_abs", "ssim"]


KINDS = ("spearman", "spearman_abs")


def test_the_same_network_twice_has_the_same_maps(network, images):
    twin = copy.deepcopy(network)
    (check,) = DataRandomization(KINDS, "spearman")(network, twin, Gradient(), images)
    assert check.similarity == pytest.approx(dict.fromkeys(KINDS, 1.0))
    assert check.passed is False


def test_another_network_has_others(network, images, target):
    twin = copy.deepcopy(network)
    for layer in (0, 3, 8):
        nn.init.normal_(twin[layer].weight, generator=torch.Generator().manual_seed(layer))
    results = DataRandomization(KINDS, "spearman")(network, twin, [Gradient(), FakeCAM()], images, target)
    assert [check.passed for check in results] == [True, False]


def test_labels_are_dealt_out_anew():
    target = torch.arange(6).repeat(50)
    shuffled = DataRandomization().shuffled(target)
    assert shuffled.bincount().tolist() == [50] * 6
    assert float((shuffled == target).float().mean()) == pytest.approx(1 / 6, abs=0.1)
    assert torch.equal(shuffled, DataRandomization().shuffled(target))
    assert not torch.equal(shuffled, DataRandomization(seed=1).shuffled(target))


def test_noise_is_known_by_heart_or_it_is_said():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(40, 10, generator=generator), torch.randint(2, (40,), generator=generator)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(10, 64), nn.ReLU(), nn.Linear(64, 2))
        assert memorize(net, x, y, batch_size=10, learning_rate=1e-2) >= 0.95
        assert not net.training
        assert (net(x).argmax(1) == y).float().mean() >= 0.95
        with pytest.raises(RuntimeError, match="expected the network to know 100% of the images by heart"):
            memorize(nn.Linear(10, 2), x, y, accuracy=1.0, max_epochs=1)
