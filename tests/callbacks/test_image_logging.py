"""Pictures that are sent and stored, and what an explanation step may cost."""

import time
from types import SimpleNamespace

import pytest
import torch
from support.watched import BATCHES, Memory, Notes, fit, loader, looks, pictures, record
from torch.nn import functional as F

from interpretable_training.attribution import GradCAM, LayerCAM
from interpretable_training.callbacks import (
    Budget,
    ExplanationDrift,
    ExplanationLogger,
)
from interpretable_training.callbacks.watching.budget import BudgetController, levels

ENDS = [(e, BATCHES * (e + 1)) for e in range(3)]


def test_hardest_images_have_the_largest_losses_of_the_validation(tmp_path):
    logger, notes = Memory(), Notes()
    names = ["cat", "dog", "<b>hen</b>"]
    watcher = ExplanationLogger(max_images=2, hardest=3, class_names=names, on_error="raise")
    fit(tmp_path, [notes, watcher], val=loader(30, 1), logger=logger)
    images, labels = pictures(30, 1).tensors
    lines = [line for line in record(tmp_path).of("maps") if line["group"] == "hardest"]
    for line, network, (_, _, sent) in zip(lines, notes.networks, logger.pictures):
        logits = network(images)
        loss = F.cross_entropy(logits, labels, reduction="none")
        top = loss.topk(3)
        assert [int(row["id"]) for row in line["rows"]] == top.indices.tolist()
        assert [row["loss"] for row in line["rows"]] == pytest.approx(top.values.tolist(), rel=1e-5)
        captions = [caption for _, caption in sent["xai/hardest/gradcam"]]
        for caption, i in zip(captions, top.indices.tolist()):
            prob, pred = logits[i].softmax(0).max(0)
            wrong = f" ({names[labels[i]]})" if pred != labels[i] else ""
            assert caption.startswith(f"#{i} | predicted {names[pred]} {prob:.2f}{wrong} | true {names[labels[i]]} | ")
            assert " max " in caption
            assert " mass " in caption
    assert len(lines) == len(logger.pictures) == 3


def test_pictures_of_a_step_are_sent_at_once_and_originals_once(tmp_path):
    logger = Memory()
    methods = [GradCAM(), LayerCAM()]
    fit(tmp_path, [ExplanationLogger(methods, max_images=3, hardest=2, on_error="raise")], logger=logger)
    assert [(step, epoch) for step, epoch, _ in logger.pictures] == [(step - 1, epoch) for epoch, step in ENDS]
    keys = ["xai/gradcam", "xai/hardest/gradcam", "xai/hardest/layercam", "xai/layercam"]
    assert [sorted(images) for _, _, images in logger.pictures] == [sorted([*keys, "xai/images"]), keys, keys]
    assert [len(logger.pictures[1][2][key]) for key in keys] == [3, 2, 2, 3]


@pytest.mark.parametrize(
    ("target", "views"),
    [
        ("pred", ["pred"]),
        ("label", ["label"]),
        ("least", ["least"]),
        ("both", ["pred", "label"]),
        ("topk:2", ["top1", "top2"]),
        (1, ["class 1"]),
    ],
)
def test_which_class_is_shown(tmp_path, target, views):
    notes = Notes()
    callbacks = [notes, ExplanationLogger(max_images=4, hardest=0, target=target, on_error="raise")]
    fit(tmp_path, callbacks, max_epochs=1)
    lines = record(tmp_path).of("maps")
    assert [line["view"] for line in lines] == views
    images, labels = pictures(9, 1).tensors
    logits = notes.networks[0](images)
    order = logits.argsort(1, descending=True)
    expected = {"pred": order[:, 0], "top1": order[:, 0], "top2": order[:, 1], "least": order[:, -1], "label": labels}
    for line in lines:
        ids = [int(row["id"]) for row in line["rows"]]
        classes = expected.get(line["view"], torch.full((9,), 1))[ids]
        assert [row["target"] for row in line["rows"]] == classes.tolist()
        prob = logits.softmax(1)[ids, classes].tolist()
        assert [row["prob"] for row in line["rows"]] == pytest.approx(prob, abs=1e-6)


# Cost


def test_costs_are_logged_with_each_epoch(tmp_path):
    class Slow(ExplanationLogger):
        def compute(self, session, context, step):
            time.sleep(0.2)
            return super().compute(session, context, step)

    trainer = fit(tmp_path, [Slow(max_images=2, on_error="raise")])
    costs = [line["values"] for line in record(tmp_path).of("values") if "xai/seconds" in line["values"]]
    assert len(costs) == 3
    assert all(0.2 <= cost["xai/seconds"] < 5 and 0 < cost["xai/share_of_epoch"] < 1 for cost in costs)
    assert all(cost["xai/megabytes"] > 0 for cost in costs)
    assert {"xai/seconds", "xai/share_of_epoch"} <= {*trainer.callback_metrics}


def spends(thrift, seconds, epochs=1, n=16):
    """Levels, kept images and what was said when looks take so long in epochs of a second."""
    printed = []
    for _ in range(epochs):
        thrift.start_epoch()
        thrift.spend(seconds, 0)
        thrift.duration = 1.0
        printed.append((thrift.adjust(SimpleNamespace(world_size=1), n) != "", thrift.keep(n), thrift.stretch(n)))
    return printed


@pytest.mark.parametrize(("used", "level"), [(0.5, 0), (1.0, 0), (1.01, 1), (2.0, 1), (2.1, 2), (5.0, 3)])
def test_each_level_halves_a_cost_until_it_is_within_the_limit(used, level):
    assert levels(used) == level
    assert used / 2**level <= 1


def test_budget_halves_images_then_steps_and_restores_them():
    thrift = BudgetController(Budget(share=0.1), 4)
    assert spends(thrift, 0.2, 4) == [(True, 8, 1), (True, 4, 1), (True, 4, 2), (True, 4, 4)]
    assert spends(thrift, 0.05) == [(False, 4, 4)]  # within the budget
    assert spends(thrift, 0.02) == [(True, 4, 1)]  # two levels back: a fifth of the limit
    assert spends(thrift, 0.01) == [(True, 16, 1)]
    assert spends(BudgetController(0.1, 4), 1.5) == [(True, 4, 4)]  # at once
    assert spends(BudgetController(0.1), 1.5) == [(True, 1, 1)]
    assert spends(BudgetController(None), 9.0) == [(False, 16, 1)]
    assert spends(BudgetController(0.1, fixed=True), 0.2) == [(True, 16, 2)]  # whose images must stay the same
    with pytest.raises(ValueError, match="expected share of a budget above 0, got 0"):
        Budget(share=0)


def test_a_callback_that_costs_too_much_says_what_it_leaves_out(tmp_path):
    watching = [
        ExplanationLogger(max_images=8, hardest=0, budget=1e-9, on_error="raise"),
        ExplanationDrift(max_images=4, budget=Budget(share=1e-9), on_error="raise"),
    ]
    fit(tmp_path, watching, max_epochs=6)
    panels = record(tmp_path).of("maps")
    assert [len(line["rows"]) for line in panels] == [1, 1]  # planned before the first step
    assert [line["epoch"] for line in panels] == [0, 5]
    assert looks(tmp_path, "ExplanationDrift") == [(0, 4), (5, 24)]
    dropped = record(tmp_path).of("dropped")
    assert "explains 1 of 8 images: all would take about" in dropped[0]["what"]
