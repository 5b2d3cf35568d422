"""Which logger gets what, and what happens when one of them fails; W&B's own runs are read in test_loggers_wandb.py."""

import csv
import json
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger, Logger
from lightning.pytorch.loggers.logger import DummyLogger
from PIL import Image

from interpretable_training.callbacks.watching import logger_adapters
from interpretable_training.callbacks.watching.logger_adapters import (
    Adapter,
    alert,
    log_facts,
    log_images,
    log_summary,
    log_table,
    logged_step,
    safe_key,
)

NASTY = "猫🙂/\"quoted' <b>tag</b>\n| *md* ..\\" + "x" * 300 + "\ud800"
PICTURES = [np.full((4, 6, 3), 40 * i, np.uint8) for i in range(3)]
EVENT = {"xai/gradcam": (PICTURES, ["one", NASTY, "three"]), "xai/images": (PICTURES[:1], ["original"])}


class Memory(Logger):
    """A logger that this package does not know."""

    name, version = "memory", 0

    def __init__(self):
        super().__init__()
        self.told = []

    def log_metrics(self, metrics, step=None):
        raise AssertionError("numbers are Lightning's to log")

    def log_hyperparams(self, params, *args, **kwargs):
        raise AssertionError("settings go through the adapter")


class Full(Memory):
    """A logger without room."""


class MemoryAdapter(Adapter):
    def images(self, images, step, epoch, file_type):
        if isinstance(self.logger, Full):
            raise OSError(28, "No space left on device")
        self.logger.told.append((images, step, epoch, file_type))

    def alert(self, title, text):
        self.logger.told.append((title, text))


@pytest.fixture
def known(monkeypatch):
    """Registers the adapter for the time of a test."""
    rooms = dict(logger_adapters.adapter.registry)
    logger_adapters.adapter.register(Memory, MemoryAdapter)
    yield
    logger_adapters.adapter.register(Memory, Adapter)
    assert dict(logger_adapters.adapter.registry) == {**rooms, Memory: Adapter}


