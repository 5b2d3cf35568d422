"""Scores, references and captions of the tasks, by hand."""

import pytest
import torch
from support.task_networks import BoxesOfQuarters, ImagesAndTexts, Pixels, Pooled, UnitLength
from torch.testing import assert_close

from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.batches.read import Picked, pick
from interpretable_training.tasks import (
    Detection,
    Embedding,
    Example,
    Regression,
    Segmentation,
    Task,
    choose_task,
    find_network,
    task_named,
)
from interpretable_training.tasks.choose import doubts

IMAGE = torch.zeros(1, 3, 4, 4)
LOGITS = torch.tensor([[[3.0, 0], [0, 0]], [[0, 5.0], [7.0, 0]], [[0, 0], [0, 1.0]]])[None]  # classes 0, 1, 1, 2


def masks(task=None, target=None, output=LOGITS):
    return (task or Segmentation()).reference(output, Example(IMAGE, target))


def test_class_score_is_the_mean_logit_over_its_mask():
    task, reference = Segmentation(), masks()
    assert_close(task.scores(LOGITS, reference), torch.tensor([[3.0, 6.0, 1.0]]))  # (5 + 7) / 2
    p = LOGITS.softmax(1)[0]
    assert_close(task.prob(LOGITS, reference)[0, 1], (p[1, 0, 1] + p[1, 1, 0]) / 2)


def test_masks_stay_those_of_the_unchanged_image():
    assert_close(Segmentation().scores({"out": -LOGITS}, masks()), torch.tensor([[-3.0, -6.0, -1.0]]))


def test_labeled_masks_are_further_columns():
    label = torch.zeros(1, 4, 4, dtype=torch.long)
    label[:, :2, :2] = 2
    task, reference = Segmentation(), masks(target=label)
    scores = task.scores(LOGITS, reference)
    assert scores.shape == (1, 6)
    assert float(scores[0, 5]) == 0  # the logit of class 2 where the label has it
    assert task.label(reference, Example(IMAGE)) == 5
    assert (task.class_of(5, reference), task.class_of(1, reference)) == (2, 1)
    assert task.caption(5, reference, ["sky", "cat", "dog"]) == "dog, 25 % of the image (label)"


def test_largest_class_besides_the_background_is_explained():
    first = LOGITS.clone()
    first[:, 0, 1] = 9  # class 0 has three of four pixels
    task, reference = Segmentation(), masks(output=first)
    assert int(task.ranking(task.scores(first, reference), reference).argmax()) == 1
    every = Segmentation(background=None)
    assert int(every.ranking(every.scores(first, reference), reference).argmax()) == 0
    empty = first.clone()
    empty[:, 0] = 99
    assert int(task.ranking(task.scores(empty), masks(output=empty)).argmax()) == 0


def test_one_pixel_and_one_logit():
    task = Segmentation(pixel=(0, 3))
    assert_close(task.scores(LOGITS, masks(task)), torch.tensor([[0.0, 5.0, 0.0]]))
    with pytest.raises(ValueError, match="inside of 4 x 4"):
        masks(Segmentation(pixel=(4, 0)))
    assert Segmentation().scores(torch.ones(2, 1, 4, 4)).tolist() == [[-1, 1], [-1, 1]]


STRIPES = torch.tensor([[1, 0, 0, 0], [0, 1, 0, 1], [0, 0, 0, 1], [2, 0, 1, 1]])  # class 1 twice: 2 and 4 pixels


@pytest.mark.parametrize(("pixel", "area"), [(None, 4), ((1, 1), 2), ((2, 3), 4), ((0, 3), 0)])
def test_one_object_is_a_connected_part_of_the_mask(pixel, area):
    A = torch.nn.functional.one_hot(STRIPES, 3).permute(2, 0, 1)[None].float()
    A[0, 1, 0, 0] = A[0, 1, 1, 1] = 3  # the smaller object
    task = Segmentation(one_object=True, pixel=pixel)
    reference = masks(task, target=STRIPES[None], output=A)
    assert int(reference.pixels[1].sum()) == area
    assert torch.equal(reference.pixels[:3], reference.pixels[3:])  # labels are the prediction
    scores = task.scores(A, reference)
    assert float(scores[0, 1]) == {4: 1, 2: 3, 0: 0}[area]
    best = int(task.ranking(scores, reference).argmax())
    assert best == (1 if area else 0)  # the background where the pixel has it
    if area:
        assert task.label(reference, Example(IMAGE)) == 4
        assert task.caption(1, reference) == f"class 1, one object, {100 * area / 16:.3g} % of the image"


