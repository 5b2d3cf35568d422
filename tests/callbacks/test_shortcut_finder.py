"""Numbers, journal lines and pictures of `ShortcutFinder`, and its schedule."""

import logging

import pytest
import torch
from support.watched import Memory, Module, fit, loader, record, trainer_of
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ShortcutFinder
from interpretable_training.report.journal import read_journal
from interpretable_training.report.shortcut_section import shortcut_parts

NUMBERS = {f"xai/gradcam/shortcut/{name}" for name in ("score", "claimed", "share", "clusters")}


class ByColor(Module):
    """Its logit of a class is the amount of one color; it hardly learns."""

    def __init__(self):
        network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
        with torch.no_grad():
            network[0].weight.copy_(torch.eye(3)[:, :, None, None])
            network[0].bias.fill_(-1.0)
            network[4].weight.copy_(100 * torch.eye(3))
        super().__init__(network)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-9)


def marked(n=60):
    generator = torch.Generator().manual_seed(0)
    images, target = 0.3 * torch.randn(n, 3, 32, 32, generator=generator), torch.arange(n) % 3
    for i in range(0, n - n // 4):
        y, x = torch.randint(28, (2,), generator=generator).tolist()
        images[i, :, y : y + 4, x : x + 4] = 3 * torch.eye(3)[target[i], :, None, None]
    return DataLoader(TensorDataset(images, target), batch_size=20)


def test_a_shortcut_is_logged_shown_and_warned_of_at_the_end(tmp_path, caplog):
    finder, logger = ShortcutFinder(GradCAM(layer="1"), max_images=60, on_error="raise"), Memory()
    trainer = trainer_of(tmp_path, [finder], logger=logger, max_epochs=2)
    with caplog.at_level(logging.WARNING, "lightning.pytorch.shortcuts"):
        trainer.fit(ByColor(), marked(), marked())
    numbers = {name: value for _, metrics in logger.numbers for name, value in metrics.items() if "shortcut" in name}
    assert set(numbers) == NUMBERS
    assert numbers["xai/gradcam/shortcut/claimed"] == 1.0
    assert numbers["xai/gradcam/shortcut/share"] == pytest.approx(0.75, abs=0.05)
    assert [m for m in caplog.messages if "the network uses a shortcut" in m]
    assert finder.shortcuts["gradcam"].claimed
    run = record(tmp_path)
    (line,) = run.of("shortcuts")
    assert (line["claimed"], line["step"]) == (True, trainer.global_step)
    assert len(run.of("alarm")) == 1
    (part,) = shortcut_parts(read_journal(next(tmp_path.rglob("journal.jsonl")).parent))
    assert len(part["rows"]) == len(part["sheets"]) == len(finder.shortcuts["gradcam"].clusters)
    assert [row[-1] for row in part["rows"]].count("yes") == 3
    assert all(sheet["src"].startswith("data:image/") for sheet in part["sheets"])
    shown = {name: images for _, _, images in logger.pictures for name in images}
    assert len([name for name in shown if name.startswith("xai/gradcam/shortcut/cluster_")]) == len(part["rows"])
    assert "shortcuts" in next(tmp_path.rglob("report.html")).read_text()


def test_nothing_is_said_of_an_ordinary_network(tmp_path, caplog):
    finder = ShortcutFinder(max_images=8, on_error="raise")
    with caplog.at_level(logging.WARNING, "lightning.pytorch.shortcuts"):
        fit(tmp_path, [finder], max_epochs=1)
    assert caplog.messages == []
    assert not finder.shortcuts["gradcam"].claimed
    (line,) = record(tmp_path).of("shortcuts")
    assert line["message"] == "no shortcut found in 8 images"
    assert record(tmp_path).of("alarm") == []


def test_epochs_and_stages_are_searched_on_request(tmp_path):
    finder = ShortcutFinder(max_images=4, every_n_epochs=1, stages=("fit", "test"), on_error="raise")
    trainer = fit(tmp_path, [finder], max_epochs=2)
    steps = [line["step"] for line in record(tmp_path).of("shortcuts")]
    assert len(steps) == len(set(steps)) == 2  # the end of fit was searched in the last epoch
    assert set(trainer.callback_metrics) >= NUMBERS
    assert "test/xai/gradcam/shortcut/score" in trainer.test(Module(), loader(), verbose=False)[0]


class Fails(GradCAM):
    def combine(self, A, dA):
        raise RuntimeError("boom")


def test_a_fault_does_not_end_the_training(tmp_path):
    finder = ShortcutFinder(Fails(), max_images=4)
    with pytest.warns(UserWarning, match="boom"):
        trainer = fit(tmp_path, [finder], max_epochs=1)
    assert trainer.state.finished
    assert len(record(tmp_path).of("failure")) == 1
    with pytest.raises(TypeError, match="expected an option of ShortcutFinder, got 'max_image'"):
        ShortcutFinder(max_image=4)
