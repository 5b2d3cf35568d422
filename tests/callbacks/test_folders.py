"""Files lie beside the checkpoints, whatever logger there is."""

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, WandbLogger
from support.watched import Module, loader, trainer_of

from interpretable_training.callbacks import ExplanationLogger


def fit(tmp_path, logger):
    watch = [ExplanationLogger(max_images=2, hardest=0), ModelCheckpoint(monitor="val/loss")]
    trainer = trainer_of(tmp_path, watch, logger=logger, max_epochs=1, enable_checkpointing=True)
    trainer.fit(Module(), loader(), loader())
    return next(tmp_path.rglob("*.ckpt")).parents[1]


@pytest.mark.filterwarnings("ignore")
def test_with_a_folder_for_each_run(tmp_path):
    run = fit(tmp_path, CSVLogger(tmp_path))
    assert (run / "explanations" / "journal.jsonl").is_file()
    assert (run / "report.html").is_file()


@pytest.mark.filterwarnings("ignore")
def test_with_a_folder_that_runs_share(tmp_path, offline_wandb):
    run = fit(tmp_path, WandbLogger(project="p", save_dir=tmp_path, offline=True))
    offline_wandb()
    assert run != tmp_path
    assert (run / "explanations" / "journal.jsonl").is_file()
    assert (run / "report.html").is_file()
