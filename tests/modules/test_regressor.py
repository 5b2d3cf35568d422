"""Regressors: errors and scores by hand in every precision, checkpoints, and mistakes."""

import math

import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from support.trainers import quiet_trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM
from interpretable_training.batches.read import pick
from interpretable_training.models import CNNLSTM
from interpretable_training.modules import LifetimeScore, Regressor

TINY = {"channels": 2, "width": 4, "hidden": 4, "kernel": 3}


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


def test_score_sums_over_batches_and_late_costs_more():
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


def test_estimates_have_unit_of_target():
    module = Regressor(First(), scale=50.0)
    x = torch.tensor([[[2.0, 0.0]], [[-1.0, 0.0]]])
    assert module(x).tolist() == [100.0, -50.0]
    assert module.predict_step((x, torch.zeros(2)), 0).tolist() == module.predict_step(x, 0).tolist() == [100.0, -50.0]


def test_batches_with_float_targets_have_no_class_labels():
    batch = {"image": torch.zeros(3, 2, 9), "engine": torch.tensor([1, 2, 3]), "mask": torch.zeros(3, 9).bool()}
    assert pick(batch).label_key == "engine"
    results = pick({**batch, "target": torch.tensor([4.0, 0.5, 7.0])})
    assert (results.image_key, results.label_key, results.target) == ("image", None, None)
    assert {"engine", "mask", "target"} <= results.rest.keys()
    assert pick({**batch, "target": torch.tensor([4, 0, 7])}).label_key == "target"


def test_module_is_explained_like_its_network():
    torch.manual_seed(0)
    module, x = Regressor("cnn_lstm", TINY, scale=10.0).eval(), torch.randn(2, 2, 9)
    assert_close(GradCAM()(module, x), 10 * GradCAM()(module.network, x))


def test_checkpoint_of_named_network_is_rebuilt(tmp_path):
    module = Regressor("cnn_bilstm", TINY, scale=7.0, score=True)
    trainer = quiet_trainer(tmp_path)
    trainer.strategy.connect(module)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    again = Regressor.load_from_checkpoint(tmp_path / "a.ckpt").eval()
    x = torch.randn(2, 2, 9)
    assert_close(again(x), module.eval()(x), rtol=0, atol=0)
    assert "val/score" in {f"val/{name}" for name in again.val_metrics.keys(keep_base=True)}


def test_checkpoint_of_object_needs_the_object(tmp_path):
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
def test_mistakes_are_explained(make, message):
    with pytest.raises(ValueError, match=message):
        make()


X = torch.tensor([[0.5], [1.0], [1.5], [0.25], [0.75]])[:, :, None].expand(5, 1, 4).clone()
TARGET = [60.3, 124.9, 141.7, 25.2, 90.1]  # none of which has few binary digits
ESTIMATE = [50.0, 100.0, 150.0, 25.0, 75.0]  # which half precision holds exactly


class Mean(nn.Module):
    """The mean of the series, by a layer that autocast runs in half precision."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1, bias=False)
        nn.init.constant_(self.linear.weight, 0.25)

    def forward(self, series):
        return self.linear(series[:, 0])


def by_hand(targets):
    d = [e - t for e, t in zip(ESTIMATE, targets)]
    return {
        "rmse": math.sqrt(sum(x * x for x in d) / len(d)),
        "mae": sum(abs(x) for x in d) / len(d),
        "score": sum(math.exp(-x / 13) - 1 if x < 0 else math.exp(x / 10) - 1 for x in d),
        "loss": sum((x / 100) ** 2 for x in d) / len(d),
    }


@pytest.mark.parametrize(
    ("precision", "given"),
    [
        ("32-true", torch.float32),
        ("64-true", torch.float64),
        ("bf16-mixed", torch.float32),
        ("bf16-true", torch.bfloat16),  # Lightning has rounded the targets before a module sees them
        ("16-true", torch.float16),
    ],
)
def test_errors_are_exact_in_every_precision(tmp_path, precision, given):
    """141.7 is 142 in bfloat16, and a squared error of 68.89 is 69: neither may reach what is logged."""
    data = DataLoader(TensorDataset(X, torch.tensor(TARGET, dtype=torch.float64)), batch_size=2)
    module = Regressor(Mean(), scale=100.0, score=True)
    logged = quiet_trainer(tmp_path, precision=precision).validate(module, data, verbose=False)[0]
    for name, value in by_hand(torch.tensor(TARGET).to(given).tolist()).items():
        assert logged[f"val/{name}"] == pytest.approx(value, rel=1e-4), name


def test_integer_targets_are_accepted(tmp_path):
    data = DataLoader(TensorDataset(X, torch.tensor([60, 125, 142, 25, 90])), batch_size=5)
    logged = quiet_trainer(tmp_path).validate(Regressor(Mean(), scale=100.0), data, verbose=False)[0]
    assert logged["val/mae"] == pytest.approx((10 + 25 + 8 + 0 + 15) / 5)


def test_single_series_is_a_batch():
    module = Regressor(Mean(), scale=100.0)
    assert module(X[:1]).tolist() == [50.0]
    assert module.predict_step(X[:1], 0).shape == (1,)


def test_score_equals_formula_on_both_sides_of_zero():
    score = LifetimeScore()
    score.update(torch.tensor([13.0, 0.0, 7.0]), torch.tensor([26.0, 0.0, -3.0]))
    assert_close(score.compute(), torch.tensor(2 * (math.e - 1)))
    score.reset()
    score.update(torch.tensor([1e-3]), torch.tensor([0.0]))
    assert_close(score.compute(), torch.tensor(math.expm1(1e-4)), rtol=1e-4, atol=0)


def test_plateau_schedule_monitors_the_error(tmp_path):
    data = DataLoader(TensorDataset(X, torch.tensor(TARGET)), batch_size=5)
    module = Regressor(
        Mean(),
        scale=100.0,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),  # nothing improves
        scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/rmse", patience=0),
    )
    fitted = quiet_trainer(tmp_path, max_epochs=3)
    fitted.fit(module, data, data)
    assert fitted.lr_scheduler_configs[0].monitor == "val/rmse"
    assert fitted.lr_scheduler_configs[0].scheduler.num_bad_epochs == 0  # two bad epochs, each ended by a reduction
