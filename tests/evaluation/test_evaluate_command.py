"""The command evaluate."""

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import lightning as L
import pytest
import torch
import yaml
from support.families import few
from torch.utils.data import DataLoader, IterableDataset

from interpretable_training.attribution import GradCAM, LayerCAM
from interpretable_training.cli import main
from interpretable_training.data import ShapesDataModule
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.metrics import AverageDrop, Insertion, evaluate
from interpretable_training.mistakes import MistakeError
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier
from interpretable_training.recipes import shortcut

CONFIG = str(Path(__file__).parents[2] / "configs" / "shortcut.yaml")
SIZES = {"image_size": 16, "n_train": 12, "n_val": 12, "n_test": 8, "batch_size": 4}
TINY = [f"--data.{key}={value}" for key, value in SIZES.items()]
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CHOICE = {
    "methods": {"mine": {"class_path": "GradCAM", "init_args": {"layer": "network.stage2"}}, "layercam": "LayerCAM"},
    "metrics": {"drop": "AverageDrop", "insertion": {"class_path": "Insertion", "init_args": {"steps": 4}}},
}
FILES = {"table.txt", "table.md", "table.tex", "table.csv", "values.csv", "passports.json"}


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "choice.yaml").write_text(yaml.safe_dump(CHOICE, sort_keys=False))
    return tmp_path


def run(*words, choice=True, output="out"):
    """The command, and the table that it wrote."""
    chosen = ["--config", "choice.yaml"] if choice else []
    main(["evaluate", "--config", CONFIG, *chosen, *TINY, *QUIET, "--output", output, *map(str, words)])
    return read(output)


def read(folder):
    with open(Path(folder) / "table.csv", encoding="utf-8") as file:
        return {(row["method"], row["metric"]): row for row in csv.DictReader(file)}


@pytest.fixture
def mistake(capsys):
    """The paragraph that a command ends with."""

    def fails(*words, **options):
        with pytest.raises(SystemExit) as caught:
            run(*words, **options)
        assert caught.value.code == 2
        error = capsys.readouterr().err
        assert "Traceback" not in error
        return error.strip().splitlines()[-1]

    return fails


def test_methods_and_metrics_of_a_file_are_measured_and_written(folder, capsys):
    table = run()
    assert {method for method, _ in table} == {"mine", "layercam", "fakecam", "random"}
    assert {metric for _, metric in table} == {"drop", "insertion"}
    written = {path.name for path in (folder / "out").iterdir()}
    assert {*FILES, "curves.png", "cache"} <= written
    printed = capsys.readouterr().out
    assert (folder / "out" / "table.txt").read_text() in printed
    assert "Written to out: table.txt, table.md" in printed
    texts = json.loads((folder / "out" / "passports.json").read_text())
    assert texts["metrics"]["insertion"]["steps"] == 4
    assert texts["evaluation"]["method mine"].startswith("GradCAM(layer='network.stage2'")
    assert texts["metrics"]["drop"]["mask_space"] == "pixel"  # the data module says the normalization
    assert len((folder / "out" / "values.csv").read_text().splitlines()) == 1 + 12 * 4


def test_defaults_are_five_methods_and_seven_metrics(folder):
    words = ["--config", CONFIG, *TINY, *QUIET, "--data.n_val=2"]
    main(["evaluate", *words])
    table = read(folder / "runs" / "shortcut" / "version_0")
    methods = ["gradcam", "gradcamplusplus", "xgradcam", "layercam", "hirescam", "fakecam", "random"]
    metrics = ["average_drop", "average_increase", "average_gain", "insertion", "deletion", "coherency", "complexity"]
    assert list(table) == [(method, metric) for metric in metrics for method in methods]


def test_options_of_the_shell_override_the_file(folder):
    options = ["--metrics.insertion.steps=2", "--methods.mine.layer=network.stage3", "--split=test"]
    options += ["--target=pred", "--max_images=5", "--reference=layercam", "--seed=3", "--chunk_size=2"]
    table = run(*options)
    texts = json.loads((folder / "out" / "passports.json").read_text())
    assert texts["metrics"]["insertion"]["steps"] == 2
    assert "network.stage3" in texts["evaluation"]["method mine"]
    facts = {"target": "pred", "images": 5, "split": "test", "seed": 3}
    assert {key: texts["evaluation"][key] for key in facts} == facts
    assert {row["n"] for row in table.values()} == {"5"}
    assert {row["reference"] for row in table.values()} == {"layercam"}


def expected_of(module):
    methods, metrics = {"mine": GradCAM("network.stage2"), "layercam": LayerCAM()}, [AverageDrop(), Insertion(steps=4)]
    named = dict(zip(("drop", "insertion"), metrics))
    data = ShapesDataModule(**SIZES, seed=0, shortcut=0.95)
    return evaluate(module, methods, named, data, progress=False)


