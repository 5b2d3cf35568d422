"""Training of a network that estimates one number, such as the cycles that are left to an engine.

    RMSE  = sqrt(mean over i of d[i]^2)                                   (1)
    MAE   = mean over i of |d[i]|                                         (2)
    score = sum over i of exp(-d[i] / 13) - 1  where d[i] < 0             (3)
                          exp(d[i] / 10) - 1   elsewhere

d: estimate - target. (3): the score of the PHM 2008 challenge, which C-MAPSS comes from; an engine that fails before it
is expected to costs more than one that is given up too early. Saxena et al., PHM 2008.
"""

from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable, ReduceLROnPlateau
from torch import Tensor, nn
from torchmetrics import MeanAbsoluteError, MeanSquaredError, Metric, MetricCollection

from interpretable_training.batches.read import pick
from interpretable_training.models import build_network

from .class_paths import PlainModule
from .classifier import OBJECT, refuse_names_of_objects


class LifetimeScore(Metric):
    """The sum (3), of targets in cycles."""

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
    """Trains a network to estimate a number from a series or an image.

    Batches are pairs (series, target) or dicts with `image` and `target`; targets are (B,). Logged as `train/...`,
    `val/...` and `test/...`: `loss`, `rmse`, `mae` and, where wanted, `score`.

    Methods explain the estimate itself: with target=None what raises it, with target=0 what lowers it. Metrics compare
    estimates with `score="logit"` and target="pred".

    Args:
        network: "cnn_lstm", "cnn_bilstm", another name that `build_network` knows, or any module with one output.
        network_kwargs: Further arguments for a network given by name, such as `channels`.
        scale: The unit of the network's output: a network that returns 1 estimates `scale`. The loss is in this unit.
        score: Whether the score of the PHM 2008 challenge (3) is logged, which is defined for cycles.
        loss: Function of output and target; by default the squared error.
        optimizer: Function from parameters to an optimizer.
        scheduler: Function from an optimizer to a scheduler that steps after each epoch.
    """

    def __init__(
        self,
        network: str | nn.Module,
        network_kwargs: dict[str, Any] | None = None,
        scale: float = 1.0,
        score: bool = False,
        loss: nn.Module | None = None,
        optimizer: OptimizerCallable = torch.optim.AdamW,
        scheduler: LRSchedulerCallable | None = None,
    ) -> None:
        super().__init__()
        objects = {k: v for k, v in {"network": network, "loss": loss}.items() if isinstance(v, nn.Module)}
        self.save_hyperparameters(ignore=["optimizer", "scheduler", *objects])
        if "_instantiator" in self.hparams:
            self.save_hyperparameters()  # from the command line all of them are plain values
        else:
            self.save_hyperparameters({k: OBJECT + type(v).__qualname__ for k, v in objects.items()})
        refuse_names_of_objects(network=network, loss=loss)
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
        """Estimates (B,)."""
        output = self.network(series)
        if output.ndim == 2 and output.shape[1] == 1:
            output = output[:, 0]
        if output.ndim != 1:
            raise ValueError(
                f"expected an output (B, 1) or (B,) of the network, got {tuple(output.shape)}; build it with one."
            )
        return self.scale * output

    def step(self, batch: Any, metrics: MetricCollection) -> Tensor:
        """Loss of a batch, logged together with the metrics."""
        series, target = pick(batch, strict=True).pair()
        estimate = self(series)
        if target.shape != estimate.shape:
            raise ValueError(
                f"expected a target ({len(series)},), one number for each series, got {tuple(target.shape)}."
            )
        dtype = torch.promote_types(estimate.dtype, torch.float32)  # half precision would round targets and errors
        estimate, target = estimate.to(dtype), target.to(dtype)
        loss = self.loss(estimate / self.scale, target / self.scale)
        metrics.set_dtype(dtype)  # sums of half precision would lose what is added, where Lightning made them so
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
        """Estimates (B,); batches may be series alone."""
        return self(pick(batch, strict=True).images)

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        if self.scheduler is None:
            return optimizer
        scheduler = self.scheduler(optimizer)
        config: dict[str, Any] = {"scheduler": scheduler, "interval": "epoch"}
        if isinstance(scheduler, ReduceLROnPlateau):
            config["monitor"] = scheduler.monitor
        return {"optimizer": optimizer, "lr_scheduler": config}
