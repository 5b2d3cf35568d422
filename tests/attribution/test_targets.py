"""Which number is explained, seen through the gradient of a linear model: the row of the class."""

from functools import partial

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import CAM, FakeCAM, GradCAM, Gradient

close = partial(assert_close, rtol=0, atol=1e-9)
VOLUME = Gradient(reduce="signed_sum")


@pytest.fixture
def rows():
    """Three classes for images of 1 x 1 x 2 cells; `x` scores them 1, 3, 2 and 0, -2, -1."""
    return torch.tensor([[1.0, 0], [3, -2], [2, -1]], dtype=torch.float64)


@pytest.fixture
def x():
    return torch.tensor([[1.0, 0], [0, 1]], dtype=torch.float64).view(2, 1, 1, 2)


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        (None, [1, 0]),
        ("pred", [1, 0]),
        ("least", [0, 1]),
        (2, [2, 2]),
        (torch.tensor(2), [2, 2]),
        (np.int64(2), [2, 2]),
        ([2, 1], [2, 1]),
        ((0, 1), [0, 1]),
        (np.array([2, 0]), [2, 0]),
        (torch.tensor([2, 1]), [2, 1]),
        (torch.tensor([2, 1], dtype=torch.uint8), [2, 1]),
        (torch.tensor([2, 1], dtype=torch.int32), [2, 1]),
    ],
    ids=str,
)
def test_one_class_per_image(target, classes, linear, rows, x):
    close(VOLUME(linear(rows), x, target), rows[classes].view(2, 1, 2))


@pytest.mark.parametrize(
    ("target", "classes"),
    [
        ("topk:1", [[1], [0]]),
        ("topk:2", [[1, 2], [0, 2]]),
        ("topk:3", [[1, 2, 0], [0, 2, 1]]),
        (torch.tensor([[2, 0], [1, 1]]), [[2, 0], [1, 1]]),
        ([[2, 0], [1, 1]], [[2, 0], [1, 1]]),
    ],
    ids=str,
)
def test_several_classes_per_image_give_several_maps(target, classes, linear, rows, x):
    S = VOLUME(linear(rows), x, target)
    assert S.shape == (2, len(classes[0]), 1, 2)
    close(S[:, :, 0], rows[torch.tensor(classes)])


def test_several_classes_for_methods_that_share_a_pass_or_need_none(gap_linear, W, features):
    for method in (GradCAM(layer="features"), CAM(layer="features")):
        several = method(gap_linear(W), features, "topk:2")
        ranked = gap_linear(W)(features).topk(2).indices
        for t in range(2):
            close(several[:, t], method(gap_linear(W), features, ranked[:, t]))
    assert FakeCAM()(gap_linear(W), features, "topk:2").shape == (2, 2, 2, 3)


def test_a_callable_turns_the_output_into_a_score(linear, rows, x):
    close(VOLUME(linear(rows), x, lambda y: y[:, 1] - y[:, 2]), (rows[1] - rows[2]).expand(2, 1, 2))


@pytest.mark.parametrize(("wrong", "came"), [(lambda y: y, r"\(2, 3\)"), (lambda y: 3, "int")])
def test_a_callable_must_return_one_score_per_image(wrong, came, linear, rows, x):
    with pytest.raises(ValueError, match=f"one score per image.*{came}"):
        VOLUME(linear(rows), x, wrong)


def test_one_logit_is_explained_or_its_negative_for_class_zero(linear, rows, x):
    model = linear(rows[1:2])
    for target, sign in ((None, [1, 1]), (1, [1, 1]), (0, [-1, -1]), ([0, 1], [-1, 1])):
        close(VOLUME(model, x, target)[:, 0], torch.tensor(sign).double()[:, None] * rows[1])


def test_a_model_may_return_its_one_logit_without_an_axis(function, rows, x):
    model = function(lambda x: x.flatten(1) @ rows[1])
    close(VOLUME(model, x, [0, 1])[:, 0], torch.stack([-rows[1], rows[1]]))


@pytest.mark.parametrize("target", [torch.tensor([[0, 1], [1, 1]]), "topk:1"], ids=str)
def test_several_targets_of_one_logit(target, linear, rows, x):
    S = VOLUME(linear(rows[1:2]), x, target)
    assert S.shape == (2, 1 if target == "topk:1" else 2, 1, 2)


@pytest.mark.parametrize("name", ["label", "best", "topk:0", "topk:x"])
def test_unknown_names_are_refused_for_one_logit_too(name, linear, rows, x):
    with pytest.raises(ValueError, match=f"got '{name}'"):
        VOLUME(linear(rows[:1]), x, name)


@pytest.mark.parametrize("name", ["label", "best", "topk:4", "topk:0", "topk:", "top3"])
def test_unknown_names_are_refused(name, linear, rows, x):
    with pytest.raises(ValueError, match=f"'topk:K' with K up to 3.*got '{name}'"):
        VOLUME(linear(rows), x, name)
    with pytest.raises(ValueError, match="pass the labels themselves"):
        VOLUME(linear(rows), x, "label")


def test_multi_label_has_one_row_per_image_and_positive_class(linear, rows, x):
    """Explained is the sigmoid s of each class alone: s (1 - s) w."""
    positive = torch.tensor([[1, 1, 0], [0, 0, 1]])
    image, label = positive.nonzero(as_tuple=True)
    s = (x.flatten(1) @ rows.T).sigmoid()[image, label]
    S = Gradient(score="sigmoid", reduce="signed_sum")(linear(rows), x[image], label)
    close(S[:, 0], (s * (1 - s))[:, None] * rows[label])


@pytest.mark.parametrize(
    ("target", "match"),
    [
        (3, "from 0 to 2, since the model has 3 logits, got 3"),
        (-1, "from 0 to the number of logits - 1, got -1"),
        ([0, 7], "from 0 to 2.* 3 logits, got 0 to 7"),
        ([0], "got 1 targets for 2 images"),
        (torch.tensor([0, 1, 2]), "got 3 targets for 2 images"),
        (torch.zeros(3, 2, dtype=torch.long), "got 3 targets for 2 images"),
    ],
    ids=str,
)
def test_wrong_numbers_are_refused_with_both_numbers(target, match, linear, rows, x):
    with pytest.raises(ValueError, match=match):
        VOLUME(linear(rows), x, target)


def test_a_target_with_too_many_axes_is_refused(linear, rows, x):
    with pytest.raises(ValueError, match=r"target.*\(2, 1, 1\)"):
        VOLUME(linear(rows), x, torch.zeros(2, 1, 1, dtype=torch.long))


@pytest.mark.parametrize("target", [torch.tensor([0.0, 1]), [True, False], 1.5], ids=str)
def test_classes_are_whole_numbers(target, linear, rows, x):
    with pytest.raises(TypeError, match="class indices"):
        VOLUME(linear(rows), x, target)


def test_one_logit_allows_two_classes_only(linear, rows, x):
    with pytest.raises(ValueError, match="from 0 to 1, since the model has 1 logits, got 2"):
        VOLUME(linear(rows[:1]), x, 2)
