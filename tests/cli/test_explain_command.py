"""`interpretable-training explain`: anybody's pictures, a trained network."""

import json
import re
import sys
from pathlib import Path

import lightning as L
import numpy as np
import pytest
import torch
from PIL import Image

from interpretable_training.cli import main
from interpretable_training.cli.explained_network import from_checkpoint
from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a network for images of 32 x 48."""
    folder = tmp_path_factory.mktemp("trained")
    L.seed_everything(0, verbose=False)
    data = ShapesDataModule((32, 48), n_train=12, n_val=6, batch_size=6)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(max_epochs=1, accelerator="cpu", default_root_dir=folder, **quiet)
    trainer.fit(Classifier("tiny_cnn", 6), data)
    return next(folder.rglob("*.ckpt"))


@pytest.fixture
def pictures(tmp_path, monkeypatch):
    """A folder with pictures of several kinds and sizes; tests run beside it."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "pictures"
    (folder / "more").mkdir(parents=True)
    values = np.random.default_rng(0).integers(0, 255, (40, 60, 4), dtype=np.uint8)
    Image.fromarray(values[..., :3]).save(folder / "a.png")
    Image.fromarray(values).save(folder / "more" / "a.png")  # with transparency, and the same name
    Image.fromarray(values[:20, :50, 0]).save(folder / "gray & <b>ild é.jpg")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nno picture")
    (folder / "notes.txt").write_text("no picture")
    return folder


def test_explain_writes_overlays_sheet_and_page(checkpoint, pictures, capsys):
    words = ["--images", str(pictures), "--methods", "gradcam", "LayerCAM", "--output", "out"]
    main(["explain", "--model", str(checkpoint), *words])
    out = pictures.parent / "out"
    overlays = [path for path in out.glob("*.png") if path.name != "sheet.png"]
    assert len(overlays) == 6  # three pictures, two methods
    assert {Image.open(path).size for path in overlays} == {(48, 32)}
    assert Image.open(out / "sheet.png").width > 3 * 100
    page = (out / "index.html").read_text()
    assert "<b>ild" not in page
    lines = [json.loads(line) for line in (out / "journal" / "journal.jsonl").read_text().splitlines()]
    texts = [line for line in lines if line["kind"] == "maps"]
    assert {line["stage"] for line in texts} == {"explain"}  # the page speaks of pictures, not of a training
    names = [row["id"] for row in texts[0]["rows"]]
    assert [name.rpartition("pictures/")[2] for name in names] == ["a.png", "gray & <b>ild é.jpg", "more/a.png"]
    printed = capsys.readouterr()
    assert "left out" in printed.err
    assert "broken.png" in printed.err
    assert re.search(r"explain:.*3/\d \[", printed.err)  # the bar moves with each picture
    assert len(re.findall(r"^  \S.*\.(?:png|jpg)  \w+ 0\.\d\d", printed.out, re.M)) == 3


def test_checkpoint_has_classes_and_colors(checkpoint):
    subject = from_checkpoint(checkpoint, None)
    assert subject.class_names == ["circle", "square", "triangle", "star", "cross", "ring"]
    assert subject.shape == (3, 32, 48)
    data = ShapesDataModule((32, 48), n_train=6, n_val=6)
    data.setup("fit")
    image, _ = data.splits["val"][0]
    drawn = data.splits["val"].tensors["image"][0].permute(1, 2, 0).numpy()
    torch.testing.assert_close(subject.prepare(Image.fromarray(drawn)), image, atol=1e-5, rtol=0)


def test_pictures_are_scaled_and_cropped_at_center(checkpoint):
    """40 x 48 is cut to 32 x 48: four rows go at each side."""
    values = np.zeros((40, 48, 3), np.uint8)
    values[4:36] = 255
    image = from_checkpoint(checkpoint, None).prepare(Image.fromarray(values))
    assert float(image.std()) < 1e-6


def test_target_can_be_name_of_class(checkpoint, pictures):
    words = ["--images", str(pictures / "a.png"), "--target", "ring", "--output", "out"]
    main(["explain", "--model", str(checkpoint), *words])
    lines = (pictures.parent / "out" / "journal" / "journal.jsonl").read_text().splitlines()
    (maps,) = [line for line in map(json.loads, lines) if line["kind"] == "maps"]
    assert maps["rows"][0]["target"] == 5


