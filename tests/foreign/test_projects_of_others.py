"""All watching callbacks in small projects of others, under both packages, and a check that they change nothing."""

import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from support.foreign_zoo import Project, loaders, projects

from interpretable_training.attribution import GradCAM, Gradient
from interpretable_training.callbacks import (
    ExplanationAlarms,
    ExplanationDrift,
    ExplanationLogger,
    InterpretabilityMetrics,
)
from interpretable_training.metrics import AverageDrop
from interpretable_training.report.journal import read_journal
from interpretable_training.testing import verify_observer

pytestmark = pytest.mark.slow
PACKAGES = ("lightning.pytorch", "pytorch_lightning")
NAMES = ("transformers-vit", "transformers-convnext", "timm-mixup-ema", "timm-compiled", "smp-unet", "lightly-simclr")
NAMES += ("torchmetrics", "two-optimizers", "transformers-segformer", "torchvision-detection", "image-and-table")
QUIET = {"enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu", "log_every_n_steps": 1}
NAMES += ("torchgeo",)
NEEDS = {
    "torchgeo": "torchgeo",
    "transformers": "transformers",
    "smp": "segmentation_models_pytorch",
    "lightly": "lightly",
}


def package_of(name):
    return pytest.importorskip(name)


def watching(**options):
    few = {"max_images": 3, "on_error": "raise", **options}
    methods = {"gradcam": GradCAM(), "gradient": Gradient()}
    return [
        ExplanationLogger(methods, hardest=1, **few),
        InterpretabilityMetrics(methods, [AverageDrop()], **few),
        ExplanationDrift(methods, **few),
        ExplanationAlarms(methods, alike=-1.0, border=0.0, drift=0.0, **few),
    ]


def project_of(package, name) -> Project:
    if name == "torchgeo" and package.__name__ != "lightning.pytorch":
        pytest.skip("the task is one of lightning.pytorch")
    for start, needed in NEEDS.items():
        if name.startswith(start):
            pytest.importorskip(needed)
    return projects(package)[name]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("package", PACKAGES)
def test_projects_are_explained_in_every_epoch(tmp_path, package, name):
    pl = package_of(package)
    project, loggers = project_of(pl, name), importlib.import_module(f"{package}.loggers")
    board = loggers.TensorBoardLogger(tmp_path, name="board")
    options = {"max_epochs": 2, "logger": board, "enable_checkpointing": False, "default_root_dir": tmp_path}
    trainer = pl.Trainer(callbacks=watching(**project.options), **options, **QUIET)
    trainer.fit(project.module(), *project.loaders())
    (journal,) = tmp_path.rglob("journal.jsonl")
    lines = read_journal(journal.parent)
    assert lines.of("failure") == []
    assert {(line["epoch"], line["method"]) for line in lines.of("maps")} == {
        (epoch, method) for epoch in (0, 1) for method in ("gradcam", "gradient")
    }
    assert {f"xai/{method}/average_drop" for method in ("gradcam", "gradient")} <= set(trainer.callback_metrics)
    assert sum(file.stat().st_size for file in tmp_path.rglob("events.out*")) > 20_000  # pictures


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("package", PACKAGES)
def test_callbacks_change_nothing_in_projects_of_others(tmp_path, package, name):
    pl = package_of(package)
    project = project_of(pl, name)

    def make_trainer(given):
        options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False, "default_root_dir": tmp_path}
        return pl.Trainer(callbacks=[*given], **options, **QUIET)

    data = project.loaders
    verify_observer(make_trainer, project.module, data, lambda: watching(**project.options)).raise_if_different()