def trainer_of(*found, **kwargs):
    return L.Trainer(
        **{"logger": [*found] or False, **kwargs},
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def send_everything(trainer):
    log_images(trainer, EVENT, step=3, epoch=1)
    log_table(trainer, "xai/table", ["id", "name"], [["17", NASTY], ["2", None]])
    log_facts(trainer, {"average_drop": {"unit": "%", "note": NASTY}})
    log_summary(trainer, {"xai/best": 1.0})
    alert(trainer, "title", "text")


def test_csv_dry_runs_unknown_loggers_and_none_get_nothing(tmp_path):
    send_everything(trainer_of())
    send_everything(trainer_of(Memory()))
    send_everything(trainer_of(CSVLogger(tmp_path)))
    dry = trainer_of(CSVLogger(tmp_path), fast_dev_run=True)
    assert isinstance(dry.loggers[0], DummyLogger)
    send_everything(dry)
    assert list(tmp_path.rglob("*.*")) == []


def test_a_registered_logger_gets_all_of_an_event_in_one_call(known):
    logger = Memory()
    trainer = trainer_of(logger)
    event = {"xai/a": ([torch.from_numpy(PICTURES[1]), PICTURES[2]], ["é", NASTY]), "xai/b": (PICTURES[:1], ["c"])}
    log_images(trainer, {**event, "xai/none": ([], [])}, step=3, epoch=1, file_type="png")
    alert(trainer, "t" * 100, NASTY)
    (images, *rest), printed = logger.told
    assert rest == [3, 1, "png"]
    assert {key: [caption for _, caption in shown] for key, shown in images.items()} == {
        "xai/a": ["é", NASTY.replace("\ud800", "?")],
        "xai/b": ["c"],
    }
    assert [picture[0, 0, 0] for picture, _ in images["xai/a"]] == [40, 80]
    assert printed == ("t" * 63, NASTY.replace("\ud800", "?"))


def test_other_ranks_send_nothing(known):
    logger = Memory()
    log_images(SimpleNamespace(is_global_zero=False, loggers=[logger]), EVENT, step=3, epoch=1)
    assert logger.told == []


def test_a_failing_logger_is_named_and_the_next_gets_everything(known):
    good, trainer = Memory(), trainer_of(Full(), Full())
    trainer.loggers.insert(1, good)
    with pytest.raises(
        RuntimeError, match="expected every logger to take the images, got from Full: OSError"
    ) as raised:
        log_images(trainer, EVENT, step=3, epoch=1)
    assert str(raised.value).count("Full: OSError: [Errno 28] No space left on device") == 2
    assert isinstance(raised.value.__cause__, OSError)
    assert len(good.told) == 1


def test_stopping_is_no_failure_of_a_logger(known, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(MemoryAdapter, "images", stop)
    with pytest.raises(KeyboardInterrupt):
        log_images(trainer_of(Memory()), EVENT, step=3, epoch=1)


@pytest.mark.parametrize(
    "picture",
    [np.zeros((4, 6, 3)), np.zeros((3, 4, 6), np.uint8), np.zeros((4, 6), np.uint8), torch.zeros(0, 6, 3).byte()],
    ids=["float", "channels first", "gray", "empty"],
)
def test_pictures_that_loggers_would_spoil_are_refused(picture):
    with pytest.raises(ValueError, match=r"expected pictures of 'xai/a' as uint8 \(H, W, 3\), got .*; scale to"):
        log_images(trainer_of(), {"xai/a": ([picture], ["caption"])}, step=0, epoch=0)


def test_a_missing_caption_is_an_error():
    with pytest.raises(ValueError, match="expected a caption for each of 3 pictures of 'xai/a', got 2"):
        log_images(trainer_of(), {"xai/a": (PICTURES, ["a", "b"])}, step=0, epoch=0)


def test_keys_are_fit_for_files_and_do_not_meet():
    for key in ("xai/gradcam", "xai/hardest/score_cam", "xai/images", "grad cam-2.0"):
        assert safe_key(key) == key
    odd = [
        "a:b",
        "a_b",
        "a*b",
        "../../etc/passwd",
        "/etc/passwd",
        "a//b",
        "a/b",
        "",
        "/",
        "..",
        NASTY,
        "x" * 300,
        "x" * 301,
    ]
    safe = [safe_key(key) for key in odd]
    assert len({*safe}) == len(odd)
    for key in safe:
        assert key.isascii()
        assert len(key) <= 100
        assert not key.startswith("/")
        assert not {"", ".", ".."} & {*key.split("/")}
        assert safe_key(key) == key


def test_the_step_of_a_trainer_that_has_not_begun_is_zero():
    assert logged_step(trainer_of()) == 0


def test_the_step_without_lightnings_private_counter():
    loop = SimpleNamespace(epoch_loop=SimpleNamespace())
    assert logged_step(SimpleNamespace(fit_loop=loop, global_step=8, lightning_module=None)) == 8


@pytest.mark.slow
def test_importing_callbacks_needs_no_logger():
    code = "import sys, interpretable_training.callbacks.watching.logger_adapters; print(*sys.modules)"
    printed = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert {"wandb", "tensorboard", "mlflow"} & {*printed} == set()


@pytest.mark.parametrize("prefix", ["", "fold"])
def test_tensorboard_reads_back_what_was_sent(tmp_path, prefix):
    accumulators = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from lightning.pytorch.loggers import TensorBoardLogger

    logger = TensorBoardLogger(tmp_path, prefix=prefix)
    trainer = trainer_of(logger)
    send_everything(trainer)
    log_images(trainer, {f"xai/{NASTY}": (PICTURES, [NASTY] * 3)}, step=7, epoch=2)
    logger.finalize("success")
    found = accumulators.EventAccumulator(logger.log_dir)
    found.Reload()

    before = f"{prefix}-" if prefix else ""
    (seen,) = found.Images(f"{before}xai/gradcam/2")
    assert (seen.step, seen.width, seen.height) == (3, 6, 4)
    assert decoded(seen.encoded_image_string).tolist() == PICTURES[2].tolist()
    assert len(found.Tags()["images"]) == 3 + 1 + 3
    (printed,) = found.Tensors(f"{before}xai/gradcam/captions/text_summary")
    lines = printed.tensor_proto.string_val[0].decode().splitlines()
    assert lines[:2] == ["    epoch 1", "    0: one"]
    assert lines[2] == "    1: " + " ".join(NASTY.replace("\ud800", "?").split())  # verbatim, on a line of its own
    (facts,) = found.Tensors(f"{before}xai/average_drop/text_summary")
    assert json.loads(facts.tensor_proto.string_val[0])["unit"] == "%"
    (table,) = found.Tensors(f"{before}xai/table/text_summary")
    assert table.tensor_proto.string_val[0].decode().startswith("    id,name\n    17,")


def test_mlflow_reads_back_what_was_sent(tmp_path, monkeypatch):
    pytest.importorskip("mlflow")
    from lightning.pytorch.loggers import MLFlowLogger

    monkeypatch.chdir(tmp_path)
    logger = MLFlowLogger(tracking_uri=f"sqlite:///{tmp_path}/runs.db", artifact_location=f"file://{tmp_path}/files")
    trainer = trainer_of(logger)
    send_everything(trainer)
    log_facts(trainer, {"average_drop": {"unit": "1"}})  # a second time, with another value
    log_images(trainer, {f"xai/{NASTY}": (PICTURES, [NASTY] * 3)}, step=7, epoch=2)
    folder = tmp_path / "files" / logger.run_id / "artifacts"

    shown = sorted(folder.glob("images/xai~gradcam~*+step+3+*.png"))
    assert [np.asarray(Image.open(file)).tolist() for file in shown] == [picture.tolist() for picture in PICTURES]
    assert len([*folder.glob("images/*.png")]) == 3 + 1 + 3
    captions = json.loads((folder / "xai" / "gradcam" / "captions_3.json").read_text())
    assert captions == {"step": 3, "epoch": 1, "captions": ["one", NASTY.replace("\ud800", "?"), "three"]}
    assert json.loads((folder / "xai" / "average_drop.json").read_text()) == {"unit": "1"}
    with (folder / "xai" / "table.csv").open(newline="") as file:
        assert [*csv.reader(file)] == [["id", "name"], ["17", NASTY.replace("\ud800", "?")], ["2", ""]]


def decoded(data):
    import io

    return np.asarray(Image.open(io.BytesIO(data)))
