import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from support.full_disk import files_of_at_most, small_disk
from torch.testing import assert_close

from interpretable_training.report.journal import FILE, Journal, read_journal, safe_name

UNSAFE = ["", ".", "..", "a/b", "a\\b", "a b", "../../etc/passwd", "/root", "con", "CON", "nul", "com1", "A", "Ä", "🦊"]
UNSAFE += [
    "🦊🦊",
    '"quoted"',
    "it's",
    "<img src=x onerror=alert(1)>",
    "x" * 300,
    "x" * 299 + "y",
    "a\nb",
    "a\0b",
    "\ud800",
]
UNSAFE += ["a~1", "a.png", "-x", "_x", "a:b", "a*b", "trailing.", "a\u200bb"]
SAFE = ["17", "a", "a-b", "a_b", "a-1", "gradcam-pred-e3", "x" * 60]


def kinds(record):
    return [line["kind"] for line in record.lines]


@pytest.fixture
def journal(tmp_path):
    return Journal(tmp_path / "explanations")


def test_journal_lines_are_read_in_order(journal):
    journal.write("run", classes=["a", "b"])
    journal.write("values", epoch=0, step=3, values={"x": 1})
    record = read_journal(journal.folder)
    assert kinds(record) == ["run", "values"]
    assert record.of("values")[0]["values"] == {"x": 1}
    assert record.lines[0]["time"] <= record.lines[1]["time"]
    assert not record.missing


def test_journal_converts_values_to_json(journal):
    journal.write(
        "values",
        values={"nan": float("nan"), "inf": torch.tensor(-torch.inf), "half": torch.tensor(0.5, dtype=torch.bfloat16)},
        array=np.array([1, 2]),
        scalar=np.float32(0.25),
        flag=np.bool_(True),
        place=Path("a"),
        pairs={1: (2.0, {3})},
    )
    text = (journal.folder / FILE).read_text()
    line = json.loads(text, parse_constant=pytest.fail)  # NaN is not JSON
    assert line["values"] == {"nan": None, "inf": None, "half": 0.5}
    assert (line["array"], line["scalar"], line["flag"], line["place"]) == ([1, 2], 0.25, True, "a")
    assert line["pairs"] == {"1": [2.0, [3]]}


def test_read_journal_refuses_a_folder_without_journal(tmp_path):
    with pytest.raises(FileNotFoundError, match="expected a folder with"):
        read_journal(tmp_path)


def test_saved_maps_keep_their_values_within_half_a_level(journal):
    maps = (
        torch.rand(3, 20, 30, generator=torch.Generator().manual_seed(0)) * torch.tensor([1, 10, 0.01])[:, None, None]
    )
    file, scale = journal.save_maps("gradcam-e0", maps)
    with Image.open(journal.folder / file) as strip:
        assert (strip.mode, strip.size) == ("L", (30, 60))
        levels = torch.from_numpy(np.array(strip)).view(3, 20, 30)
    lo, hi = torch.tensor(scale).T[:, :, None, None]
    assert_close(lo.flatten(), maps.amin((1, 2)))
    assert_close(hi.flatten(), maps.flatten(1).quantile(0.99, 1))
    error = (lo + levels / 255 * (hi - lo) - maps.minimum(hi)).abs().amax((1, 2))
    assert (error <= (hi - lo).flatten() / 255 / 2 * 1.001).all()


def test_large_maps_are_averaged_down(journal):
    maps = torch.zeros(2, 112, 224)
    maps[0, 0, 0] = 16.0  # one pixel of the sixteen that become one
    file, scale = journal.save_maps("big", maps.to(torch.bfloat16))
    with Image.open(journal.folder / file) as strip:
        assert strip.size == (56, 2 * 28)
        assert strip.getpixel((0, 0)) == 255
    assert scale == [(0.0, 1.0), (0.0, 0.0)]


def test_infinite_and_constant_maps_are_black(journal):
    maps = torch.full((3, 8, 8), 5.0)
    maps[0, 0, 0], maps[1, 0, 0] = torch.nan, torch.inf
    file, scale = journal.save_maps("bad", maps)
    with Image.open(journal.folder / file) as strip:
        assert strip.getextrema() == (0, 0)
    assert scale == [(0.0, 0.0), (0.0, 0.0), (5.0, 5.0)]