def test_outline_has_the_size_of_the_image():
    outline = Segmentation().outline(1, masks())
    assert outline.shape == (4, 4)
    assert outline[:2, 2:].all()
    assert outline.sum() == 8


BOX = torch.tensor([[0.0, 0, 2, 2], [2, 2, 4, 4]])


def listed(scores, labels, boxes=BOX):
    return [{"boxes": boxes, "scores": torch.tensor(scores), "labels": torch.tensor(labels)}]


def test_detection_score_is_iou_times_probability():
    task = Detection()
    reference = task.reference(listed([0.5, 0.9], [1, 2]), Example(IMAGE))
    assert reference.labels.tolist() == [2, 1]  # by probability
    half = BOX.clone()
    half[1, 3] = 3  # covers half of the second box
    assert_close(task.scores(listed([0.4, 0.8], [1, 2], half), reference), torch.tensor([[0.4, 0.4]]))
    assert task.scores(listed([0.9, 0.9], [3, 3]), reference).tolist() == [[0, 0]]  # other classes
    none = [{"boxes": torch.zeros(0, 4), "scores": torch.zeros(0), "labels": torch.zeros(0, dtype=torch.long)}]
    assert task.scores(none, reference).tolist() == [[0, 0]]
    assert task.caption(0, task.reference(none, Example(IMAGE))) == "no detection"


def test_labeled_box_is_a_column():
    task, target = Detection(), [{"boxes": BOX[:1], "labels": torch.tensor([1])}]
    example = Example(IMAGE, None, {"1": target})
    reference = task.reference(listed([0.5, 0.9], [1, 2]), example)
    assert task.label(reference, example) == 2
    assert float(task.scores(listed([0.5, 0.9], [1, 2]), reference)[0, 2]) == 0.5
    assert task.caption(2, reference, ["", "cat", "dog"]) == "cat at 0,0 to 2,2 (label)"
    assert task.outline(2, reference).nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]


def test_detr_boxes_are_fractions_of_the_image():
    class Output:
        logits = torch.tensor([[[9.0, 0, 0], [0, 0, 9.0]]])  # the last class is "no object"
        pred_boxes = torch.tensor([[[0.25, 0.25, 0.5, 0.5], [0.5, 0.5, 1, 1]]])

    task = Detection()
    reference = task.reference(Output(), Example(IMAGE))
    assert_close(reference.boxes, BOX[:1])
    assert_close(task.scores(Output(), reference), Output.logits.softmax(-1)[:, :1, 0])


def test_similarities_of_embeddings():
    z, ref = torch.tensor([[3.0, 4.0]]), torch.tensor([[0.0, 2.0]])
    assert_close(Embedding().scores(z, ref), torch.tensor([[0.8]]))
    assert_close(Embedding().prob(z, ref), torch.tensor([[0.9]]))
    assert Embedding(to="norm").scores(z).tolist() == [[5]]
    assert Embedding(to="norm").prob(z / 2, z).tolist() == [[0.5]]
    assert_close(Embedding(prototypes=torch.eye(2)).scores(z), torch.tensor([[0.6, 0.8]]))
    with pytest.raises(ValueError, match=r"pass image= as \(C, H, W\)"):
        Embedding(to="image")


def test_reference_of_an_embedding_is_its_mirror_image():
    example = Example(torch.arange(12.0).view(1, 3, 2, 2), run=lambda images: images.flatten(1))
    reference = Embedding().reference(torch.zeros(1, 12), example)
    assert reference.tolist() == example.image.flip(-1).flatten(1).tolist()