def agree(table, expected):
    for (method, metric), row in table.items():
        cell = expected[method, metric]
        for key in ("mean", "low", "high", "difference"):
            assert float(row[key]) == pytest.approx(getattr(cell, key), rel=1e-6, abs=1e-6)


@pytest.mark.parametrize("made", few(["in Python", "by the command"], "in Python"))
def test_a_checkpoint_is_measured_as_it_is_in_python(folder, made):
    if made == "in Python":
        recipe = shortcut(image_size=16, n_train=12, max_epochs=1, seed=5)
        recipe.trainer.strategy.connect(recipe.module)
        recipe.trainer.save_checkpoint("made.ckpt")
    else:
        main(["fit", "--config", CONFIG, *TINY, *QUIET, "--seed_everything=5", "--trainer.max_epochs=1"])
        next(folder.glob("runs/**/*.ckpt")).rename("made.ckpt")
    table = run("--ckpt_path", "made.ckpt")
    agree(table, expected_of(Classifier.load_from_checkpoint("made.ckpt")))
    assert table["mine", "insertion"]["mean"] != run(output="untrained")["mine", "insertion"]["mean"]


@pytest.mark.parametrize(
    "network",
    [
        "test_resnet",
        pytest.param(
            {"class_path": "torchvision.models.SqueezeNet", "init_args": {"num_classes": 6}}, marks=pytest.mark.slow
        ),
        {"class_path": "torchvision.models.squeezenet1_1", "init_args": {"num_classes": 6}},
    ],
    ids=["timm", "torchvision class", "torchvision function"],
)
def test_a_plain_network_needs_no_checkpoint(folder, network):
    (folder / "choice.yaml").write_text(yaml.safe_dump({**CHOICE, "methods": {"gradcam": "GradCAM"}}))
    (folder / "network.yaml").write_text(yaml.safe_dump({"model": {"init_args": {"network": network}}}))
    size = ["--data.image_size=48", "--max_images=2"]
    table = run("--config", "network.yaml", *size)
    assert float(table["gradcam", "insertion"]["mean"]) > 0
    assert table["gradcam", "drop"]["n"] == "2"


MISTAKES = {
    "--ckpt_path=made.ckp": "expected a checkpoint that exists, got 'made.ckp'; closest in '.': ['made.ckpt'",
    "--methods.mine=GradCam": "'GradCam'; closest: ['GradCAM'",
    "--metrics.drop=AverageDrp": "'AverageDrp'; closest: ['AverageDrop'",
    "--metrics.insertion.stps=3": "got 'stps'; closest: ['steps'",
    "--methods.mine.layr=3": "got 'layr'; closest: ['layer'",
    "--metrics.insertion.auc=trapez": (
        "Expected a typing.Literal['trapezoid', 'mean']. Got value: trapez at 'metrics.auc'."
    ),
    "--target=labels": "labels",
    "--maximages=3": "got 'maximages'; closest: ['max_images'",
    "--max_images=0": "expected max_images as a whole number of at least 1",
}
LATE_MISTAKES = {  # seen once model and data are there
    "--ckpt_path=none/made.ckpt": "expected a checkpoint that exists, got 'none/made.ckpt'",
    "--ckpt_path=made.ckpt": "expected a checkpoint of this Classifier, got 'made.ckpt', whose weights do not",
    "--ckpt_path=weights.ckpt": "expected a checkpoint that Lightning wrote, got 'weights.ckpt'",
    "--methods.mine.layer=network.stage4": "got 'network.stage4'; closest: ['network.stage3'",
    "--reference=gradcam": "a reference among ['mine', 'layercam', 'fakecam', 'random'], got 'gradcam'",
}


@pytest.mark.parametrize("word", few([*MISTAKES, *LATE_MISTAKES], *MISTAKES))
def test_a_mistake_is_one_paragraph(folder, mistake, word):
    other = Classifier(TinyCNN(6, width=4), 6)
    torch.save({"state_dict": other.state_dict(), "pytorch-lightning_version": "2.5.0"}, "made.ckpt")
    torch.save(other.state_dict(), "weights.ckpt")
    assert {**MISTAKES, **LATE_MISTAKES}[word] in mistake(word)


@pytest.mark.slow
def test_folder_of_another_evaluation_is_refused_unless_empty(folder, mistake):
    mistake("--methods.mine.layer=network.stage4")
    assert run()["mine", "drop"]["n"] == "12"
    assert "network.stage2" in json.loads((folder / "out" / "passports.json").read_text())["evaluation"]["method mine"]
    message = mistake("--metrics.insertion.steps=5")
    assert "expected a cache of the same evaluation in 'out/cache'" in message
    assert "insertion: steps: 4 there, 5 here" in message


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_a_trainer_of_half_precision_measures_the_same_images(folder, precision):
    exact, half = run(), run(f"--trainer.precision={precision}", output="half")
    for method in ("mine", "layercam", "fakecam", "random"):
        a, b = (float(table[method, "insertion"]["mean"]) for table in (exact, half))
        assert b == pytest.approx(a, rel=0.02)
    assert torch.get_default_dtype() == torch.float32


