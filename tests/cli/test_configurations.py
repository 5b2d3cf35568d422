"""Every configuration runs as it is, on a few small images; those of sweeps have tests of their own."""

import hashlib
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support.families import few
from torchvision.datasets import CIFAR100

from interpretable_training.cli import main
from interpretable_training.evaluation.trainer import EvaluationTrainer
from interpretable_training.models import CIFARResNet18, TinyCNN
from interpretable_training.models.build import OURS

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
RUNS_BY_DEFAULT = [path for path in CONFIGS if path.stem in ("baseline", "ca_stream_shapes", "evaluate", "repair")]
QUIET = ["--trainer.enable_progress_bar=false", "--trainer.accelerator=cpu"]
FIT = ["--trainer.fast_dev_run=1", *QUIET]
DRAWN = [f"--data.{key}={value}" for key, value in {"image_size": 16, "n_train": 12, "n_val": 12, "n_test": 12}.items()]
# What a folder of ImageNet in miniature needs: a network for three classes that is not downloaded, and small images.
MINIATURE = ["--data.image_size=32", "--data.num_workers=0", "--model.pretrained=false", "--model.num_classes=3"]
WHOLE = "--data.eval_transform=null"  # not scaled to 224
NOT_DRAWN = {
    "guided_gradient_digits": ["--data.image_size=16"],
    "guided_gradient_cifar100": ["--data.num_workers=0"],
    "guided_gradient_cifar100_mobilenetv2": ["--data.num_workers=0"],
    "ca_stream": ["--model.network=tiny_cnn", *MINIATURE],
    "opti_cam_study": ["--model.network=tiny_cnn", *MINIATURE, WHOLE],
    "opti_cam_study_vit": ["--model.network=tiny_vit", *MINIATURE, WHOLE, "--data.image_size=64"],
    "box_study": ["--model.network=tiny_cnn", *MINIATURE, WHOLE],
    "cmapss": [f"--data.n_{split}=2" for split in ("train", "val", "test")],
    "cmapss_fd001": ["--data.n_val=1"],
}
FEWER = {  # options of what takes long, or is meant for larger images
    "ExtremalPerturbation": {"steps": 1},
    "OptiCAM": {"steps": 1},
    "RISE": {"n": 4},
    "ExpectedGradCAM": {"n": 2},
    "ExpectedGradCAMPlusPlus": {"n": 2},
    "SmoothGrad": {"n": 2},
    "IntegratedGradients": {"steps": 2},
    "Insertion": {"steps": 2},
    "Deletion": {"steps": 2},
    "MaxSensitivity": {"n": 1},
    "AOPC": {"patch": 4},
    "interpretable_training.recipes.method_table.baselines": {"image_size": 16, "n": 2},
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Data and weights where configurations look for them, in miniature."""
    monkeypatch.chdir(tmp_path)
    photographs(tmp_path / "imagenet")
    engines(tmp_path / "CMAPSSData")
    cifar(tmp_path / "data" / CIFAR100.base_folder, monkeypatch)
    monkeypatch.setitem(OURS, "cifar_resnet18", lambda classes: CIFARResNet18(classes, width=2))
    (tmp_path / "runs" / "ca_stream").mkdir(parents=True)
    for name in ("tiny_cnn", "guided_tiny_cnn"):  # else they are trained first
        torch.save(TinyCNN(6).state_dict(), tmp_path / "runs" / "ca_stream" / f"{name}.pt")
    return tmp_path


def photographs(root):
    """ImageNet's folders for three classes, with the boxes of the validation images."""
    random = np.random.default_rng(0)
    for wnid in ("n01440764", "n02123045", "n15075141"):
        for split in ("train", "val"):
            file = root / split / wnid / f"{wnid}_{split}.JPEG"
            file.parent.mkdir(parents=True)
            Image.fromarray(random.integers(0, 256, (40, 48, 3), dtype=np.uint8)).save(file)
        boxes = root / "Annotations" / "CLS-LOC" / "val" / f"{wnid}_val.xml"
        boxes.parent.mkdir(parents=True, exist_ok=True)
        corners = "<xmin>12</xmin><ymin>8</ymin><xmax>31</xmax><ymax>27</ymax>"
        boxes.write_text(f"<annotation><object><name>x</name><bndbox>{corners}</bndbox></object></annotation>")


def cifar(folder, monkeypatch):
    """CIFAR-100's files with a handful of images."""
    folder.mkdir(parents=True)
    random, digests = np.random.default_rng(0), {}
    contents = {"meta": {"fine_label_names": [f"thing {i}" for i in range(100)]}}
    for name, n in (("train", 8), ("test", 4)):
        contents[name] = {"data": random.integers(0, 256, (n, 3072), dtype=np.uint8), "fine_labels": list(range(n))}
    for name, content in contents.items():
        (folder / name).write_bytes(pickle.dumps(content))
        digests[name] = hashlib.md5((folder / name).read_bytes(), usedforsecurity=False).hexdigest()
    for name in ("train", "test"):
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, digests[name]]])
    monkeypatch.setattr(CIFAR100, "meta", {**CIFAR100.meta, "md5": digests["meta"]})


