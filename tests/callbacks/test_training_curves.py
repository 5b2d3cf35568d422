import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from PIL import Image
from torch.utils.data import DataLoader

from interpretable_training.callbacks import TrainingCurves
from interpretable_training.modules import Classifier
from interpretable_training.visual import draw_curves


def trainer(folder, *callbacks, **kwargs):
    return L.Trainer(
        **{"logger": False, "max_epochs": 2, **kwargs},
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        enable_progress_bar=False,
        enable_model_summary=False,
    )


@pytest.fixture
def module():
    torch.manual_seed(0)
    return Classifier("tiny_cnn", 2, network_kwargs={"width": 4})


@pytest.fixture
def loader():
    generator = torch.Generator().manual_seed(0)
    return DataLoader([(torch.randn(3, 16, 16, generator=generator), i % 2) for i in range(8)], batch_size=4)


class Stop(L.Callback):
    """Ends the training in the second epoch, as a user or a bug may."""

    def __init__(self, error):
        self.error = error

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.current_epoch == 1:
            raise self.error


@pytest.mark.usefixtures("figures")
def test_rows_equal_those_of_the_logger_beside_the_picture(tmp_path, module, loader):
    curves, logger = TrainingCurves(), CSVLogger(tmp_path)
    trainer(tmp_path, curves, logger=logger).fit(module, loader, loader)
    assert sorted(curves.epochs) == [0, 1]  # the sanity check is no epoch
    for row in logger.experiment.metrics:
        for key in row.keys() - {"epoch", "step"}:
            assert curves.epochs[row["epoch"]][key] == pytest.approx(row[key])
    assert curves.epochs[1].keys() == {"train/loss", "train/accuracy", "val/loss", "val/accuracy"}
    with Image.open(f"{logger.log_dir}/curves.png") as picture:
        assert len(picture.convert("RGB").getcolors(10**6)) > 2


@pytest.mark.parametrize(("error", "seen"), [(KeyboardInterrupt(), SystemExit), (OSError("disk"), OSError)])
def test_an_interrupted_training_has_its_picture(tmp_path, module, loader, error, seen):
    with pytest.raises(seen):
        trainer(tmp_path, TrainingCurves(), Stop(error)).fit(module, loader, loader)
    assert (tmp_path / "explanations" / "curves.png").exists()


def test_a_resumed_training_keeps_its_first_epochs(tmp_path, module, loader):
    first = TrainingCurves()
    run = trainer(tmp_path, first, ModelCheckpoint(tmp_path), max_epochs=1)
    run.fit(module, loader, loader)
    path = run.checkpoint_callback.best_model_path
    torch.load(path, weights_only=True)
    second = TrainingCurves()
    trainer(tmp_path, second).fit(module, loader, loader, ckpt_path=path)
    assert sorted(second.epochs) == [0, 1]
    assert second.epochs[0] == first.epochs[0]


def test_old_validation_values_are_not_repeated(tmp_path, module, loader):
    curves = TrainingCurves()
    trainer(tmp_path, curves, check_val_every_n_epoch=2, max_epochs=3).fit(module, loader, loader)
    assert ["val/loss" in curves.epochs[epoch] for epoch in range(3)] == [False, True, False]


def test_training_is_the_same_with_and_without_it(tmp_path, loader):
    states = []
    for callbacks in ([], [TrainingCurves()]):
        torch.manual_seed(0)
        module = Classifier("tiny_cnn", 2, network_kwargs={"width": 4})
        trainer(tmp_path, *callbacks).fit(module, loader, loader)
        states.append({**module.state_dict(), "random": torch.get_rng_state()})
    torch.testing.assert_close(*states, rtol=0, atol=0)


def test_fast_dev_run_writes_nothing(tmp_path, module, loader):
    trainer(tmp_path, TrainingCurves(), fast_dev_run=True).fit(module, loader, loader)
    assert [*tmp_path.iterdir()] == []


def test_a_picture_that_cannot_be_written_only_warns(tmp_path, module, loader):
    (tmp_path / "explanations" / "curves.png").mkdir(parents=True)
    with pytest.warns(UserWarning, match=r"could not write curves\.png"):
        trainer(tmp_path, TrainingCurves()).fit(module, loader, loader)


def test_validation_alone_is_no_training(tmp_path, module, loader):
    curves = TrainingCurves()
    trainer(tmp_path, curves).validate(module, loader, verbose=False)
    assert curves.epochs == {}


def test_drawing_names_the_keys_that_it_needs(tmp_path):
    with pytest.raises(ValueError, match=r"expected rows with keys such as 'train/loss'.*got the keys \['epoch', 'los"):
        draw_curves([{"epoch": 0, "loss": 1.0}], tmp_path / "curves.png")