def test_timm_model_has_random_weights_by_default(pictures, capsys):
    main(["explain", "--model", "test_resnet", "--images", str(pictures / "a.png"), "--output", "out"])
    assert "test_resnet has random weights; pass --pretrained" in capsys.readouterr().err
    assert len(list((pictures.parent / "out").glob("a-gradcam.png"))) == 1


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--images", "pictures", "--methods", "GradCM"],
            "expected the name of a method, such as 'GradCAM', got 'GradCM'; closest: ['GradCAM",
        ),
        (
            ["--images", "pictues"],
            "expected images as files or folders that exist, got 'pictues'; closest: ['pictures']",
        ),
        (["--images", "pictures/notes.txt", "--methods", "GradCAM"], "expected maps of at least one picture, got none"),
        (["--images", "pictures", "--target", "rign"], "Closest among the names of the classes: ['ring'"),
        (["--images", "pictures", "--target", "label"], "expected a target that needs no labels, got 'label'"),
        (["--images", "pictures", "--model", "nothing.ckpt"], "expected a checkpoint that exists, got 'nothing.ckpt'"),
        (["--images", "pictures", "--model", "resnet81"], "expected the name of a network, got 'resnet81'"),
    ],
)
def test_mistakes_of_explain_are_one_paragraph(checkpoint, pictures, capsys, words, message):
    with pytest.raises(SystemExit) as ended:
        main(["explain", "--model", str(checkpoint), *words, "--output", "out"])
    assert ended.value.code == 2
    assert message in " ".join(capsys.readouterr().err.split())


def test_foreign_checkpoints_are_refused(pictures, tmp_path, capsys):
    torch.save({"state_dict": {}}, tmp_path / "other.ckpt")
    with pytest.raises(SystemExit):
        main(["explain", "--model", str(tmp_path / "other.ckpt"), "--images", str(pictures)])
    assert "expected a checkpoint of ['Classifier', 'CAStreamClassifier'" in " ".join(capsys.readouterr().err.split())


NETWORKS = """
from torch import nn

class MyNet(nn.Sequential):
    def __init__(self, num_classes: int):
        layers = nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, num_classes)
        super().__init__(*layers)

open("IMPORTED", "w")
"""


@pytest.fixture
def checkpoint_of_own_network(pictures, tmp_path, monkeypatch):
    """Of a network of a user's, in a module of the working folder that leaves a file when it is imported."""
    (tmp_path / "my_networks.py").write_text(NETWORKS)
    values = {"num_classes": 2, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    values["network"] = {"class_path": "my_networks.MyNet", "init_args": {"num_classes": 2}}
    weights = {"4.weight": torch.zeros(2, 4), "4.bias": torch.zeros(2)}
    weights |= {"0.weight": torch.ones(4, 3, 3, 3), "0.bias": torch.zeros(4)}
    state = {f"network.{name}": value for name, value in weights.items()}
    facts = {"module": "Classifier", "image_shape": [3, 16, 16]}
    torch.save({"state_dict": state, "hyper_parameters": values, "pictures": facts}, tmp_path / "my.ckpt")
    monkeypatch.setattr(sys, "path", [*sys.path])
    yield "my.ckpt"
    sys.modules.pop("my_networks", None)


def test_own_network_is_imported_by_name_only(checkpoint_of_own_network, pictures, capsys):
    words = ["explain", "--model", checkpoint_of_own_network, "--images", str(pictures / "a.png")]
    with pytest.raises(SystemExit) as ended:
        main(words)
    assert ended.value.code == 2
    text = " ".join(capsys.readouterr().err.split())
    assert "expected the class path of an imported network" in text
    assert "got 'my_networks.MyNet'; a checkpoint may name" in text
    assert "If you trust the module, import it first (explain: --import MODULE," in text
    assert not Path("IMPORTED").exists()
    main([*words, "--import", "my_networks"])
    assert Path("IMPORTED").exists()
    assert Path("explanations/index.html").exists()


@pytest.mark.parametrize("name", ["my_netwroks", "my-networks", ".my_networks", "my_networks.MyNet"])
def test_module_that_cannot_be_imported_is_named(checkpoint_of_own_network, pictures, capsys, name):
    words = ["--model", checkpoint_of_own_network, "--images", str(pictures / "a.png")]
    with pytest.raises(SystemExit):
        main(["explain", *words, "--import", name])
    assert f"expected the name of a module for --import, got '{name}' (" in " ".join(capsys.readouterr().err.split())
