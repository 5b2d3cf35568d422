"""The command evaluate with the config.yaml that the LightningCLI of another project saved."""

import csv

import lightning as L
import pytest
import yaml
from lightning.pytorch.cli import LightningCLI
from support.foreign_project import Data, TupleModule

from interpretable_training.cli import main
from interpretable_training.cli.saved_configs import join_methods, saved_config_reader

PROJECT = "support.foreign_project"
QUIET = ["--trainer.accelerator=cpu", "--trainer.enable_progress_bar=false", "--trainer.enable_model_summary=false"]
CLASSES = ["--model", f"{PROJECT}.TupleModule", "--data", f"{PROJECT}.Data"]


def saved_by(kinds, words, **options):
    """The file that a LightningCLI wrote, and the checkpoint of its training."""
    root = ["--trainer.default_root_dir=made", "--trainer.max_epochs=1", "--optimizer=Adam", "--optimizer.lr=0.01"]
    LightningCLI(*kinds, args=["fit", *words, *root, *QUIET], save_config_kwargs={"overwrite": True}, **options)


@pytest.fixture
def files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    version = tmp_path / "made" / "lightning_logs" / "version_0"
    return lambda: (str(version / "config.yaml"), str(next(version.rglob("*.ckpt"))))


def rows_of(*words):
    main(["evaluate", *words, "--max_images=4", "--metrics.drop=AverageDrop", "--output=out"])
    with open("out/table.csv", encoding="utf-8") as file:
        return {row["method"]: row for row in csv.DictReader(file)}


def test_saved_config_of_any_class_is_evaluated(files, capsys):
    saved_by((L.LightningModule, L.LightningDataModule), CLASSES, subclass_mode_model=True, subclass_mode_data=True)
    config, weights = files()
    rows = rows_of("--config", config, "--ckpt_path", weights, "--methods", "GradCAM", "layercam")
    assert list(rows) == ["gradcam", "layercam", "fakecam", "random"]
    assert rows["gradcam"]["n"] == "4"
    assert "Left out of the saved configuration: lr_scheduler, optimizer" in capsys.readouterr().err


def test_saved_config_of_one_class_needs_its_name(files, capsys):
    saved_by((TupleModule, Data), [])
    config, _ = files()
    with pytest.raises(SystemExit):
        rows_of("--config", config)
    assert "expected --data CLASS with the saved configuration" in capsys.readouterr().err
    rows = rows_of("--import", PROJECT, "--config", config, *CLASSES, "--methods", "GradCAM")
    assert list(rows) == ["gradcam", "fakecam", "random"]


def test_missing_modules_are_named_with_the_option(files, capsys):
    with pytest.raises(SystemExit):
        rows_of("--model", "my_own.nets.Net")
    assert "got 'my_own.nets.Net'" in (text := capsys.readouterr().err)
    assert "evaluate --import MODULE" in text


def test_several_methods_become_one_list():
    assert join_methods(["a", "--methods", "X", "Y", "-c", "f"]) == ["a", "-c", "f", "--methods=[X,Y]"]
    assert join_methods(["--methods={a: X}", "b"]) == ["--methods={a: X}", "b"]


def test_arguments_of_one_class_get_its_name():
    text = "# lightning.pytorch==2.6.6\nmodel: {width: 8}\ndata: {class_path: my.Data}\noptimizer: null\n"
    read = saved_config_reader(["evaluate", "--model=my.Net"], yaml.safe_load)
    assert read(text) == {
        "model": {"class_path": "my.Net", "init_args": {"width": 8}},
        "data": {"class_path": "my.Data"},
    }
    assert read("model: {width: 8}") == {"model": {"width": 8}}  # no saved file
