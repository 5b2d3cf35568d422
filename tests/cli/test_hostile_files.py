"""Files that attack: none executes anything (each attempt would leave the file `RAN`), and each costs one paragraph."""

import copy
import csv
import io
import json
import os
import struct
import zlib
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from PIL import Image
from support.families import few
from torch import nn

from interpretable_training.cli import main
from interpretable_training.files import csv_text
from interpretable_training.models import TinyCNN
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier
from interpretable_training.modules.class_paths import check_configuration, check_hyper_parameters

CONFIG = Path(__file__).parents[2] / "configs" / "baseline.yaml"
DATA = [f"--data.{key}={value}" for key, value in {"image_size": 16, "n_train": 6, "n_val": 6, "n_test": 6}.items()]
QUIET = [f"--trainer.{key}=false" for key in ("enable_progress_bar", "enable_model_summary", "logger")]
QUIET += ["--trainer.accelerator=cpu", "--trainer.max_epochs=1"]
COMMAND, CODE = {"command": "touch RAN"}, "open('RAN', 'w')"
PAYLOADS = {
    "os.system": COMMAND,
    "posix.system": COMMAND,
    "torch.os.system": COMMAND,
    "os.popen": {"cmd": "touch RAN"},
    "subprocess.Popen": {"args": ["touch", "RAN"]},
    "subprocess.call": {"args": ["touch", "RAN"]},
    "subprocess.getoutput": {"cmd": "touch RAN"},
    "builtins.eval": {"source": CODE},
    "builtins.exec": {"source": CODE},
    "functools.partial": {"func": "os.system", "command": "touch RAN"},
    "timeit.timeit": {"stmt": CODE, "number": 1},
    "cProfile.run": {"statement": CODE},
    "runpy.run_path": {"path_name": "code_of_theirs.py"},
    "shutil.copyfile": {"src": "code_of_theirs.py", "dst": "RAN"},
    "logging.FileHandler": {"filename": "RAN"},
    "zipfile.ZipFile": {"file": "RAN", "mode": "w"},
    "torch.save": {"obj": 1, "f": "RAN"},
    "torch.hub.load": {"repo_or_dir": ".", "model": "theirs", "source": "local", "trust_repo": True},
    "code_of_theirs.Network": {"num_classes": 6},
}
SPECS = [{"class_path": path, "init_args": values} for path, values in PAYLOADS.items()]
SPECS += [{"class_path": path, "dict_kwargs": values} for path, values in PAYLOADS.items()]
PLACES = few(["optimizer", "scheduler", "loss", "network", "nested", "kwargs"], "optimizer")


