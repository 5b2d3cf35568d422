"""Signals (B, C, T): what needs no picture works, what does says so."""

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.modules import Classifier


def test_metrics_and_drift_work_and_overlays_say_what_they_need(tmp_path):
    network = nn.Sequential(
        nn.Conv1d(2, 4, 5, padding=2), nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)
    )
    signals = torch.randn(12, 2, 40, generator=torch.Generator().manual_seed(0))
    loader = DataLoader(TensorDataset(signals, torch.arange(12) % 3), 4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    watch = [ExplanationLogger(n_images=4), InterpretabilityMetrics(max_images=4), ExplanationDrift(n_images=4)]
    trainer = L.Trainer(max_epochs=2, callbacks=watch, enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    with pytest.warns(UserWarning, match=r"ExplanationLogger failed.*expected images \(B, C, H, W\)"):
        trainer.fit(Classifier(network, 3), loader, loader)
    assert not watch[2].reasons
    logged = trainer.callback_metrics
    assert 0 <= logged["xai/gradcam/shift_previous"] <= 1
    assert logged["xai/gradcam/average_drop"] >= 0