@pytest.mark.parametrize("content", [b"hello", b""])
def test_a_file_that_is_no_checkpoint_is_named_in_python_too(folder, content):
    (folder / "text.ckpt").write_bytes(content)
    trainer = EvaluationTrainer(accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False)
    with pytest.raises(MistakeError, match=r"expected a checkpoint of weights and plain values, got 'text\.ckpt'"):
        trainer.evaluate(Classifier("tiny_cnn", 6), Streams(), "text.ckpt", output="out")


class Streams(L.LightningDataModule):
    """Images that cannot be asked for by their index."""

    def val_dataloader(self):
        class Stream(IterableDataset):
            def __iter__(self):
                yield from zip(torch.rand(5, 3, 16, 16), torch.arange(5))

        return DataLoader(Stream(), batch_size=2)


def test_streams_are_measured_though_they_cannot_go_on_after_a_stop(folder):
    trainer = EvaluationTrainer(accelerator="cpu", logger=False, enable_progress_bar=False, enable_checkpointing=False)
    options = {"methods": {"layercam": LayerCAM()}, "metrics": {"drop": AverageDrop()}, "output": "out"}
    table = trainer.evaluate(Classifier("tiny_cnn", 6), Streams(), **options)
    assert (len(table), table.complete) == (5, True)
    assert {path.name for path in (folder / "out").iterdir()} == FILES


def test_the_means_are_logged(folder):
    words = ["--config", CONFIG, "--config", "choice.yaml", *TINY, *QUIET]
    main(["evaluate", *words])
    run_folder = folder / "runs" / "shortcut" / "version_0"
    with open(run_folder / "metrics.csv", encoding="utf-8") as file:
        logged = next(csv.DictReader(file))
    for (method, metric), row in read(run_folder).items():
        assert float(logged[f"xai/{method}/{metric}"]) == pytest.approx(float(row["mean"]))


def command(*words):
    module = [sys.executable, "-m", "interpretable_training", "evaluate", "--config", CONFIG, "--config", "choice.yaml"]
    return [*module, *TINY, *QUIET[:1], *words]


@pytest.mark.slow
def test_ctrl_c_tells_what_is_done_and_the_same_command_goes_on(folder):
    words = ["--data.n_val=400", "--metrics.insertion.steps=28", "--output=stopped"]
    with open("log", "w") as log:
        # A shell starts what runs in the background with the signal ignored, which processes inherit.
        options = {"stdout": log, "stderr": log, "preexec_fn": lambda: signal.signal(signal.SIGINT, signal.SIG_DFL)}
        process = subprocess.Popen(command(*words), **options)
    deadline = time.time() + 120
    while len(list(folder.glob("stopped/cache/part-*.pt"))) < 5 and time.time() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    assert process.wait(60) == 0, Path("log").read_text()
    texts = Path("log").read_text()
    assert "Stopped before the end: some images are missing." in texts
    assert "The same command with --output stopped goes on from here." in texts
    done = len(list(folder.glob("stopped/cache/part-*.pt")))
    assert 5 <= done < 100
    n = 4 * done
    assert read("stopped")["mine", "drop"]["n"] == str(n)

    again = ["--data.n_val=400", "--metrics.insertion.steps=28"]
    for output in ("stopped", "whole"):
        subprocess.run(command(*again, f"--output={output}"), check=True, capture_output=True)
    for name in FILES:
        assert Path("stopped", name).read_text() == Path("whole", name).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [5, 12])
def test_two_processes_write_the_table_of_one(folder, batch_size):
    for devices in (1, 2):
        strategy = ["--trainer.strategy=ddp"] if devices == 2 else []
        words = [f"--data.batch_size={batch_size}", f"--trainer.devices={devices}", *strategy]
        subprocess.run(command(*words), check=True, capture_output=True, timeout=300)
    one, two = (folder / "runs" / "shortcut" / f"version_{i}" for i in (0, 1))
    assert (one / "table.csv").read_text() == (two / "table.csv").read_text()
    assert (one / "values.csv").read_text() == (two / "values.csv").read_text()
    assert len(list((two / "cache").glob("part-*.pt"))) == -(-12 // batch_size)  # all in one folder


@pytest.mark.slow
def test_the_table_goes_to_wandb(folder, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "offline")
    logger = {"class_path": "WandbLogger", "init_args": {"project": "p", "offline": True, "save_dir": "."}}
    (folder / "wandb.yaml").write_text(yaml.safe_dump({"trainer": {"logger": logger}}))
    table = run("--config", "wandb.yaml")
    (results,) = folder.glob("wandb/offline-run-*/files/media/table/xai/table_*.table.json")
    logged = json.loads(results.read_text())
    rows = [dict(zip(logged["columns"], row)) for row in logged["data"]]
    assert [(row["method"], row["metric"]) for row in rows] == list(table)
    assert all(row["mean"] == pytest.approx(float(table[row["method"], row["metric"]]["mean"])) for row in rows)
