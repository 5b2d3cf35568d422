"""Adapters of Comet (offline), Aim and Trackio (in folders), read back; Neptune with a double that records calls."""

import importlib.util
import io
import json
import os
import subprocess
import sys
import textwrap
import types
import zipfile
from pathlib import Path

import lightning as L
import numpy as np
import pytest
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from interpretable_training.callbacks.watching.logger_adapters import (
    adapter,
    alert,
    log_facts,
    log_images,
    log_report,
    log_summary,
    log_table,
)

PICTURES = [np.full((16, 24, 3), 60 * i, np.uint8) for i in range(2)]


class Holder(DummyLogger):
    """A project's own logger: `experiment` is that of a tracker."""

    def __init__(self, experiment):
        super().__init__()
        self._own = experiment

    experiment = property(lambda self: self._own)


def send_everything(experiment, folder):
    trainer = L.Trainer(logger=Holder(experiment), accelerator="cpu", enable_checkpointing=False, max_epochs=1)
    log_images(trainer, {"xai/gradcam": (PICTURES, ["first", "sécond"])}, step=3, epoch=1)
    log_table(trainer, "xai/table", ["id", "name"], [["17", "a"], ["2", "b"]])
    log_facts(trainer, {"average_drop": {"unit": "%"}})
    log_summary(trainer, {"best/xai/gradcam/average_drop": 2.5})
    (folder / "report.html").write_text("<html>report</html>")
    log_report(trainer, folder / "report.html", {"run": "abc"})
    alert(trainer, "a title", "a text")


def pixels(picture):
    return np.asarray(picture.convert("RGB")).tolist()


@pytest.mark.slow
def test_comet_offline_archive_has_pictures_table_and_report(tmp_path):
    comet = pytest.importorskip("comet_ml")
    quiet = {"auto_log_co2": False, "log_code": False, "log_git_metadata": False, "log_env_details": False}
    quiet |= {"display_summary_level": 0, "auto_output_logging": False}
    experiment = comet.OfflineExperiment(project_name="p", workspace="w", offline_directory=str(tmp_path), **quiet)
    send_everything(experiment, tmp_path)
    experiment.end()
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as files:
        messages = [json.loads(line) for line in files.read("messages.json").decode().splitlines()]
        contents = {name: files.read(name) for name in files.namelist()}
    uploads = [message["payload"] for message in messages if message["type"] == "file_upload"]
    names = [[upload["additional_params"].get(key) for key in ("fileName", "figName")] for upload in uploads]
    by_name = {file or figure: upload for (file, figure), upload in zip(names, uploads)}
    for i, caption in enumerate(["first", "sécond"]):
        upload = by_name[f"xai/gradcam/{i}"]
        assert upload["additional_params"]["step"] == 3
        assert caption in str(upload["metadata"])
        assert pixels(Image.open(io.BytesIO(contents[upload["file_path"].rpartition("/")[2]]))) == PICTURES[i].tolist()
    assert {"xai/table.csv", "xai/average_drop.json", "xai/report.html"} <= set(by_name)
    assert "best/xai/gradcam/average_drop" in json.dumps(messages)


@pytest.mark.slow
def test_aim_repository_has_pictures_table_and_facts(tmp_path, monkeypatch):
    aim = pytest.importorskip("aim")
    monkeypatch.setenv("HOME", str(tmp_path))
    options = {"system_tracking_interval": None, "capture_terminal_logs": False, "log_system_params": False}
    run = aim.Run(repo=str(tmp_path), **options)
    send_everything(run, tmp_path)
    from aim.storage.context import Context

    steps, (values, *_) = run.get_image_sequence("xai/gradcam", Context({})).data.items_list()
    (shown,) = values
    assert list(steps) == [3]
    assert [image.caption for image in shown] == ["first", "sécond"]
    assert [pixels(image.to_pil_image()) for image in shown] == [picture.tolist() for picture in PICTURES]
    assert run["xai", "average_drop", "unit"] == "%"
    assert run["xai", "summary", "best/xai/gradcam/average_drop"] == 2.5
    run.close()


@pytest.mark.slow
def test_trackio_folder_has_pictures_and_table(tmp_path):
    """In a process of its own, because trackio reads its folder when it is imported."""
    if importlib.util.find_spec("trackio") is None:
        pytest.skip("trackio is not installed")
    code = textwrap.dedent("""
        import sys
        from pathlib import Path
        sys.path[:0] = sys.argv[2:]
        import trackio
        from test_tracker_adapters import send_everything
        run = trackio.init(project="p", name="r", embed=False, auto_log_gpu=False, auto_log_cpu=False)
        send_everything(run, Path(sys.argv[1]))
        trackio.finish()
        from trackio.sqlite_storage import SQLiteStorage
        import json
        print("ROWS", json.dumps(SQLiteStorage.get_logs("p", "r"), default=str))
    """)
    tests = Path(__file__).parent
    words = [sys.executable, "-c", code, str(tmp_path), str(tests.parent), str(tests)]
    environment = {**os.environ, "TRACKIO_DIR": str(tmp_path / "trackio"), "HF_HUB_OFFLINE": "1"}
    ran = subprocess.run(words, capture_output=True, text=True, timeout=300, cwd=tmp_path, env=environment)
    assert ran.returncode == 0, ran.stderr[-2000:]
    (line,) = [line for line in ran.stdout.splitlines() if line.startswith("ROWS")]
    rows = json.loads(line[5:])
    (row,) = [row for row in rows if "xai/gradcam/0" in row]
    assert row["step"] == 3
    assert [row[f"xai/gradcam/{i}"]["caption"] for i in range(2)] == ["first", "sécond"]
    for i in range(2):
        (file,) = (tmp_path / "trackio").rglob(Path(row[f"xai/gradcam/{i}"]["file_path"]).name)
        assert pixels(Image.open(file)) == PICTURES[i].tolist()
    assert any("xai/table" in row for row in rows)


class Series:
    def __init__(self, calls, key):
        self.calls, self.key = calls, key

    def append(self, value, step=None, description=None):
        self.calls.append((self.key, value, step, description))

    def upload(self, value):
        self.calls.append((self.key, value))


def test_neptune_calls_are_those_of_its_documentation(tmp_path, monkeypatch):
    """A recorded double: the package needs an account, and is not installed."""
    neptune, kinds = types.ModuleType("neptune"), types.ModuleType("neptune.types")

    class File:
        as_image = staticmethod(lambda picture: ("image", pixels(picture)))
        from_content = staticmethod(lambda text, extension: (extension, text))

    class Run:
        def __init__(self):
            self.calls = []

        def __getitem__(self, key):
            return Series(self.calls, key)

        def __setitem__(self, key, value):
            self.calls.append((key, value))

    Run.__module__, kinds.File = "neptune.metadata_containers.run", File
    monkeypatch.setitem(sys.modules, "neptune", neptune)
    monkeypatch.setitem(sys.modules, "neptune.types", kinds)
    run = Run()
    send_everything(run, tmp_path)
    assert run.calls == [
        ("xai/gradcam/0", ("image", PICTURES[0].tolist()), 3, "first"),
        ("xai/gradcam/1", ("image", PICTURES[1].tolist()), 3, "sécond"),
        ("xai/table", ("csv", "id,name\n17,a\n2,b\n")),
        ("xai/average_drop", '{"unit": "%"}'),
        ("best/xai/gradcam/average_drop", 2.5),
        ("xai/report", str(tmp_path / "report.html")),
    ]


def test_other_experiments_get_nothing(tmp_path):
    assert type(adapter(Holder(object()))).__name__ == "Adapter"
    send_everything(object(), tmp_path)
