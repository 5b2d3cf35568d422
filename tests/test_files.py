"""Files are written whole or not at all, also when the disk fills up halfway."""

import random
import subprocess
import sys

import pytest
import torch
from PIL import Image
from support.full_disk import files_of_at_most
from torch import nn

from interpretable_training.attribution import GradCAM
from interpretable_training.files import save_figure, save_picture, whole_file, write_whole
from interpretable_training.metrics import Deletion, evaluate
from interpretable_training.report.journal import Journal
from interpretable_training.report.page import write_report
from interpretable_training.visual import draw_curves, draw_faithfulness, draw_series
from interpretable_training.visual.sweep_plots import Scale, draw_sweep

NOISE = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(3 * 64 * 64))


@pytest.fixture(scope="module")
def table():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    data = torch.rand(4, 3, 8, 8), torch.tensor([0, 1, 0, 1])
    return evaluate(model, GradCAM(), Deletion(steps=3), data, resamples=10, progress=False)


@pytest.fixture(scope="module")
def journal(tmp_path_factory):
    journal = Journal(tmp_path_factory.mktemp("run") / "explanations")
    journal.write("run", model="Net")
    return journal


WRITERS = {
    "text": lambda path, *_: write_whole(path, "line\n" * 1000),
    "picture.png": lambda path, *_: save_picture(NOISE, path),
    "picture.jpg": lambda path, *_: save_picture(NOISE, path),
    "report.html": lambda path, table, journal: write_report(journal.folder, path),
    "curves.png": lambda path, *_: draw_curves([{"epoch": 0, "train/loss": 1.0}], path),
    "drop.png": lambda path, table, journal: draw_faithfulness(table, path),
    "series.png": lambda path, *_: draw_series(torch.rand(1, 2, 9), torch.rand(1, 9), path),
    "sweep.png": lambda path, *_: draw_sweep([Scale("x")], [({"x": 1.0}, 2.0), ({"x": 2.0}, 1.0)], "loss", path),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("before", [None, b"what was there"], ids=["new", "old"])
def test_full_disk_leaves_old_file(tmp_path, table, journal, name, before):
    def write(path):
        WRITERS[name](path, table, journal)

    path = tmp_path / name
    if before is not None:
        path.write_bytes(before)
    with files_of_at_most(400), pytest.raises(OSError, match="too large"):
        write(path)
    assert [file.read_bytes() for file in tmp_path.iterdir()] == ([] if before is None else [before])
    write(path)
    assert [file.name for file in tmp_path.iterdir()] == [name]
    assert path.stat().st_size > 400
    if path.suffix in (".png", ".jpg"):
        with Image.open(path) as picture:
            picture.load()


def test_table_on_full_disk_leaves_old_files(tmp_path, table):
    files = table.save(tmp_path)
    before = {file: file.read_bytes() for file in files}
    smallest = min(map(len, before.values()))
    with files_of_at_most(smallest - 1), pytest.raises(OSError, match="too large"):
        table.save(tmp_path)
    assert {file: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_interrupt_leaves_old_file(tmp_path):
    path = tmp_path / "a.txt"
    write_whole(path, "old")
    with pytest.raises(KeyboardInterrupt), whole_file(path) as beside:  # noqa: PT012
        beside.write_text("half")
        assert beside.parent == path.parent  # a rename between two disks would be a copy
        raise KeyboardInterrupt
    assert [file.read_text() for file in tmp_path.iterdir()] == ["old"]


def test_written_files_keep_permissions_and_links(tmp_path):
    (tmp_path / "plain").write_text("")
    (tmp_path / "link").symlink_to(tmp_path / "target")
    write_whole(tmp_path / "link", "text")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "target").read_text() == "text"
    assert (tmp_path / "target").stat().st_mode == (tmp_path / "plain").stat().st_mode


def test_figure_without_suffix_is_png(tmp_path):
    from matplotlib.figure import Figure

    save_figure(Figure(), tmp_path / "figure", 50)
    with Image.open(tmp_path / "figure.png") as picture:
        assert picture.format == "PNG"


KILLED = """
import sys, time
from interpretable_training.files import whole_file
with whole_file(sys.argv[1]) as beside:
    beside.write_text("half")
    print("now", flush=True)
    time.sleep(60)
"""


def test_killed_process_leaves_old_file(tmp_path):
    write_whole(tmp_path / "a.txt", "old")
    process = subprocess.Popen([sys.executable, "-c", KILLED, tmp_path / "a.txt"], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "now\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert (tmp_path / "a.txt").read_text() == "old"
    assert [file.name for file in tmp_path.glob("*.txt") if not file.name.startswith(".")] == ["a.txt"]
