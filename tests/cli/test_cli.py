import re
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
import yaml

import interpretable_training
from interpretable_training.cli import main
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier
from interpretable_training.recipes import shortcut

BASELINE = Path(__file__).parents[2] / "configs" / "baseline.yaml"
TINY = [f"--data.{key}={value}" for key, value in {"image_size": 16, "n_train": 12, "n_val": 12, "n_test": 12}.items()]
TINY += ["--trainer.accelerator", "cpu"]
QUIET = ["--trainer.enable_progress_bar", "false", "--trainer.enable_model_summary", "false"]
DRY = ["--trainer.fast_dev_run", "1", *TINY, *QUIET]


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Runs leave their files in an empty folder."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def mistake(capsys):
    """Runs a command that has to fail, and returns the paragraph that it ends with."""

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        assert "usage:" not in error
        return error.strip().splitlines()[-1]

    return run


def edited(folder, old, new):
    """The baseline's configuration with a mistake in it."""
    text = BASELINE.read_text()
    assert old in text
    (folder / "edited.yaml").write_text(text.replace(old, new))
    return folder / "edited.yaml"


def test_help_and_version_need_no_torch():
    code = (
        "import sys; from interpretable_training.cli import main\n"
        "for words in ([], ['--help'], ['--version'], ['demo', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit as end: assert not end.code\n"
        "assert not {'torch', 'lightning', 'jsonargparse'} & set(sys.modules)"
    )
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert time.perf_counter() - start < 3
    assert f"interpretable-training {interpretable_training.__version__}\n" in done.stdout
    assert all(command in done.stdout for command in ("fit", "validate", "test", "predict", "demo"))


def test_options_override_the_configuration(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(
        "lightning.Trainer.fit", lambda trainer, model, datamodule, **_: seen.append((trainer, model, datamodule))
    )
    words = ["--data.batch_size=5", "--trainer.max_epochs=7", "--model.optimizer.lr=0.5", "--model.network=tiny_vit"]
    main(["fit", "--config", str(BASELINE), *words])
    trainer, model, data = seen[0]
    assert (data.batch_size, trainer.max_epochs, type(model.network).__name__) == (5, 7, "TinyViT")
    assert model.optimizer([torch.zeros(1, requires_grad=True)]).defaults["lr"] == 0.5


@pytest.mark.parametrize(
    "network",
    [
        pytest.param("tiny_cnn", marks=pytest.mark.slow),
        {"class_path": "TinyCNN", "init_args": {"num_classes": 6, "width": 4}},
    ],
    ids=["name", "class"],
)
def test_run_can_be_repeated_and_its_checkpoint_loaded(folder, network, capsys):
    config = yaml.safe_load(BASELINE.read_text())
    config["model"]["init_args"]["network"] = network
    config["trainer"]["logger"]["init_args"]["version"] = 0  # the same folder for both runs
    (folder / "run.yaml").write_text(yaml.safe_dump(config))
    words = ["--config", "run.yaml", "--trainer.max_epochs", "1", "--trainer.log_every_n_steps", "1", *TINY, *QUIET]
    main(["fit", *words])
    main(["fit", *words])
    run = folder / "runs" / "baseline" / "version_0"
    assert (run / "config.yaml").exists()
    assert (run / "curves.png").exists()
    path = next((run / "checkpoints").iterdir())
    assert torch.load(path, weights_only=True)["hyper_parameters"]["pretrained"] is False
    assert isinstance(Classifier.load_from_checkpoint(path).network, TinyCNN)
    main(["test", *words, "--ckpt_path", str(path)])
    assert "test/accuracy" in capsys.readouterr().out


def test_logs_go_to_runs_by_default(folder):
    model = ["--model", "Classifier", "--model.network", "tiny_cnn", "--model.num_classes", "6"]
    main(["validate", *model, "--data", "ShapesDataModule", *TINY, *QUIET])
    assert (folder / "runs" / "version_0" / "metrics.csv").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--data.shortcut", "1.5"], "expected shortcut as a share of images between 0 and 1, got 1.5; pass"),
        (
            ["--data.shortcutt", "1"],
            "expected an option of ShapesDataModule at 'data', got 'shortcutt'; closest: ['shor",
        ),
        (["--data.shortcut", "lots"], "Expected a float. Got value: lots at 'data.shortcut'."),
        (["--model.network", "resnet19"], "expected the name of a network, got 'resnet19'; closest: ['resnet18'"),
        (["--model.num_classes", "5"], "expected num_classes=6, which is what ShapesDataModule holds, got 5"),
        (["--model.network", "Tiny_CNN"], "got 'Tiny_CNN'; closest: ['tiny_cnn'"),
        (["--trainer.max_epochz", "3"], "expected an option, got 'trainer.max_epochz'; closest: ['trainer.max_epochs'"),
        (["--ckpt_path", "none.ckpt"], "Checkpoint file not found: none.ckpt"),
    ],
    ids=lambda value: value[-2:][0] if isinstance(value, list) else "",
)
def test_mistake_in_options_is_one_paragraph(mistake, words, message):
    assert message in mistake("fit", "--config", BASELINE, *DRY, *words)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("max_epochs", "max_epoks", "expected an option, got 'trainer.max_epoks'; closest: ['trainer.max_epochs'"),
        ("model:", "modle:", "expected an option, got 'modle'; closest: ['model']"),
        (
            "num_classes",
            "num_clases",
            "expected an option of Classifier at 'model', got 'num_clases'; closest: ['num_cl",
        ),
        ("lr:", "rl:", "expected an option of AdamW at 'model.optimizer', got 'rl'; closest: ['lr'"),
        (
            "path: Classifier",
            "path: Clasifier",
            "the name of a class at 'model', got 'Clasifier'; closest: ['Classifier'",
        ),
        (
            "TrainingCurves",
            "TrainingCurvs",
            "a class at 'trainer.callbacks', got 'TrainingCurvs'; closest: ['TrainingCurves'",
        ),
        ("tiny_cnn", "{class_path: TinyCN}", "a class at 'model.network', got 'TinyCN'; closest: ['TinyCNN'"),
        ("seed_everything: 0", "seed_everything: [", "edited.yaml']: Problems parsing config: while parsing a flow"),
    ],
)
def test_mistake_in_configuration_is_one_paragraph(folder, mistake, old, new, message):
    assert message in mistake("fit", "--config", edited(folder, old, new), *DRY)


