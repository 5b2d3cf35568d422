"""Pictures, names and files that nobody means well with: a line each, and the rest of the work goes on."""

import csv
import io
import os
import struct
import zlib
from pathlib import Path

import pytest
import torch
from PIL import Image

from interpretable_training.cli import main
from interpretable_training.modules import Classifier
from interpretable_training.text_tables import csv_text

ESC = "\x1b]0;theirs\x07\x1b[31m"


def checkpoint(**changes):
    """Of a network for images of 16 x 16, whose class names would move a cursor."""
    module = Classifier("tiny_cnn", 2)
    told = {"module": "Classifier", "image_shape": [3, 16, 16], "class_names": [f"{ESC}one", f"{ESC}two"]}
    values = {"network": "tiny_cnn", "num_classes": 2, **changes}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": values, "pictures": told}, "some.ckpt")
    return "some.ckpt"


def huge_png(side):
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mistake(capsys):
    """Runs a command that has to fail, and returns what it says in one paragraph."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
        said = capsys.readouterr().err
        assert "Traceback" not in said
        return said.strip().splitlines()[-1]

    return run


def test_pictures_that_cannot_be_read_leave_the_others_alone(folder, capsys):
    pictures = folder / "pictures"
    pictures.mkdir()
    Image.new("RGB", (20, 20)).save(pictures / f"good{ESC}.png")
    Image.new("RGB", (20, 20)).save(pictures / "other.png")
    (pictures / "huge.png").write_bytes(huge_png(60000))
    (pictures / "empty.png").write_bytes(b"")
    (pictures / "cut.png").write_bytes((pictures / "other.png").read_bytes()[:45])
    (pictures / "text.jpg").write_text("<svg/>")
    os.mkfifo(pictures / "pipe.png")
    (pictures / "folder.png").mkdir()
    (pictures / "endless.png").symlink_to("/dev/zero")
    (pictures / "loop.png").symlink_to("loop.png")
    main(["explain", "--model", checkpoint(), "--images", "pictures", "pictures/pipe.png", "--output", "out"])
    said = capsys.readouterr()
    for name in ("huge.png", "empty.png", "cut.png", "text.jpg", "pipe.png", "endless.png", "loop.png"):
        assert f"left out pictures/{name}: " in said.err
    assert len([path for path in (folder / "out").glob("*.png") if path.name != "sheet.png"]) == 2
    assert "other.png" in said.out
    assert "one" in said.out + said.err or "two" in said.out + said.err
    assert not {"\x1b", "\x07"} & {*said.out, *said.err}


def test_a_paragraph_holds_no_control_characters(mistake):
    said = mistake("explain", "--model", f"{ESC}.ckpt", "--images", checkpoint())
    assert "\x1b" not in said


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_text_is_no_formula_in_a_spreadsheet(start):
    rows = [[f"{start}cmd|' /C calc'!A0", -1.5, "-1.5", "plain", None, "1e-3"]]
    read = next(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert read == [f"'{start.replace(chr(13), ' ')}cmd|' /C calc'!A0", "-1.5", "-1.5", "plain", "", "1e-3"]


CONFIG = Path(__file__).parents[2] / "configs" / "baseline.yaml"


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "bomb.yaml"], "expected YAML of at most"),
        (["--config", "itself.yaml"], "expected YAML of at most"),
        (["--config", "latin.yaml"], "expected files in UTF-8, got ['latin.yaml']"),
        (["--config", str(CONFIG), "--seed_everything", "-1"], "expected seed_everything from 0 to 4294967295, got -1"),
        (["--config", str(CONFIG), "--seed_everything", "9" * 30], "expected seed_everything from 0"),
        (["--config", str(CONFIG), "--ckpt_path", "folder.ckpt"], "got 'folder.ckpt', which is a folder"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_a_file_or_number_that_cannot_be_meant_is_one_paragraph(folder, mistake, words, said):
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9)]
    (folder / "bomb.yaml").write_text("\n".join(["x0: &x0 [1, 1]", *levels]))
    (folder / "itself.yaml").write_text("model: &x [1, *x]")
    (folder / "latin.yaml").write_bytes("seed_everything: 0 # é".encode("latin-1"))
    (folder / "folder.ckpt").mkdir()
    assert said in mistake("test", *words)


@pytest.mark.parametrize("number", [-1, 0, 10**9, 2**70, "many", None])
def test_a_number_of_classes_that_cannot_be_is_one_paragraph(folder, mistake, number):
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    said = mistake("explain", "--model", checkpoint(num_classes=number), "--images", "a.png")
    assert "expected a checkpoint of 1 to 1000000 classes" in said
