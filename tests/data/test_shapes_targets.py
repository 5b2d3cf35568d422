"""Masks and boxes as targets of generated shapes, and the modules that train on them."""

import pytest
import torch

from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Detector, Segmenter
from interpretable_training.modules.segmenter import is_detected

SIZES = {"image_size": 32, "n_train": 4, "n_val": 6, "n_test": 6, "batch_size": 6}


def first_batch(**options):
    data = ShapesDataModule(**SIZES, **options)
    data.setup("validate")
    return data, next(iter(data.val_dataloader()))


def test_targets_are_those_of_the_annotated_pictures():
    _, annotated = first_batch(annotations=True)
    data, (images, masks) = first_batch(task="segmentation")
    assert torch.equal(images, annotated["image"])
    assert torch.equal(masks, (1 + annotated["target"])[:, None, None] * annotated["mask"])
    assert (data.num_classes, data.class_names[:2]) == (7, ["background", "circle"])
    _, (images, targets) = first_batch(task="detection")
    assert torch.equal(images, annotated["image"])
    assert torch.equal(torch.stack([t["boxes"] for t in targets]), annotated["boxes"])
    assert [t["labels"].item() for t in targets] == (1 + annotated["target"]).tolist()


def test_task_of_shapes_is_checked():
    with pytest.raises(ValueError, match="'segmentation' or 'detection', got 'masks'"):
        ShapesDataModule(task="masks")
    with pytest.raises(ValueError, match="shortcuts and repeats with task='classification', got 'detection'"):
        ShapesDataModule(task="detection", shortcut=0.5)


def test_steps_lower_the_loss_of_one_batch():
    torch.manual_seed(0)
    for module, task in (
        (Segmenter("tiny_unet", 7), "segmentation"),
        (Detector("tiny_detector", 7), "detection"),
    ):
        module.log = lambda *args, **options: None
        batch, optimizer = first_batch(task=task)[1], torch.optim.Adam(module.parameters(), 0.01)
        losses = []
        for _ in range(6):
            losses.append(module.train().training_step(batch, 0))
            optimizer.zero_grad()
            losses[-1].backward()
            optimizer.step()
        assert float(losses[-1]) < 0.95 * float(losses[0]), task


def test_detected_means_class_and_half_of_the_box():
    target = {"boxes": torch.tensor([[0.0, 0, 4, 4]]), "labels": torch.tensor([1])}
    boxes = torch.tensor([[0.0, 0, 4, 2.5], [9, 9, 12, 12]])  # IoU 0.625

    def detected(labels, scores):
        return is_detected({"boxes": boxes, "labels": torch.tensor(labels), "scores": torch.tensor(scores)}, target)

    assert detected([1, 1], [0.9, 0.1])
    assert not detected([2, 1], [0.9, 0.1])
    assert not detected([1, 1], [0.1, 0.9])


def test_intersection_over_union_of_a_segmenter():
    module, metric = Segmenter("tiny_unet", 2), Segmenter("tiny_unet", 2).val_metric
    module.network = torch.nn.Identity()
    logits = torch.zeros(1, 2, 2, 2)
    logits[:, 1, 0] = 1  # the upper row is class 1
    module.update(metric, (logits, torch.tensor([[[1, 0], [0, 0]]])))
    assert float(metric.compute()) == pytest.approx((1 / 2 + 2 / 3) / 2)
