"""Every data set is trained and measured on from the command line, by the short name of its class."""

import pytest
from support.data_trees import cub, folders, imagenet, voc, waterbirds

from interpretable_training import data as room
from interpretable_training.cli import main
from interpretable_training.data.image_files import class_folders
from interpretable_training.data.imagenet import ImageNetDataModule

COMMON = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
COMMON += ["--data.image_size=[16,20]", "--data.batch_size=2"]
ROOTS = {
    "ImageNetDataModule": (imagenet, 3, []),
    "CUBDataModule": (cub, 2, ["--data.annotations=true"]),
    "PascalVOCDataModule": (voc, 20, ["--model.multilabel=true", "--data.annotations=true", "--data.masks=true"]),
    "WaterbirdsDataModule": (waterbirds, 2, ["--data.annotations=true"]),
    "ImageFolderDataModule": (lambda root: folders(root, (8, 8, 8)), 3, []),
}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("name", ROOTS)
def test_fit_and_test(folder, name):
    make, classes, words = ROOTS[name]
    root = make(folder / "data")
    model = ["--model=Classifier", "--model.network=tiny_cnn", f"--model.num_classes={classes}"]
    for command in ("fit", "test"):
        main([command, *model, f"--data={name}", f"--data.root={root}", *words, *COMMON, "--trainer.fast_dev_run=1"])


DRAWN = {
    "ShapesDataModule": (6, ["--data.n_train=8", "--data.n_val=4", "--data.n_test=4", "--data.cue=background"]),
    "DigitsDataModule": (10, []),
}


@pytest.mark.parametrize("name", DRAWN)
def test_cues_are_options_of_the_command(name):
    classes, words = DRAWN[name]
    model = ["--model=Classifier", "--model.network=tiny_cnn", f"--model.num_classes={classes}"]
    model += ['--model.network_kwargs={"channels": 1}'] if name == "DigitsDataModule" else []
    words = [*words, "--data.shortcut=0.9", "--data.shortcut_val=swapped", "--data.annotated=0.5"]
    words += ["--data.annotations=true", "--data.image_size=16", "--trainer.fast_dev_run=1"]
    main(["fit", *model, f"--data={name}", *words, *COMMON[:3]])


def test_transforms_are_named_in_yaml(folder, monkeypatch):
    seen = []
    monkeypatch.setattr("lightning.Trainer.fit", lambda trainer, model, datamodule, **_: seen.append(datamodule))
    root = imagenet(folder / "data")
    (folder / "run.yaml").write_text(
        f"""
model: {{class_path: Classifier, init_args: {{network: tiny_cnn, num_classes: 3}}}}
data:
  class_path: ImageNetDataModule
  init_args:
    root: {root}
    image_size: 16
    train_transform:
      class_path: torchvision.transforms.v2.Compose
      init_args:
        transforms:
          - {{class_path: torchvision.transforms.v2.RandAugment}}
          - {{class_path: torchvision.transforms.v2.CenterCrop, init_args: {{size: 12}}}}
"""
    )
    main(["fit", "--config", "run.yaml"])
    data = seen[0]
    assert isinstance(data, ImageNetDataModule)
    data.setup("fit")
    assert [data.splits[split][0][0].shape[1] for split in ("train", "val")] == [12, 16]


def test_missing_data_are_one_paragraph(folder, capsys):
    model = ["--model=Classifier", "--model.network=tiny_cnn", "--model.num_classes=3"]
    with pytest.raises(SystemExit) as caught:
        main(["fit", *model, "--data=ImageNetDataModule", "--data.root=nowhere", *COMMON])
    assert caught.value.code == 2
    error = capsys.readouterr().err
    assert "Traceback" not in error
    assert "expected photographs of ImageNet in 'train' at" in error
    assert "image-net.org" in error


def test_every_data_module_is_public():
    modules = {name for name in room.__all__ if name.endswith("DataModule")}
    assert ROOTS.keys() | {"CIFAR100DataModule", "DigitsDataModule", "ShapesDataModule"} < modules


def test_what_a_class_folder_is(folder):
    for name in ("cat", ".git", "__MACOSX"):
        (folder / name).mkdir()
    (folder / "list.txt").write_text("no folder")
    assert class_folders(folder) == ["cat"]
