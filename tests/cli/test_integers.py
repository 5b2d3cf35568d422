"""Integers that no option can mean are one paragraph, in YAML and on the command line, for every command."""

from pathlib import Path

import pytest
import torch
import yaml
from jsonargparse import Namespace
from PIL import Image

from interpretable_training.cli import main
from interpretable_training.cli.integers import LARGEST, check_integers
from interpretable_training.modules import CAStreamClassifier, Classifier, GuidedGradientClassifier

CONFIG = Path(__file__).parents[2] / "configs" / "baseline.yaml"
HUGE = 10**20
SMALL = [f"--data.{key}={value}" for key, value in {"image_size": 16, "n_train": 4, "n_val": 2, "n_test": 2}.items()]
QUIET = [f"--trainer.{key}=false" for key in ("enable_progress_bar", "enable_model_summary", "logger")]
QUIET += ["--trainer.accelerator=cpu", "--trainer.callbacks=null", "--trainer.max_epochs=1"]
OPTIONS = {
    "data.batch_size": ("data", "init_args"),
    "data.image_size": ("data", "init_args"),
    "data.n_train": ("data", "init_args"),
    "data.seed": ("data", "init_args"),
    "model.num_classes": ("model", "init_args"),
    "trainer.max_epochs": ("trainer",),
    "trainer.max_steps": ("trainer",),
    "seed_everything": (),
}


@pytest.fixture
def mistake(capsys, tmp_path, monkeypatch):
    """Runs a command that has to fail, and returns the paragraph with which it ends."""
    monkeypatch.chdir(tmp_path)

    def run(*words):
        with pytest.raises(SystemExit) as caught:
            main([str(word) for word in words])
        assert caught.value.code == 2
        text = capsys.readouterr().err
        assert "Traceback" not in text
        return text.strip().splitlines()[-1]

    return run


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("command", ["fit", pytest.param("evaluate", marks=pytest.mark.slow)])
def test_huge_integers_on_the_command_line_are_one_paragraph(mistake, command, option):
    text = mistake(command, "--config", CONFIG, *SMALL, *QUIET, f"--{option}={HUGE}")
    assert f"expected {option} from " in text
    assert text.endswith(f" to {LARGEST}, got {HUGE}; pass one of these.")


@pytest.mark.parametrize("option", OPTIONS)
@pytest.mark.parametrize("command", ["validate", pytest.param("test", marks=pytest.mark.slow)])
def test_huge_integers_in_yaml_are_one_paragraph(mistake, tmp_path, command, option):
    config = yaml.safe_load(CONFIG.read_text())
    part = config
    for key in OPTIONS[option]:
        part = part[key]
    part[option.rpartition(".")[2]] = HUGE
    (tmp_path / "some.yaml").write_text(yaml.safe_dump(config))
    words = [word for word in [*SMALL, *QUIET] if not word.startswith(f"--{option}")]
    assert f"expected {option} from " in mistake(command, "--config", "some.yaml", *words)


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (["demo", "--epochs", HUGE], f"expected epochs from {-LARGEST} to {LARGEST}, got {HUGE}; pass one of these."),
        (["demo", "--seed", "-1"], f"expected seed from 0 to {LARGEST}, got -1; pass one of these."),
        (["sweep", "some.yaml", "--seed", HUGE], f"expected seed from 0 to {LARGEST}, got {HUGE}"),
        (["sweep", "some.yaml", "--count", HUGE], f"expected count from {-LARGEST} to {LARGEST}, got {HUGE}"),
        (["sweep", "some.yaml", "--jobs", HUGE], f"expected jobs from {-LARGEST} to {LARGEST}, got {HUGE}"),
        (["fit", "--config", CONFIG, "--data.seed=-1"], f"expected data.seed from 0 to {LARGEST}, got -1"),
        (["fit", "--config", CONFIG, *QUIET, f"--trainer.devices={HUGE}"], "expected numbers and sizes that fit into"),
        (
            ["fit", "--config", CONFIG, "--data.image_size=1000000000"],
            "expected numbers and sizes that fit into memory",
        ),
        (["fit", "--config", CONFIG, "--model.num_classes=1000000001"], "expected num_classes from 1 to 1000000, got"),
        (["fit", "--config", CONFIG, "--model.num_classes=0"], "expected num_classes from 1 to 1000000, got 0; pass"),
        (["fit", "--config", "digits.yaml"], "expected a file in YAML, got ['digits.yaml']"),
        (
            ["fit", "--config", "bits.yaml"],
            f"from 0 to {LARGEST}, got a number of 40000 binary digits; pass",
        ),
    ],
    ids=lambda value: " ".join(map(str, value[-2:])) if isinstance(value, list) else "",
)
def test_numbers_that_cannot_be_meant_are_one_paragraph(mistake, tmp_path, words, text):
    (tmp_path / "digits.yaml").write_text(f"seed_everything: 1{'0' * 5000}")
    (tmp_path / "bits.yaml").write_text(f"{CONFIG.read_text()}\nseed_everything: 0x{'f' * 10000}")
    assert text in mistake(*words)


@pytest.mark.parametrize("target", [str(HUGE), f"topk:{HUGE}", "-1"])
def test_targets_of_explain_that_are_no_class_are_one_paragraph(mistake, tmp_path, target):
    Image.new("RGB", (20, 20)).save(tmp_path / "a.png")
    checkpoint = {"state_dict": Classifier("tiny_cnn", 2).state_dict()}
    checkpoint["hyper_parameters"] = {"network": "tiny_cnn", "num_classes": 2}
    checkpoint["pictures"] = {"module": "Classifier", "image_shape": [3, 16, 16]}
    torch.save(checkpoint, tmp_path / "some.ckpt")
    text = mistake("explain", "--model", "some.ckpt", "--images", "a.png", f"--target={target}")
    assert "expected " in text


def test_names_of_integers_are_those_of_the_options():
    nested = Namespace(data=Namespace(class_path="X", init_args=Namespace(sizes=[1, {"side": HUGE}])))
    with pytest.raises(ValueError, match=rf"^expected data.sizes.side from -{LARGEST} to {LARGEST}, got {HUGE}; pass"):
        check_integers(nested)


def test_integers_of_32_bits_flags_and_other_values_are_accepted():
    check_integers({"seed": LARGEST, "max_steps": -1, "flag": True, "text": str(HUGE), "rate": 1e30, "none": None})


@pytest.mark.parametrize("module", [Classifier, GuidedGradientClassifier, CAStreamClassifier])
@pytest.mark.parametrize("number", [0, -3, 10**7, HUGE, 2.5, "3"])
def test_numbers_of_classes_out_of_range_are_refused(module, number):
    with pytest.raises(ValueError, match=r"expected num_classes from 1 to 1000000, got .*; pass how many classes"):
        module("tiny_cnn", number)
