"""Errors and scores of a regressor: by hand in Python's numbers, in every precision a trainer has."""

import math

import lightning as L
import pytest
import torch
from lightning.pytorch.cli import ReduceLROnPlateau
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.modules import LifetimeScore, Regressor

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


def trainer(folder, **options):
    return L.Trainer(
        **{"max_epochs": 1, "logger": False, "enable_checkpointing": False, **options},
        accelerator="cpu",
        default_root_dir=folder,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


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
def test_errors_are_those_of_the_targets_in_every_precision(tmp_path, precision, given):
    """141.7 is 142 in bfloat16, and a squared error of 68.89 is 69: neither may reach what is logged."""
    data = DataLoader(TensorDataset(X, torch.tensor(TARGET, dtype=torch.float64)), batch_size=2)
    module = Regressor(Mean(), scale=100.0, score=True)
    logged = trainer(tmp_path, precision=precision).validate(module, data, verbose=False)[0]
    for name, value in by_hand(torch.tensor(TARGET).to(given).tolist()).items():
        assert logged[f"val/{name}"] == pytest.approx(value, rel=1e-4), name


def test_whole_numbers_are_targets_too(tmp_path):
    data = DataLoader(TensorDataset(X, torch.tensor([60, 125, 142, 25, 90])), batch_size=5)
    logged = trainer(tmp_path).validate(Regressor(Mean(), scale=100.0), data, verbose=False)[0]
    assert logged["val/mae"] == pytest.approx((10 + 25 + 8 + 0 + 15) / 5)


def test_one_series_is_a_batch():
    module = Regressor(Mean(), scale=100.0)
    assert module(X[:1]).tolist() == [50.0]
    assert module.predict_step(X[:1], 0).shape == (1,)


def test_a_step_of_the_score_is_that_of_the_formula_on_both_sides_and_at_zero():
    score = LifetimeScore()
    score.update(torch.tensor([13.0, 0.0, 7.0]), torch.tensor([26.0, 0.0, -3.0]))
    assert_close(score.compute(), torch.tensor(2 * (math.e - 1)))
    score.reset()
    score.update(torch.tensor([1e-3]), torch.tensor([0.0]))
    assert_close(score.compute(), torch.tensor(math.expm1(1e-4)), rtol=1e-4, atol=0)


def test_the_learning_rate_waits_for_the_error(tmp_path):
    data = DataLoader(TensorDataset(X, torch.tensor(TARGET)), batch_size=5)
    module = Regressor(
        Mean(),
        scale=100.0,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.0),  # nothing improves
        scheduler=lambda o: ReduceLROnPlateau(o, monitor="val/rmse", patience=0),
    )
    fitted = trainer(tmp_path, max_epochs=3)
    fitted.fit(module, data, data)
    assert fitted.lr_scheduler_configs[0].monitor == "val/rmse"
    assert fitted.lr_scheduler_configs[0].scheduler.num_bad_epochs == 0  # two bad epochs, each ended by a reduction