def test_missing_configuration_names_closest_files(mistake):
    message = mistake("fit", "--config", BASELINE.with_name("basline.yaml"))
    assert f"closest in '{BASELINE.parent}': ['baseline.yaml'" in message


@pytest.mark.parametrize("command", ["fit", "demo"])
def test_output_folder_below_a_file_is_refused_before_training(folder, mistake, command):
    (folder / "file").write_text("")
    config = edited(folder, "save_dir: runs", "save_dir: file/x")
    words = ["--config", config, *TINY, *QUIET] if command == "fit" else ["--output", "file/x"]
    assert "expected an output folder that can be written, got 'file/x" in mistake(command, *words)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["fti"], "got 'fti'; closest: ['fit']"),
        (["demo", "--foo"], "demo does not accept ['--foo']"),
        (["demo", "--epochs", "x"], "argument --epochs: invalid int value: 'x'"),
        (["demo", "--epochs", "0"], "expected 1 epoch or more, got 0"),
        (["--foo"], "expected a command before '--foo'"),
        (["fit"], "expected fit.data, fit.model, got none; name them in a file"),
    ],
    ids=str,
)
def test_mistaken_command_is_one_paragraph(mistake, words, message):
    assert message in mistake(*words)


def test_other_errors_keep_their_traceback(monkeypatch):
    def broken(*_):
        raise KeyError("a bug")

    monkeypatch.setattr("interpretable_training.cli.lightning_commands.run", broken)
    with pytest.raises(KeyError, match="a bug"):
        main(["fit"])


def test_debug_variable_shows_traceback_of_mistakes(monkeypatch):
    monkeypatch.setenv("INTERPRETABLE_TRAINING_DEBUG", "1")
    with pytest.raises(Exception, match="expected shortcut as a share") as caught:
        main(["fit", "--config", str(BASELINE), *DRY, "--data.shortcut", "1.5"])
    assert not isinstance(caught.value, SystemExit)


def test_demo_prints_table_and_paths_of_results(folder, monkeypatch, capsys):
    small = partial(shortcut, image_size=16, n_train=24)
    monkeypatch.setattr("interpretable_training.cli.demo.shortcut", small)
    main(["demo", "--epochs", "1", "--output", "results"])
    printed = capsys.readouterr()
    rows = re.findall(r"^  (same|none|swapped) +([\d.]+)% +([\d.]+)%", printed.out, re.MULTILINE)
    assert [cue for cue, _, _ in rows] == ["same", "none", "swapped"]
    assert "ShortcutFinder: " in printed.out
    paths = re.findall(r"^  (?:maps|report|checkpoint|numbers) +(\S+)", printed.out, re.MULTILINE)
    assert len(paths) == 5
    assert all((folder / path).exists() for path in paths)
    assert not re.search("GPU available|litlogger|num_workers|logging interval", printed.out + printed.err)
