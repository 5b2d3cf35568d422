"""Signals (B, C, T) and volumes (B, C, D, H, W) are watched as images are."""

import lightning as L
import pytest
import torch
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torchvision.transforms.functional import pil_to_tensor

from interpretable_training.callbacks import ExplanationDrift, ExplanationLogger, InterpretabilityMetrics
from interpretable_training.modules import Classifier
from interpretable_training.report.journal import read_journal
from interpretable_training.visual import overlay
from interpretable_training.visual.colors import Colors


def watched(network, x, folder, *more):
    loader = DataLoader(TensorDataset(x, torch.arange(len(x)) % 3), 4)
    quiet = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False, "accelerator": "cpu"}
    watch = [ExplanationLogger(max_images=4, on_error="raise"), *more]
    trainer = L.Trainer(max_epochs=2, callbacks=watch, enable_checkpointing=False, default_root_dir=folder, **quiet)
    trainer.fit(Classifier(network, 3), loader, loader)
    return trainer.callback_metrics


def test_signals(tmp_path):
    pool = [nn.ReLU(), nn.AdaptiveAvgPool1d(1), nn.Flatten(), nn.Linear(4, 3)]
    network = nn.Sequential(nn.Conv1d(2, 4, 5, padding=2), *pool)
    signals = torch.randn(12, 2, 40, generator=torch.Generator().manual_seed(0))
    more = [InterpretabilityMetrics(max_images=4, on_error="raise"), ExplanationDrift(max_images=4, on_error="raise")]
    logged = watched(network, signals, tmp_path, *more)
    assert 0 <= logged["xai/gradcam/shift_previous"] <= 1
    assert logged["xai/gradcam/average_drop"] >= 0
    drawn_and_told(tmp_path, (192, 192))


def test_volumes(tmp_path):
    pool = [nn.ReLU(), nn.AdaptiveAvgPool3d(1), nn.Flatten(), nn.Linear(4, 3)]
    network = nn.Sequential(nn.Conv3d(1, 4, 3, padding=1), *pool)
    volumes = torch.rand(12, 1, 6, 20, 24, generator=torch.Generator().manual_seed(0))
    watched(network, volumes, tmp_path)
    drawn_and_told(tmp_path, (72, 20))
    shown = pil_to_tensor(Image.open(tmp_path / "explanations" / "images" / "0.png").convert("L"))[0]
    for i, part in zip((1, 3, 5), shown.float().div(255).split(24, 1)):
        assert (part - volumes[0, 0, i]).abs().max() < 0.01


def drawn_and_told(folder, size):
    assert Image.open(folder / "explanations" / "images" / "0.png").size == size
    assert len(list((folder / "explanations" / "panels").glob("panel-epoch*.png"))) == 2
    lines = [line for line in read_journal(folder / "explanations").lines if line["kind"] == "maps"]
    assert lines
    assert (folder / "explanations" / "report.html").stat().st_size > 10_000


def test_a_line_for_each_channel():
    """A step up in the upper band, a constant in the middle of the lower one."""
    signal = torch.zeros(1, 2, 8)
    signal[0, 0, 4:] = 5.0
    picture = Colors((0.0,), (1.0,), "given").pictures(signal)[0].mean(0)
    dark = picture < 0.5
    assert picture.shape == (192, 192)
    assert dark[:96, :80].nonzero()[:, 0].min() > 80  # low before the step
    assert dark[:96, 110:].nonzero()[:, 0].max() < 15  # high behind it
    assert dark[96:].nonzero()[:, 0].unique().tolist() == [48]


def test_the_map_of_a_signal_lies_behind_its_time():
    pictures = torch.ones(1, 3, 6, 12)
    S = torch.tensor([[0.0, 0.0, 1.0, 0.0]])
    drawn = overlay(pictures, S, scale=(0.0, 1.0)).int().sum(-1)[0]
    assert (drawn == drawn[0]).all()
    bright = drawn[0] != drawn[0, 0]
    assert bright.tolist() == [False] * 6 + [True] * 3 + [False] * 3


def test_the_map_of_a_volume_lies_on_its_slices():
    pictures, S = torch.ones(1, 3, 4, 12), torch.rand(1, 5, 4, 4)
    drawn = overlay(pictures, S, scale=(0, 1))
    for i, part in zip((0, 2, 4), drawn.split(4, 2)):
        assert torch.equal(part, overlay(pictures[..., :4], S[:, i], scale=(0, 1)))


@pytest.mark.parametrize("shape", [(2, 40, 30), (1, 1, 2), (1, 3, 5000)])
def test_pictures_of_many_channels_short_and_long_signals(shape):
    signals = torch.randn(shape)
    signals[0, 0, 0] = torch.nan
    pictures = Colors(None, None, "given").pictures(signals)
    assert pictures.shape == (shape[0], 3, 192, 192)
    assert 0 < pictures.mean() < 1
    assert overlay(pictures, torch.rand(shape[0], shape[2])).shape == (shape[0], 192, 192, 3)