IMAGES = torch.rand(3, 3, 16, 16)
CHOICES = {
    "classification": (Pooled, (IMAGES, torch.tensor([0, 1, 2]))),
    "multilabel": (Pooled, (IMAGES, torch.eye(3))),
    "regression": (Pooled, (IMAGES, torch.randn(3, 3))),
    "segmentation": (Pixels, (IMAGES, torch.zeros(3, 16, 16, dtype=torch.long))),
    "detection": (BoxesOfQuarters, (IMAGES, [{"boxes": BOX, "labels": torch.tensor([1, 1])}] * 3)),
    "embedding": (UnitLength, IMAGES),
}


@pytest.mark.parametrize("task", CHOICES)
def test_task_is_found_from_the_output(task):
    network, batch = CHOICES[task]
    reading = find_network(network(), pick(batch))
    assert reading.task.name == task
    assert reading.task.describe(reading.picked(reading.sample))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ({"a": torch.zeros(3, 4), "b": torch.zeros(3, 7)}, r"got a dict with 'a' \(3, 4\), 'b' \(3, 7\); pass output="),
        (torch.zeros(3, 3, 16, 16), "as large as the images and without masks in the batch; pass output="),
        (torch.zeros(3, 4, dtype=torch.complex64), "real numbers"),
        (torch.zeros(3, 7, 5), r"numbers of shape \(3, 7, 5\).*or a Task of your own"),
    ],
)
def test_unknown_outputs_are_refused_in_words(output, words):
    with pytest.raises(ValueError, match=words):
        choose_task(output, Picked(IMAGES, None, None, None, {}))


def test_two_heads_are_not_replaced_by_a_part():
    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.body = Pooled()

        def forward(self, images):
            y = self.body(images)
            return {"kind": y, "color": 2 * y}

    with pytest.raises(ValueError, match="got a dict with 'kind'"):
        find_network(Two(), IMAGES)
    assert find_network(Two(), IMAGES, output="color").task.name == "classification"


def test_doubts_about_a_classifier():
    task = task_named("classification")
    assert doubts(task, torch.zeros(2, 3), torch.tensor([0, 2]), None) == []
    assert "label 5 for 3 classes" in doubts(task, torch.zeros(2, 3), torch.tensor([0, 5]), None)[0]
    assert "3 outputs for 2 class names" in doubts(task, torch.zeros(2, 3), None, ["a", "b"])[0]
    with pytest.raises(ValueError, match="one of"):
        task_named("segmentaton")


def test_texts_are_compared_row_by_row():
    batch = {"pixel_values": IMAGES, "input_ids": torch.arange(6).view(3, 2), "attention_mask": torch.ones(3, 2)}
    model = ImagesAndTexts()
    reading = find_network(model, pick(batch))
    assert reading.task.name == "embedding"
    assert "attention_mask, input_ids" in str(reading.inputs) or "input_ids, attention_mask" in str(reading.inputs)
    row = pick(batch).rows(slice(1, 2))
    with prepare_model(model) as prepared, torch.no_grad():
        bound, _, _ = reading.bind(prepared, row)
        y = bound(torch.cat([row.images, 0 * row.images]))  # two changed images of one row, with one text each
        out = model(row.rest["input_ids"], row.images, row.rest["attention_mask"])
    assert y.shape == (2, 1)
    assert_close(y[0, 0], torch.cosine_similarity(out.image_embeds, out.text_embeds)[0])


def test_regression_explains_the_first_output():
    assert Regression().ranking(torch.tensor([[1.0, 9.0]])).argmax() == 0


def test_a_task_of_ten_lines_is_measured():
    from interpretable_training.evaluation.evaluate import evaluate
    from interpretable_training.metrics import AverageDrop, Insertion

    class Counting(Task):
        name, bounded = "counting", False

        def scores(self, output, reference=None):
            return output["logits"].flatten(1).sum(1, keepdim=True)

    options = {"task": Counting(), "target": "pred", "controls": False, "progress": False, "resamples": 2}
    table = evaluate(Pixels(), "gradcam", Insertion(steps=2, score="logit"), [IMAGES], **options)
    assert table.values["gradcam"]["insertion"].isfinite().all()
    with pytest.raises(ValueError, match=r"mean something for counting, got \['average_drop'\]; use Insertion"):
        evaluate(Pixels(), "gradcam", AverageDrop(), [IMAGES], **options)