def placed(spec, place):
    """Hyper-parameters of a Classifier that was made by the command line, with something at a place."""
    spec = copy.deepcopy(spec)
    values = {"network": "tiny_cnn", "num_classes": 6, "_instantiator": "lightning.pytorch.cli.instantiate_module"}
    if place == "nested":
        return {**values, "optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "foreach": spec}}}
    return {**values, ("network_kwargs" if place == "kwargs" else place): {"x": spec} if place == "kwargs" else spec}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """A folder with a picture and with modules that run when they are imported, which python would find."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in ("code_of_theirs.py", "hubconf.py"):
        (tmp_path / name).write_text(f"{CODE}\nclass Network: pass\n")
    Image.new("RGB", (20, 20)).save(tmp_path / "picture.png")
    return tmp_path


def written(values, module="Classifier"):
    """A checkpoint with these hyper-parameters."""
    state = {f"network.{key}": value for key, value in TinyCNN(6).state_dict().items()}
    printed = {"module": module, "image_shape": [3, 16, 16]}
    checkpoint = {"state_dict": state, "hyper_parameters": values, "pictures": printed, "epoch": 0, "global_step": 0}
    torch.save({**checkpoint, "pytorch-lightning_version": L.__version__, "loops": {}, "callbacks": {}}, "some.ckpt")
    return "some.ckpt"


def attempt(function, *args, **kwargs):
    """Return the message of the refusal; assert that nothing ran."""
    said = ""
    try:
        function(*args, **kwargs)
    except (Exception, SystemExit) as error:
        said = str(error)
    assert not Path("RAN").exists(), said
    return said


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("cls", [Classifier, GuidedGradientClassifier, CAStreamClassifier])
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec['class_path']} {[*spec][1]}")
def test_loading_checkpoint_executes_nothing(spec, cls, place):
    assert attempt(cls.load_from_checkpoint, written(placed(spec, place)), weights_only=True).startswith("expected ")


@pytest.mark.parametrize("written_by", [json.dumps, yaml.safe_dump, lambda spec: json.dumps([spec])])
@pytest.mark.parametrize("place", ["optimizer", "scheduler"])
@pytest.mark.parametrize("path", ["os.system", "timeit.timeit", "torch.hub.load"])
def test_class_path_in_text_executes_nothing(path, place, written_by):
    """jsonargparse reads texts as YAML, after the hyper-parameters have been looked at."""
    values = placed(written_by({"class_path": path, "init_args": PAYLOADS[path]}), place)
    assert attempt(Classifier.load_from_checkpoint, written(values), weights_only=True).startswith("expected ")


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", SPECS, ids=lambda spec: f"{spec['class_path']} {[*spec][1]}")
def test_explain_with_checkpoint_executes_nothing(spec, place):
    words = ["--model", written(placed(spec, place)), "--images", "picture.png"]
    attempt(main, ["explain", *words])


@pytest.mark.parametrize("command", few(["fit", "validate", "test", "evaluate"], "fit"))
@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize(
    "path", ["os.system", "subprocess.Popen", "torch.save", "timeit.timeit", "code_of_theirs.Network"]
)
def test_command_with_checkpoint_executes_nothing(path, place, command):
    values = placed({"class_path": path, "init_args": PAYLOADS[path]}, place)
    written({**values, "_class_path": "interpretable_training.modules.Classifier"})
    more = ["--max_images=2"] if command == "evaluate" else []
    words = ["--config", str(CONFIG), *DATA, *QUIET, "--trainer.callbacks=null", "--ckpt_path=some.ckpt", *more]
    assert attempt(main, [command, *words]) == "2"  # the exit code of a mistake


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("spec", SPECS[: len(PAYLOADS) - 1], ids=lambda spec: spec["class_path"])
def test_configuration_executes_nothing(spec, place, capsys):
    config = yaml.safe_load(CONFIG.read_text())
    values = {key: value for key, value in placed(spec, place).items() if key != "_instantiator"}
    config["model"] = {"class_path": "Classifier", "init_args": values}
    Path("some.yaml").write_text(yaml.safe_dump(config))
    said = attempt(main, ["validate", "--config", "some.yaml", *DATA, *QUIET, "--trainer.callbacks=null"])
    assert said == "2"
    assert "Traceback" not in capsys.readouterr().err


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "code_of_theirs.call", "torch.os.system", "pty.spawn"])
def test_name_of_function_is_refused_as_plain_value(name):
    """jsonargparse takes it for the function where an argument may be any callable."""
    for values in ({"optimizer": name}, {"network": {"class_path": "TinyCNN", "init_args": {"act": [name]}}}):
        with pytest.raises(ValueError, match=rf"expected .*, got '{name}'"):
            check_hyper_parameters(values)
    assert not Path("RAN").exists()


def test_further_files_of_networks_are_refused():
    for key in ("checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay"):
        with pytest.raises(ValueError, match="expected no further file"):
            check_hyper_parameters({"network": "resnet10t", "network_kwargs": {key: "theirs.pth"}})


class Mine(nn.Module):
    """A network of a user's."""


class MyOptimizer(torch.optim.SGD):
    """An optimizer of a user's."""


@pytest.mark.parametrize(
    "values",
    [
        {"optimizer": {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1, "momentum": 0.9}}},
        {"optimizer": {"class_path": "torch.optim.adamw.AdamW"}},
        {"optimizer": "interpretable_training.modules.ca_stream_classifier.thesis_optimizer"},
        {"optimizer": {"class_path": f"{__name__}.MyOptimizer", "init_args": {"lr": 0.1}}},
        {"scheduler": {"class_path": "torch.optim.lr_scheduler.StepLR", "init_args": {"step_size": 3}}},
        {"scheduler": {"class_path": "lightning.pytorch.cli.ReduceLROnPlateau", "init_args": {"monitor": "val/loss"}}},
        {"network": {"class_path": f"{__name__}.Mine"}, "loss": {"class_path": "torch.nn.CrossEntropyLoss"}},
        {"network": {"class_path": "torchvision.models.resnet18", "init_args": {"num_classes": 6}}},
        {"network": "resnet50.a1_in1k", "weights": "runs/some.pt", "monitor": "val.loss", "layer": "layer4.1.conv2"},
    ],
    ids=str,
)
def test_class_paths_that_trainings_write_are_accepted(values):
    check_hyper_parameters(values)
    check_configuration(values)


