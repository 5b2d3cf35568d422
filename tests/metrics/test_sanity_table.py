"""The table of checks, and the similarities in it."""

import math

import pytest
import torch

from interpretable_training.metrics import SanityTable
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
    assert [found.method for found in TABLE.disagreements()] == ["guided"]


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
    found = {kind: value.mean().item() for kind, value in similarities(S, -S).items()}
    assert found == pytest.approx({"spearman": -1, "spearman_abs": 1, "ssim": 1, "hog": 1})
    assert list(similarities(S[:, :8], -S[:, :8])) == ["spearman", "spearman_abs", "hog"]
    assert list(similarities(S[:, :7], -S[:, :7])) == ["spearman", "spearman_abs"]
    assert list(similarities(S[:, 0], S[:, 1])) == ["spearman", "spearman_abs", "ssim"]
