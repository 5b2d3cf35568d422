"""Maps inside and outside of the object."""

import pytest
import torch
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, GradCAM, Gradient
from interpretable_training.metrics import AverageDrop, Coherency, Complexity, Restricted, box_study, evaluate

OPTIONS = {"resamples": 5, "progress": False, "controls": False, "target": "pred"}


@pytest.fixture
def batch(images):
    """The object of image 4 is nowhere."""
    boxes = torch.tensor([[2.0, 3.0, 6.0, 9.0]]).repeat(5, 1, 1)
    boxes[4] = torch.nan
    return {"image": images, "boxes": boxes}


@pytest.fixture
def run(network, batch):
    def measured(methods, metrics, **changes):
        return evaluate(network, methods, metrics, [{**batch, **changes}], **OPTIONS)

    return measured


def test_inside_and_outside_add_up_to_the_map(run):
    """The complexity of a map is its mean."""
    found = run(box_study({"g": Gradient()}), Complexity())
    inside, outside, whole = (found.per_image(name, "complexity") for name in ("g inside", "g outside", "g"))
    assert_close((inside + outside)[:4], whole[:4])
    assert [part[4].isnan().item() for part in (inside, outside, whole)] == [True, True, False]
    assert_close(found.per_image("box", "complexity")[:4], torch.full((4,), 24 / 96).double())
    assert_close(found.per_image("outside the box", "complexity")[:4], torch.full((4,), 72 / 96).double())
    assert "outside the box, g inside, g outside, complexity: 1 rows are not numbers and left" in found.to_text()


def test_a_map_that_is_1_has_the_box_as_its_inside(run):
    """But for the corner that Fake-CAM leaves out, which is not inside."""
    found = run(box_study([FakeCAM()]), AverageDrop())
    assert_close(
        found.per_image("fakecam inside", "average_drop"), found.per_image("box", "average_drop"), equal_nan=True
    )


def test_a_box_as_large_as_the_image_hides_nothing(run):
    boxes = torch.tensor([[0.0, 0.0, 8.0, 12.0]]).repeat(5, 1, 1)
    found = run({"box": Restricted(), "cam": GradCAM("3"), "in": Restricted(GradCAM("3"))}, AverageDrop(), boxes=boxes)
    assert found["box", "average_drop"].mean == 0
    assert_close(found.per_image("in", "average_drop"), found.per_image("cam", "average_drop"))


def test_a_mask_may_tell_the_region(run, images):
    mask = images[:, 0] > 0
    found = run({"mask": Restricted(region="mask")}, Complexity(), mask=mask)
    assert_close(found.per_image("mask", "complexity"), mask.double().mean((1, 2)))


def test_a_method_and_its_parts_are_explained_once(network, batch):
    calls = Tally()

    class Counted(nn.Module):
        def forward(self, x):
            calls.append(torch.is_grad_enabled() and x.requires_grad)
            return network(x)

    methods = {"g": Gradient(), "in": Restricted(Gradient()), "out": Restricted(Gradient(), "outside")}
    evaluate(Counted(), methods, Complexity(), [batch], **OPTIONS)
    assert sum(calls) == 1


def test_metrics_that_explain_again_restrict_again(network, batch, run):
    """With a box around everything the parts are the whole, also in what is explained again."""
    boxes = torch.tensor([[0.0, 0.0, 8.0, 12.0]]).repeat(5, 1, 1)
    found = run({"g": Gradient(), "in": Restricted(Gradient())}, Coherency(), boxes=boxes)
    assert_close(found.per_image("in", "coherency"), found.per_image("g", "coherency"))


def test_without_boxes_it_is_said(run, network, images):
    with pytest.raises(ValueError, match=r"expected 'boxes' in the batch for Restricted\(.*, got none; make batches"):
        evaluate(network, Restricted(), Complexity(), [{"image": images}], **OPTIONS)
    with pytest.raises(TypeError, match="expected Restricted among the methods of evaluate"):
        Restricted(Gradient())(network, images)
    with pytest.raises(ValueError, match=r"expected Restricted\.part to be one of"):
        Restricted(part="beside")
    with pytest.raises(TypeError, match=r"expected an object of .* as 'method'"):
        Restricted("gradcam")
