import lightning as L
import pytest
import torch
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.optim.lr_scheduler import MultiStepLR

from interpretable_training.callbacks import LearningRateWarmUp


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_start(self, trainer, *_):
        self.seen.append(trainer.optimizers[0].param_groups[0]["lr"])


class Stepped(BoringModel):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), 0.1)
        return [optimizer], [MultiStepLR(optimizer, [3], gamma=0.2)]


@pytest.mark.parametrize(("epochs", "first"), [(1, [0.025, 0.05, 0.075, 0.1, 0.1, 0.1]), (2, [0.0125, 0.025, 0.0375])])
def test_rates_rise_batch_by_batch_and_the_schedule_follows(tmp_path, epochs, first):
    rates = Rates()
    trainer = L.Trainer(
        accelerator="cpu",
        max_epochs=4,
        limit_train_batches=4,
        limit_val_batches=0,
        callbacks=[LearningRateWarmUp(epochs), rates],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Stepped())
    assert rates.seen[: len(first)] == pytest.approx(first)
    assert rates.seen[8:] == pytest.approx([0.1] * 4 + [0.02] * 4)


def test_no_epochs_are_refused():
    with pytest.raises(ValueError, match="expected epochs >= 1, got 0"):
        LearningRateWarmUp(0)