@pytest.mark.parametrize("channels", [1, 3, 5])
def test_pictures_are_written_once_without_loss(journal, channels):
    picture = torch.rand(channels, 6, 9, generator=torch.Generator().manual_seed(1))
    for _ in range(3):
        journal.save_image("17", picture, label=torch.tensor(3))
    journal.save_image("18", picture.mul(255).byte().permute(1, 2, 0)[..., :1].expand(-1, -1, 3))
    lines = read_journal(journal.folder).of("image")
    assert [(line["id"], line["label"]) for line in lines] == [("17", 3), ("18", None)]
    expected = (picture if channels == 3 else picture.mean(0).expand(3, -1, -1)).mul(255).round().byte()
    with Image.open(lines[0]["file"]) as kept:
        assert_close(torch.from_numpy(np.array(kept)).permute(2, 0, 1), expected)


def test_file_names_are_safe_and_unique(journal):
    names = [safe_name(name) for name in UNSAFE + SAFE]
    assert [name for name in SAFE if safe_name(name) != name] == []
    assert [name for name in UNSAFE if safe_name(name) == name] == []
    assert len({name.lower() for name in names}) == len(names)
    for index, name in enumerate(UNSAFE):
        journal.save_image(name, torch.full((3, 4, 4), index / 100), label=index)
        journal.save_maps(name, torch.rand(1, 4, 4))
        journal.save_panel(name, Image.new("RGB", (4, 4)))
    top = journal.folder.parent
    assert {path.name for path in top.iterdir()} == {"explanations"}
    assert {path.name for path in journal.folder.iterdir()} == {FILE, "images", "maps", "panels"}
    lines = read_journal(journal.folder).of("image")
    assert [line["id"] for line in lines] == UNSAFE  # also what no file system takes
    assert len({line["file"] for line in lines}) == len(UNSAFE)
    for index, line in enumerate(lines):
        assert line["file"].parent == journal.folder / "images"
        with Image.open(line["file"]) as kept:
            assert kept.getpixel((0, 0))[0] == round(255 * index / 100)


