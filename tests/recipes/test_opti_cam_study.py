import csv

import pytest
import torch

from interpretable_training.attribution import GradCAM, OptiCAM
from interpretable_training.data import ShapesDataModule
from interpretable_training.recipes import opti_cam_study, opti_cam_study_imagenet
from interpretable_training.recipes.opti_cam_study import opti_cam_study_report, seconds


def test_recipe_and_configuration_of_shapes_are_the_same_study(backbone, assert_same_study):
    assert_same_study(opti_cam_study(), "opti_cam_study_shapes")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("stem", "network", "kind"),
    [
        ("opti_cam_study", "resnet50.tv_in1k", "cnn"),
        ("opti_cam_study_vit", "vit_base_patch16_224", "transformer"),
    ],
)
def test_recipe_and_yaml_of_imagenet_are_the_same_study(imagenet, assert_same_study, stem, network, kind):
    study = opti_cam_study_imagenet(network=network, kind=kind)
    assert_same_study(study, stem)
    assert imagenet == [(network, True)] * 2
    images, _ = next(iter((study.data.setup("validate"), study.data.val_dataloader())[1]))
    assert images.shape == (2, 3, 224, 224)


def test_the_protocol_is_that_of_the_thesis(imagenet):
    """Methods and numbers of section 2.5, Tables 2.1 to 2.4."""
    options = opti_cam_study_imagenet().options
    opticam = options["methods"]["opticam"]
    assert isinstance(opticam, OptiCAM)
    assert (opticam.steps, opticam.lr, opticam.tolerance, opticam.objective) == (100, 0.1, 1e-10, "mask")
    assert opticam.mean == (0.485, 0.456, 0.406)  # black, not the mean color
    rows = {"gradcam", "gradcamplusplus", "scorecam", "ablationcam", "xgradcam", "layercam", "extremalperturbation"}
    assert set(options["methods"]) == {*rows, "opticam"}  # Fake-CAM is added by `evaluate`
    attention = {"rawattention", "attentionrollout", "transformerattribution"}
    of_transformers = opti_cam_study_imagenet(kind="transformer").options["methods"]
    assert set(of_transformers) == {*rows, "opticam", *attention} - {"ablationcam"}
    aopc, sensitivity = options["metrics"]["aopc"], options["metrics"]["max_sensitivity"]
    assert (aopc.patch, aopc.steps, sensitivity.radius, sensitivity.n) == (14, 10, 0.2, 10)
    assert options["target"] == "label"


def test_it_ends_with_a_table_the_seconds_and_a_picture(backbone, tmp_path):
    study = opti_cam_study(image_size=32, max_images=3, steps=1, draws=1, output=str(tmp_path / "runs"))
    kept = {name: study.options["methods"][name] for name in ("opticam", "gradcam", "extremalperturbation")}
    study.options["methods"] = kept | {"opticam": OptiCAM(steps=1)}
    text = opti_cam_study_report(study)
    folder = tmp_path / "runs" / "opti_cam_study" / "version_0"
    assert {"table.txt", "table.tex", "curves.png", "maps.png", "seconds.csv"} <= {p.name for p in folder.iterdir()}
    assert "seconds for 8 images" in text
    with open(folder / "seconds.csv", encoding="utf-8") as file:
        assert [row[0] for row in csv.reader(file)][1:] == list(kept)
    with open(folder / "table.csv", encoding="utf-8") as file:
        assert {row["method"] for row in csv.DictReader(file)} == {*kept, "fakecam", "random"}


def test_seconds_are_those_of_the_second_call(backbone, monkeypatch):
    study = opti_cam_study(image_size=16)
    shapes = []

    def watched(method, model, images, target):
        shapes.append(images.shape)
        return images[:, 0]

    monkeypatch.setattr(GradCAM, "__call__", watched)
    monkeypatch.setattr("time.perf_counter", iter([0.0, 100.0, 100.0, 103.0]).__next__)
    study.options["methods"] = {"gradcam": GradCAM()}
    assert seconds(study) == {"gradcam": 3.0}
    assert shapes == [(8, 3, 16, 16)] * 2


def test_examples_are_the_first_of_each_class(backbone):
    study = opti_cam_study(image_size=16)
    images, target, printed = study.examples(3)
    data = ShapesDataModule(image_size=16)
    data.setup("validate")
    first = {}
    for image, c in data.splits["val"]:
        first.setdefault(c, image)
    assert list(printed) == ["image"]
    assert torch.equal(images, torch.stack([first[c] for c in target.tolist()]))
    assert len(set(target.tolist())) == 3
