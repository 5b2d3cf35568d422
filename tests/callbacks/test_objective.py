import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.callbacks import InterpretabilityMetrics, Objective
from interpretable_training.modules import Classifier

DATA = TensorDataset(torch.rand(12, 1, 8, 8, generator=torch.Generator().manual_seed(0)), torch.arange(12) % 3)


def fit(callbacks, folder):
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=2, callbacks=callbacks, enable_checkpointing=False, default_root_dir=folder, **quiet)
    trainer.fit(Classifier(network, 3), DataLoader(DATA, 4), DataLoader(DATA, 4))
    return trainer.callback_metrics


def test_it_is_the_weighted_sum_of_what_was_logged(tmp_path):
    weights = {"val/accuracy": 1.0, "xai/gradcam/average_gain": 0.01, "val/loss": -0.5}
    logged = fit([InterpretabilityMetrics(max_images=4), Objective(weights)], tmp_path)
    by_hand = logged["val/accuracy"] + 0.01 * logged["xai/gradcam/average_gain"] - 0.5 * logged["val/loss"]
    torch.testing.assert_close(logged["val/objective"], by_hand)


def test_values_that_are_not_logged_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"expected the values \['val/acuracy'\].*got \[.*'val/accuracy'"):
        fit([Objective({"val/acuracy": 1.0})], tmp_path)
    with pytest.raises(ValueError, match="at least one"):
        Objective({})