def test_existing_files_are_not_overwritten(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    first.save_image("1", torch.zeros(3, 4, 4))
    second.save_image("1", torch.ones(3, 4, 4))
    shared = [journal.save_maps("m", torch.eye(4)[None])[0] for journal in (first, second)]
    assert shared[0] == shared[1]  # the same bytes lie there already
    assert second.save_maps("m", 1 - torch.eye(4)[None])[0] != shared[0]
    for journal, value in ((first, 0), (second, 255)):
        (line,) = read_journal(tmp_path, journal.run).of("image")
        with Image.open(line["file"]) as kept:
            assert kept.getpixel((0, 0)) == (value,) * 3


def test_two_runs_in_one_folder_are_separated(tmp_path):
    first, second = Journal(tmp_path), Journal(tmp_path)
    for epoch in range(3):
        for name, journal in (("first", first), ("second", second)):
            journal.write("values", epoch=epoch, step=epoch, values={name: 1})
    for name, run in (("first", first.run), ("second", second.run), ("second", None)):
        record = read_journal(tmp_path, run)
        assert [line["values"] for line in record.lines] == [{name: 1}] * 3
        assert record.missing == [f"1 other runs in {tmp_path}"]


@pytest.mark.parametrize("cut", [1, 20, -1])
def test_cut_off_line_is_skipped_alone(journal, cut):
    for step in range(3):
        journal.write("values", step=step, name="ä", values={})
    path = journal.folder / FILE
    lines = path.read_bytes().splitlines()
    path.write_bytes(b"\n".join([*lines[:2], lines[2][:cut]]))
    journal.write("values", step=3, values={})
    record = read_journal(journal.folder)
    assert [line["step"] for line in record.lines] == [0, 1, 3]
    assert record.missing == [f"1 broken lines of {path}"]


def test_invalid_lines_are_counted(journal):
    journal.write("run")
    with (journal.folder / FILE).open("ab") as file:
        file.write(b'[1]\n\xff\xfe\n{"no": "kind"}\n17\n\n')
    journal.write("values", step=0, values={})
    record = read_journal(journal.folder)
    assert kinds(record) == ["run", "values"]
    assert record.missing[0].startswith("4 broken lines")


def test_full_disk_raises_and_later_lines_stay_readable(journal):
    journal.write("values", step=0, values={})
    size = (journal.folder / FILE).stat().st_size
    with files_of_at_most(size + 30):
        with pytest.raises(OSError, match="too large"):
            journal.write("values", step=1, values={})
        with pytest.raises(OSError, match="too large"):
            journal.save_image("1", torch.rand(3, 64, 64))
        with pytest.raises(OSError, match="too large"):
            journal.save_maps("m", torch.rand(16, 56, 56))
    assert (journal.folder / FILE).stat().st_size == size + 30  # half a line
    assert [path.name for room in ("images", "maps") for path in (journal.folder / room).iterdir()] == []
    journal.save_image("1", torch.rand(3, 64, 64))
    record = read_journal(journal.folder)
    assert kinds(record) == ["values", "image"]
    assert len(record.missing) == 1
    with Image.open(record.lines[1]["file"]) as kept:
        assert kept.size == (64, 64)


def fill(journal):
    for step in range(100):
        journal.save_maps(f"m{step}", torch.rand(16, 56, 56))
        journal.write("maps", step=step)


def test_full_tmpfs_raises_and_later_lines_stay_readable(tmp_path):
    with small_disk(tmp_path / "small", "64k") as folder:
        journal = Journal(folder / "explanations")
        journal.write("run")
        with pytest.raises(OSError, match="No space left"):
            fill(journal)
        with pytest.raises(OSError, match="No space left"):
            journal.write("values", text="x" * 100_000, values={})
        for path in (journal.folder / "maps").iterdir():
            path.unlink()
        journal.write("values", step=1, values={})
        assert kinds(read_journal(journal.folder))[:: len(read_journal(journal.folder).lines) - 1] == ["run", "values"]


def test_bytes_written_equal_those_on_disk(journal):
    journal.write("run", classes=["ä"])
    journal.save_image("1", torch.rand(3, 8, 8))
    journal.save_maps("m", torch.rand(2, 8, 8))
    journal.save_panel("p", Image.new("RGB", (8, 8)))
    on_disk = sum(path.stat().st_size for path in journal.folder.rglob("*") if path.is_file())
    assert journal.bytes_written == on_disk


def test_resumed_run_replaces_lines_after_its_checkpoint(tmp_path):
    first = Journal(tmp_path)
    first.write("passport", metric="m", facts={})
    for step in (2, 4, 6):
        first.write("values", step=step, by="first", values={})
    second = Journal(tmp_path)
    second.run = first.run  # out of the checkpoint
    second.write("resume", step=4)
    second.write("values", step=6, by="second", values={})
    record = read_journal(tmp_path)
    assert kinds(record) == ["passport", "values", "values", "resume", "values"]
    assert [(line["step"], line["by"]) for line in record.of("values")] == [(2, "first"), (4, "first"), (6, "second")]


def test_run_resumed_in_another_folder_is_read_as_one(tmp_path):
    old, new = Journal(tmp_path / "version_0" / "explanations"), Journal(tmp_path / "version_1" / "explanations")
    new.run = old.run
    old.save_image("1", torch.rand(3, 4, 4))
    for step in (2, 4, 6):
        old.write("values", step=step, values={})
    new.write("run")
    new.write("continued", folder=os.path.relpath(old.folder, new.folder), step=4)
    new.write("values", step=5, values={})
    record = read_journal(new.folder)
    assert [line["step"] for line in record.of("values")] == [2, 4, 5]
    assert record.of("image")[0]["file"].is_file()
    for path in old.folder.rglob("*.*"):
        path.unlink()
    record = read_journal(new.folder)
    assert [line["step"] for line in record.of("values")] == [5]
    assert "of the resumed run" in record.missing[0]


def test_runs_that_resume_each_other_are_read(tmp_path):
    one, two = Journal(tmp_path / "1"), Journal(tmp_path / "2")
    one.write("continued", folder="../2", step=9)
    two.write("continued", folder="../1", step=9)
    assert len(read_journal(one.folder).missing) == 1


def test_the_journal_needs_no_lightning():
    code = "import sys, interpretable_training.report.journal\n"
    code += "print({'lightning', 'wandb', 'matplotlib'} & set(sys.modules))"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert out.strip() == "set()"
