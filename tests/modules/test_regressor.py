import math

import lightning as L
import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from interpretable_training.attribution import GradCAM
from interpretable_training.batches.read import pick
from interpretable_training.models import CNNLSTM
from interpretable_training.modules import LifetimeScore, Regressor

TINY = {"channels": 2, "width": 4, "hidden": 4, "kernel": 3}


def quiet_trainer(folder, **kwargs):
    return L.Trainer(
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **kwargs},
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


class First(nn.Module):
    """Says the first number of the series."""

    def __init__(self):
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(()))

    def forward(self, series):
        return series[:, 0, :1] + 0 * self.unused


def series(*values):
    return [(torch.full((1, 3), float(estimate)), torch.tensor(float(target))) for estimate, target in values]


def test_errors_and_score_are_those_by_hand(tmp_path):
    """Differences -13, 10 and 0: exp(1) - 1 twice; the squares are 169, 100 and 0."""
    data = DataLoader(series((0.27, 40), (0.40, 30), (0.5, 50)), batch_size=2)
    logged = quiet_trainer(tmp_path).validate(Regressor(First(), scale=100.0, score=True), data, verbose=False)[0]
    assert logged["val/rmse"] == pytest.approx(math.sqrt(269 / 3))
    assert logged["val/mae"] == pytest.approx(23 / 3)
    assert logged["val/score"] == pytest.approx(2 * (math.e - 1), rel=1e-5)
    assert logged["val/loss"] == pytest.approx(269 / 3 / 100**2, rel=1e-5)


def test_the_score_of_two_halves_is_that_of_the_whole_and_late_costs_more():
    preds, target = torch.tensor([10.0, 50.0, 90.0, 33.0]), torch.tensor([20.0, 45.0, 90.0, 30.0])
    whole, halves = LifetimeScore(), LifetimeScore()
    whole.update(preds, target)
    halves.update(preds[:1], target[:1])
    halves.update(preds[1:], target[1:])
    assert_close(halves.compute(), whole.compute())
    late, early = LifetimeScore(), LifetimeScore()
    assert late(torch.tensor([5.0]), torch.tensor([0.0])) > early(torch.tensor([0.0]), torch.tensor([5.0])) > 0


def test_pairs_and_dicts_train_alike(tmp_path):
    generator = torch.Generator().manual_seed(0)
    pairs = [(torch.randn(2, 8, generator=generator), torch.tensor(float(i))) for i in range(6)]
    losses = []
    for items in (pairs, [{"image": x, "target": y, "engine": 1} for x, y in pairs]):
        torch.manual_seed(0)
        trainer = quiet_trainer(tmp_path)
        trainer.fit(Regressor("cnn_lstm", TINY), DataLoader(items, batch_size=3), DataLoader(items, batch_size=3))
        losses.append(float(trainer.callback_metrics["val/loss"]))
    names = {f"{split}/{name}" for split in ("train", "val") for name in ("loss", "rmse", "mae")}
    assert set(trainer.callback_metrics) == names
    assert losses[0] == losses[1]


def test_estimates_are_of_the_unit_of_the_target():
    module = Regressor(First(), scale=50.0)
    x = torch.tensor([[[2.0, 0.0]], [[-1.0, 0.0]]])
    assert module(x).tolist() == [100.0, -50.0]
    assert module.predict_step((x, torch.zeros(2)), 0).tolist() == module.predict_step(x, 0).tolist() == [100.0, -50.0]


def test_nothing_in_a_batch_is_taken_for_class_labels_where_the_target_is_a_number():
    batch = {"image": torch.zeros(3, 2, 9), "engine": torch.tensor([1, 2, 3]), "mask": torch.zeros(3, 9).bool()}
    assert pick(batch).label_key == "engine"
    found = pick({**batch, "target": torch.tensor([4.0, 0.5, 7.0])})
    assert (found.image_key, found.label_key, found.target) == ("image", None, None)
    assert {"engine", "mask", "target"} <= found.rest.keys()
    assert pick({**batch, "target": torch.tensor([4, 0, 7])}).label_key == "target"


def test_the_whole_module_is_explained_like_its_network():
    torch.manual_seed(0)
    module, x = Regressor("cnn_lstm", TINY, scale=10.0).eval(), torch.randn(2, 2, 9)
    assert_close(GradCAM()(module, x), 10 * GradCAM()(module.network, x))


def test_checkpoints_of_named_networks_rebuild_themselves(tmp_path):
    module = Regressor("cnn_bilstm", TINY, scale=7.0, score=True)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Regressor.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    x = torch.randn(2, 2, 9)
    assert_close(again(x), module.eval()(x), rtol=0, atol=0)
    assert "val/score" in {f"val/{name}" for name in again.val_metrics.keys(keep_base=True)}


def test_checkpoints_of_objects_ask_for_them(tmp_path):
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(Regressor(CNNLSTM(1, **TINY)))
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    with pytest.raises(ValueError, match=r"load_from_checkpoint\(path, network=CNNLSTM"):
        Regressor.load_from_checkpoint(tmp_path / "a.ckpt")
    assert Regressor.load_from_checkpoint(tmp_path / "a.ckpt", network=CNNLSTM(1, **TINY)).scale == 1


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Regressor(nn.Flatten()).training_step((torch.zeros(2, 3, 4), torch.zeros(2)), 0), r"got \(2, 12\)"),
        (
            lambda: Regressor(First()).training_step((torch.zeros(2, 3, 4), torch.zeros(2, 1)), 0),
            r"target \(2,\).*\(2, 1\)",
        ),
        (lambda: Regressor(First(), TINY), "expected network as a name beside network_kwargs, got First"),
        (lambda: Regressor(First(), scale=0.0), r"expected scale above 0, got 0\.0"),
    ],
)
def test_mistakes_are_sentences(make, message):
    with pytest.raises(ValueError, match=message):
        make()