def test_checkpoint_of_command_line_is_rebuilt_with_all_classes(folder):
    config = yaml.safe_load(CONFIG.read_text())
    config["model"]["init_args"] |= {
        "network": {"class_path": "TinyCNN", "init_args": {"num_classes": 6, "width": 4}},
        "optimizer": {"class_path": "SGD", "init_args": {"lr": 0.25}},
        "scheduler": {"class_path": "StepLR", "init_args": {"step_size": 3}},
        "loss": {"class_path": "torch.nn.CrossEntropyLoss", "init_args": {"label_smoothing": 0.1}},
    }
    Path("some.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", "some.yaml", *DATA, *QUIET, "--trainer.callbacks=null"]
    main(["fit", *words])
    path = str(next(folder.rglob("*.ckpt")))
    again = Classifier.load_from_checkpoint(path)
    optimizer = again.optimizer(again.parameters())
    assert (type(optimizer), optimizer.defaults["lr"], again.loss.label_smoothing) == (torch.optim.SGD, 0.25, 0.1)
    assert again.scheduler(optimizer).step_size == 3
    main(["test", *words, "--ckpt_path", path])
    main(["explain", "--model", path, "--images", "picture.png"])
    assert Path("explanations/index.html").exists()


ESC = "\x1b]0;theirs\x07\x1b[31m"


def checkpoint(**changes):
    """Of a network for images of 16 x 16, whose class names would move a cursor."""
    module = Classifier("tiny_cnn", 2)
    printed = {"module": "Classifier", "image_shape": [3, 16, 16], "class_names": [f"{ESC}one", f"{ESC}two"]}
    values = {"network": "tiny_cnn", "num_classes": 2, **changes}
    torch.save({"state_dict": module.state_dict(), "hyper_parameters": values, "pictures": printed}, "some.ckpt")
    return "some.ckpt"


def huge_png(side):
    """A PNG of a few kilobytes that claims side x side pixels."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    data = zlib.compress(bytes(10_000_000))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", data) + chunk(b"IEND", b"")


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


def test_explain_leaves_out_unreadable_pictures(folder, capsys):
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


def test_paragraph_has_no_control_characters(mistake):
    said = mistake("explain", "--model", f"{ESC}.ckpt", "--images", checkpoint())
    assert "\x1b" not in said


@pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t", "\r"])
def test_csv_text_is_no_formula(start):
    rows = [[f"{start}cmd|' /C calc'!A0", -1.5, "-1.5", "plain", None, "1e-3"]]
    read = next(csv.reader(io.StringIO(csv_text(rows), newline="")))
    assert read == [f"'{start.replace(chr(13), ' ')}cmd|' /C calc'!A0", "-1.5", "-1.5", "plain", "", "1e-3"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--config", "bomb.yaml"], "expected YAML of at most"),
        (["--config", "itself.yaml"], "expected YAML of at most"),
        (["--config", "deep.yaml"], "expected YAML of at most 50 levels"),
        (["--config", "latin.yaml"], "expected files in UTF-8, got ['latin.yaml']"),
        (["--config", str(CONFIG), "--seed_everything", "-1"], "expected seed_everything from 0 to 4294967295, got -1"),
        (["--config", str(CONFIG), "--seed_everything", "9" * 30], "expected seed_everything from 0"),
        (["--config", str(CONFIG), "--ckpt_path", "folder.ckpt"], "got 'folder.ckpt', which is a folder"),
    ],
    ids=lambda value: value[-1] if isinstance(value, list) else "",
)
def test_unusable_file_or_seed_is_one_paragraph(folder, mistake, words, said):
    levels = [f"x{i}: &x{i} [{', '.join([f'*x{i - 1}'] * 9)}]" for i in range(1, 9)]
    (folder / "bomb.yaml").write_text("\n".join(["x0: &x0 [1, 1]", *levels]))
    (folder / "itself.yaml").write_text("model: &x [1, *x]")
    (folder / "deep.yaml").write_text("[" * 900 + "]" * 900)
    (folder / "latin.yaml").write_bytes("seed_everything: 0 # é".encode("latin-1"))
    (folder / "folder.ckpt").mkdir()
    assert said in mistake("test", *words)


@pytest.mark.parametrize("number", [-1, 0, 10**9, 2**70, "many", None])
def test_explain_refuses_impossible_number_of_classes(folder, mistake, number):
    Image.new("RGB", (20, 20)).save(folder / "a.png")
    said = mistake("explain", "--model", checkpoint(num_classes=number), "--images", "a.png")
    assert "expected a checkpoint of 1 to 1000000 classes" in said
