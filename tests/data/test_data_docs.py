"""The page on data sets says what is true: its code runs on small data sets in the layouts that it shows."""

import re
from pathlib import Path

import pytest
import yaml
from support import pages
from support.data_trees import cub, folders, imagenet, noise, voc, waterbirds, xml

from interpretable_training import data as room

PAGE = pages.ROOT / "docs" / "data.md"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The data sets of the page, small."""
    monkeypatch.chdir(tmp_path)
    imagenet("imagenet")
    xml("imagenet/Annotations/CLS-LOC/val/n01440764_0.xml", [("n01440764", (8, 4, 19, 15), False)])
    cub("data")
    voc("data")
    waterbirds("data")
    folders("kvasir-dataset-v2", (8, 8), ("polyps", "ulcerative-colitis"))
    for split in ("train", "val", "test"):
        folders(f"chest_xray/{split}", (4, 4), ("NORMAL", "PNEUMONIA"))
    noise("chest_xray/test/PNEUMONIA/person1_virus_6.jpeg", 0)
    lines = re.search(r"```\n(image,x1,y1,x2,y2\n.*?)```", PAGE.read_text(), re.DOTALL)
    Path("boxes.csv").write_text(lines[1])
    for split in ("train", "val", "test"):
        noise(f"flowers/{split}/rose_1.jpg", 1)
        noise(f"flowers/{split}/tulip_7.jpg", 2)
    return tmp_path


def test_the_code_runs(folder):
    known = pages.run(PAGE, {})
    assert known["table"].cells
    assert {*known["groups"]} == {"landbird, land", "landbird, water", "waterbird, land", "waterbird, water"}
    assert known["names"] == ["Black footed Albatross", "Laysan Albatross"]
    assert known["batch"]["mask"].shape[1:] == (64, 64)
    assert [target for _, target in known["data"].splits["test"]] == [0, 1]


def test_the_yaml_names_what_there_is():
    results = [yaml.safe_load(code)["data"] for _, code in pages.blocks(PAGE, "yaml")]
    assert [options["class_path"] for options in results] == ["ImageFolderDataModule"]


def test_every_data_module_is_in_the_table():
    rows = re.findall(r"^\| `(\w+DataModule)` \|", PAGE.read_text(), re.MULTILINE)
    assert {*rows} == {name for name in room.__all__ if name not in ("SeededDataModule", "PicturesDataModule")}