def engines(folder):
    """C-MAPSS' files: two lives of 40 cycles each for training, and for testing."""
    folder.mkdir()
    numbers = [(e, t, *((e * s + t * s) % 7 for s in range(24))) for e in (1, 2) for t in range(1, 41)]
    rows = "".join(" ".join(map(str, row)) + "  \n" for row in numbers)
    for name, text in {"train": rows, "test": rows, "RUL": "3 \n99 \n"}.items():
        (folder / f"{name}_FD001.txt").write_text(text)


def with_fewer(value):
    """The same objects, with the options of FEWER."""
    if isinstance(value, list):
        return [with_fewer(part) for part in value]
    if not isinstance(value, dict):
        return value
    inner = {key: with_fewer(part) for key, part in value.items()}
    if inner.get("class_path") in FEWER:
        inner["init_args"] = {**inner.get("init_args", {}), **FEWER[inner["class_path"]]}
    return inner


def test_there_are_configurations():
    assert {"baseline", "box_study", "ca_stream"} <= {path.stem for path in CONFIGS}
    assert set(NOT_DRAWN) < {path.stem for path in CONFIGS}


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_the_first_line_is_the_command(path):
    command = "evaluate" if "metrics" in yaml.safe_load(path.read_text()) else "fit"
    assert path.read_text().startswith(f"# interpretable-training {command} --config configs/{path.name}")


def test_the_word_on_is_a_key(folder, capsys):
    """YAML takes it for true; stages of callbacks and scores of metrics are called so."""
    metrics = "{drop: {class_path: AverageDrop, init_args: {score: logit}}}"
    watch = f"{{class_path: InterpretabilityMetrics, init_args: {{stages: [validate], metrics: {metrics}}}}}"
    (folder / "on.yaml").write_text(f"trainer: {{callbacks: [{watch}]}}")
    baseline = Path(__file__).parents[2] / "configs" / "baseline.yaml"
    with pytest.raises(SystemExit):
        main(["fit", "--config", str(baseline), "--config", "on.yaml", "--print_config"])
    (callback,) = yaml.safe_load(capsys.readouterr().out)["trainer"]["callbacks"]
    printed = callback["init_args"]
    assert printed["stages"] == ["validate"]
    inner = printed["metrics"]["drop"]["init_args"]
    assert inner["score"] == "logit"


@pytest.mark.parametrize("path", few(CONFIGS, *RUNS_BY_DEFAULT), ids=lambda path: path.stem)
def test_it_runs(folder, path, monkeypatch):
    described = yaml.safe_load(path.read_text())
    (folder / "small.yaml").write_text(yaml.safe_dump(with_fewer(described), sort_keys=False))
    small = NOT_DRAWN.get(path.stem, DRAWN)
    if "metrics" not in described:
        fitted, fit = [], EvaluationTrainer.fit
        monkeypatch.setattr(
            EvaluationTrainer, "fit", lambda trainer, *a, **k: (fitted.append(trainer), fit(trainer, *a, **k))
        )
        main(["fit", "--config", str(path), *small, *FIT])
        assert fitted[0].global_step == 1
        return
    main(["evaluate", "--config", "small.yaml", *small, *QUIET, "--max_images=2", "--output=found"])
    rows = (folder / "found" / "table.csv").read_text().splitlines()[1:]
    methods = {*described["methods"], "fakecam", "random"}
    assert {row.split(",")[0] for row in rows} == methods
    assert len(rows) == len(methods) * len(described["metrics"])
