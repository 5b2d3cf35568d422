"""Training of a network that estimates one number, such as the cycles that are left to an engine.

    RMSE  = sqrt(mean over i of d[i]^2)                                   (1)
    MAE   = mean over i of |d[i]|                                         (2)
    score = sum over i of exp(-d[i] / 13) - 1  where d[i] < 0             (3)
                          exp(d[i] / 10) - 1   elsewhere

d: estimate - target. (3): the score of the PHM 2008 challenge, from which C-MAPSS comes; an estimate above the target
costs more than one below it. Saxena et al., PHM 2008.
"""

from typing import Any

import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection

from interpretable_training.batches.read import pick
from interpretable_training.models import build_network

from .plain_module import PlainModule, SchedulerCallable


class LifetimeScore(Metric):
    """Score (3), of targets in cycles.

    >>> LifetimeScore()(torch.tensor([20.0, 7.0]), torch.tensor([10.0, 20.0])).round(decimals=4)
    tensor(3.4366)
    """

    is_differentiable, higher_is_better, full_state_update = False, False, False
    total: Tensor

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.add_state("total", torch.tensor(0.0), dist_reduce_fx="sum")

    def update(self, preds: Tensor, target: Tensor) -> None:
        d = preds - target
        self.total += torch.where(d < 0, (-d / 13).expm1(), (d / 10).expm1()).sum()  # (3)

    def compute(self) -> Tensor:
        return self.total


class Regressor(PlainModule):
    """Train a network to estimate a number from a series or an image.

    >>> Regressor("cnn_lstm", {"channels": 8})(torch.zeros(4, 8, 30)).shape
    torch.Size([4])

    Batches are pairs (series, target) or dicts with `image` and `target`; targets are (B,). Logged as `train/...`,
    `val/...` and `test/...`: `loss`, `rmse`, `mae` and, with `score=True`, `score`.

    Methods explain the estimate itself: with target=None what raises it, with target=0 what lowers it. Metrics compare
    estimates with `score="logit"` and target="pred".

    Args:
        network: "cnn_lstm", "cnn_bilstm", another name that `build_network` knows, or any module with one output.
        network_kwargs: Further arguments for a network given by name, such as `channels`.
        scale: The unit of the network's output: a network that returns 1 estimates `scale`. The loss is in this unit.
        score: Whether the score of the PHM 2008 challenge (3) is logged, which is defined for cycles.
        loss: Function of output and target; by default the squared error.
        optimizer: Function from parameters to an optimizer.
        scheduler: Function from an optimizer to a scheduler that steps after each epoch; see `Classifier`.
    """

    def __init__(
        self,
        network: str | nn.Module,
        network_kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
        score: bool = False,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: SchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        self.save_arguments(network=network, loss=loss)
        if scale <= 0:
            raise ValueError(f"expected scale above 0, got {scale}; pass about the largest target.")
        if isinstance(network, str):
            network = build_network(network, 1, **(network_kwargs or {}))
        elif network_kwargs:
            raise ValueError(
                f"expected network as a name beside network_kwargs, got {type(network).__name__}; give these arguments "
                "to the network itself."
            )
        self.network, self.scale, self.loss = network, scale, loss or nn.MSELoss()
        self.optimizer, self.scheduler = optimizer, scheduler
        metrics: dict[str, Any] = {"rmse": MeanSquaredError(squared=False), "mae": MeanAbsoluteError()}
        if score:
            metrics["score"] = LifetimeScore()
        collection = MetricCollection(metrics)
        self.train_metrics, self.val_metrics, self.test_metrics = (
            collection.clone(prefix=f"{split}/") for split in ("train", "val", "test")
        )

    def forward(self, series: Tensor) -> Tensor:
        """Return estimates (B,)."""
        output = self.network(series)
        if output.ndim == 2 and output.shape[1] == 1:
            output = output[:, 0]
        if output.ndim != 1:
            raise ValueError(
                f"expected an output (B, 1) or (B,) of the network, got {tuple(output.shape)}; build it with one."
            )
        return self.scale * output

    def step(self, batch: Any, metrics: MetricCollection) -> Tensor:
        """Return the loss of a batch; log it and the metrics."""
        series, target = pick(batch, strict=True).pair()
        estimate = self(series)
        if target.shape != estimate.shape:
            raise ValueError(
                f"expected a target ({len(series)},), one number for each series, got {tuple(target.shape)}; "
                "return one number per series."
            )
        dtype = torch.promote_types(estimate.dtype, torch.float32)  # half precision would round targets and errors
        estimate, target = estimate.to(dtype), target.to(dtype)
        loss = self.loss(estimate / self.scale, target / self.scale)
        metrics.set_dtype(dtype)  # sums in half precision would lose small terms
        metrics.update(estimate.detach(), target)
        options: dict[str, Any] = {"on_step": False, "on_epoch": True, "prog_bar": True, "batch_size": len(target)}
        self.log(f"{metrics.prefix}loss", loss, sync_dist=True, **options)
        self.log_dict(metrics, **options)
        return loss

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return self.step(batch, self.train_metrics)

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, self.val_metrics)

    def test_step(self, batch: Any, batch_idx: int) -> None:
        self.step(batch, self.test_metrics)

    def predict_step(self, batch: Any, batch_idx: int) -> Tensor:
        """Return estimates (B,); batches may be series alone."""
        return self(pick(batch, strict=True).images)