def test_folds_with_the_same_callbacks_are_runs_of_their_own(tmp_path):
    import lightning.pytorch as pl

    callbacks, steps = watching(), []
    for fold in range(2):
        options = {"max_epochs": 1, "logger": False, "enable_checkpointing": False}
        trainer = pl.Trainer(callbacks=callbacks, default_root_dir=tmp_path / str(fold), **options, **QUIET)
        torch.manual_seed(0)
        trainer.fit(projects(pl)["torchmetrics"].module(), *loaders())
        lines = read_journal(tmp_path / str(fold) / "explanations")
        steps.append([(line["epoch"], line["step"], line["method"]) for line in lines.of("maps")])
        drift = [line for line in lines.of("drift") if line["method"] == "gradcam"]
        shifts = [row["first"]["shift"] for row in drift[0]["rows"]]
        assert set(shifts) <= {0, None}  # nothing of the fold before; None of constant maps
    assert steps[0] == steps[1] != []


def test_pruned_trials_of_optuna_end_their_runs(tmp_path):
    optuna = pytest.importorskip("optuna")
    import lightning.pytorch as pl

    class Prune(pl.Callback):
        def __init__(self, trial):
            self.trial = trial

        def on_validation_end(self, trainer, module):
            self.trial.report(float(trainer.callback_metrics["xai/gradcam/average_drop"]), trainer.current_epoch)
            if self.trial.should_prune():
                raise optuna.TrialPruned

    def objective(trial):
        callbacks = [*watching(), Prune(trial)]
        options = {"max_epochs": 2, "logger": False, "enable_checkpointing": False, "num_sanity_val_steps": 0}
        root = tmp_path / str(trial.number)
        trainer = pl.Trainer(callbacks=callbacks, default_root_dir=root, **options, **QUIET)
        trainer.fit(projects(pl)["torchmetrics"].module(), *loaders())
        return float(trainer.callback_metrics["xai/gradcam/average_drop"])

    study = optuna.create_study(pruner=optuna.pruners.ThresholdPruner(upper=-1.0))  # prunes each trial
    study.optimize(objective, n_trials=2)
    assert [trial.state.name for trial in study.trials] == ["PRUNED", "PRUNED"]
    for number in (0, 1):
        assert "</html>" in (tmp_path / str(number) / "explanations" / "report.html").read_text()[-20:]


def test_hydra_template_runs_with_the_documented_command(tmp_path):
    pytest.importorskip("hydra")
    root = Path(__file__).parents[2]
    page = (root / "docs" / "existing-project.md").read_text()
    watch = re.search(r"<!-- test: hydra -->\n```yaml\n(.*?)```", page, re.S)[1]
    command = re.search(r"python src/train.py '(callbacks=.*?)'", page)[1]
    files = {
        "configs/train.yaml": "defaults:\n  - _self_\n  - callbacks: default\n",
        "configs/callbacks/default.yaml": "summary:\n  _target_: lightning.pytorch.callbacks.LearningRateMonitor\n",
        "configs/callbacks/watch.yaml": watch,
        "src/train.py": "import hydra, sys\n"
        "import lightning.pytorch as pl\n"
        f"sys.path.insert(0, {str(root / 'tests')!r})\n"
        "from support.foreign_zoo import loaders, projects\n"
        "@hydra.main(version_base='1.3', config_path='../configs', config_name='train.yaml')\n"
        "def main(cfg):\n"
        "    callbacks = [hydra.utils.instantiate(c) for c in cfg.callbacks.values() if '_target_' in c]\n"
        "    logger = pl.loggers.CSVLogger('logs')\n"
        "    trainer = pl.Trainer(max_epochs=1, callbacks=callbacks, logger=logger, enable_progress_bar=False)\n"
        "    trainer.fit(projects(pl)['torchmetrics'].module(), *loaders())\n"
        "main()\n",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    ran = subprocess.run(
        [sys.executable, "src/train.py", command], capture_output=True, text=True, timeout=600, cwd=tmp_path
    )
    assert ran.returncode == 0, ran.stderr[-2000:]
    assert list(tmp_path.rglob("panel-epoch0000*.png"))
    assert list(tmp_path.rglob("report.html"))
