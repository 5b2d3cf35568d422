import pytest
import torch
from PIL import Image

from interpretable_training.attribution import FakeCAM
from interpretable_training.recipes import box_study, box_study_imagenet
from interpretable_training.recipes.box_study import draw_parts, inside_of


def test_recipe_and_configuration_of_shapes_are_the_same_study(backbone, assert_same_study):
    assert_same_study(box_study(), "box_study_shapes")


@pytest.mark.slow
def test_recipe_and_yaml_of_imagenet_are_the_same_study(imagenet, assert_same_study):
    study = box_study_imagenet()
    assert_same_study(study, "box_study")
    assert imagenet == [("vgg16_bn.tv_in1k", True)] * 2
    study.data.setup("validate")
    batch = next(iter(study.data.val_dataloader()))
    assert batch["image"].shape == (2, 3, 224, 224)
    # Corners 8, 4 to 40, 32 of a picture of 80 x 64, stretched to the square
    expected = torch.tensor([8 / 80, 4 / 64, 40 / 80, 32 / 64]) * 224
    torch.testing.assert_close(batch["boxes"][:, 0], expected.expand(2, 4), atol=0.5, rtol=0)


def test_the_rows_are_those_of_the_table(backbone):
    names = ("fakecam", "gradcam", "gradcamplusplus", "scorecam", "ablationcam", "xgradcam", "layercam", "opticam")
    rows = [row for name in names for row in (name, f"{name} inside", f"{name} outside")]
    assert list(box_study().options["methods"]) == ["box", "outside the box", *rows]


def test_fakecam_inside_of_the_box_equals_the_box(backbone, tmp_path):
    """So it is in Table 2.5: Fake-CAM is 0 in one corner alone, where no box is."""
    study = box_study(image_size=32, max_images=6, output=str(tmp_path / "runs"))
    rows = ("box", "outside the box", "fakecam", "fakecam inside", "fakecam outside")
    study.options["methods"] = {name: study.options["methods"][name] for name in rows}
    assert isinstance(study.options["methods"]["fakecam"], FakeCAM)
    table = study.run()
    for metric in ("average_drop", "average_gain", "average_increase"):
        assert table["fakecam inside", metric].mean == pytest.approx(table["box", metric].mean, abs=1e-4)
    inside, whole = table.per_image("box", "average_drop"), table.per_image("fakecam", "average_drop")
    assert (inside - whole).abs().max() > 1e-3  # masking does something to this network


def test_the_picture_shows_the_parts(backbone, tmp_path):
    study = box_study(image_size=32)
    draw_parts(study, str(tmp_path / "maps.png"), ("gradcam",))
    width, height = Image.open(tmp_path / "maps.png").size
    assert height > 5 * 112  # image, box, whole, inside, outside
    assert width > 6 * 112


def test_pixels_of_boxes():
    images = torch.zeros(2, 3, 4, 5)
    boxes = [torch.tensor([[1.0, 0.0, 3.0, 2.0], [torch.nan] * 4]), torch.tensor([[4.0, 3.0, 5.0, 4.0]])]
    U = inside_of(boxes, images)
    assert U[0].tolist() == [[0, 1, 1, 0, 0], [0, 1, 1, 0, 0], [0] * 5, [0] * 5]
    assert U[1].nonzero().tolist() == [[3, 4]]


def test_boxes_that_leave_the_image_or_end_between_pixels():
    """A pixel lies in a box if its middle does, as in the metrics."""
    boxes = [torch.tensor([[-2.0, -1.0, 2.0, 1.0]]), torch.tensor([[1.5, 0.6, 3.4, 9.0]])]
    U = inside_of(boxes, torch.zeros(2, 3, 4, 5))
    assert U[0].nonzero().tolist() == [[0, 0], [0, 1]]
    assert U[1].nonzero().tolist() == [[y, x] for y in (1, 2, 3) for x in (1, 2)]
