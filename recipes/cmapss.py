"""Explain a network that estimates the remaining life of an engine. Buono and Akesson, Halmstad University, 2023.

    python -m interpretable_training.recipes cmapss
    python -m interpretable_training.recipes cmapss --network cnn_bilstm
    python -m interpretable_training.recipes cmapss --folder CMAPSSData

trains a CNN-LSTM on drawn engines, or on the files of C-MAPSS, and prints its error and two tables. The first is
Table 3 of the thesis: how the estimate drops and increases when only the highlighted part stays. The second measures
the same for the wear, the largest target minus the estimate, because hidden sensors resemble those of a new engine.
The worn cycles of drawn engines are known, so the second table also has the share of each map in them.
"""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Subset

from interpretable_training import attribution as a
from interpretable_training import metrics as m
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.data import CMAPSSDataModule, EnginesDataModule
from interpretable_training.metrics.core.base import ImageMetric
from interpretable_training.modules import Regressor
from interpretable_training.recipes.recipe import Recipe
from interpretable_training.visual import draw_series


def cmapss(
    network: str = "cnn_lstm",
    folder: str | None = None,
    subset: Literal["FD001", "FD002", "FD003", "FD004"] = "FD001",
    scaling: Literal["standard", "range"] = "standard",
    n_train: int = 60,
    batch_size: int = 128,
    learning_rate: float = 5e-3,
    max_epochs: int = 8,
    seed: int = 0,
    output: str = "runs",
) -> Recipe:
    """Train a network to estimate how many cycles are left.

    Args:
        network: "cnn_lstm" or "cnn_bilstm".
        folder: Folder with the files of C-MAPSS; None draws engines.
        subset: Which of the four parts of C-MAPSS.
        scaling: See `CMAPSSDataModule`; it decides what hidden sensors look like.
        n_train: How many drawn engines train.
        batch_size: Windows per batch.
        learning_rate: Step size of AdamW in the first epoch.
        max_epochs: Number of epochs.
        seed: Seed of weights, engines and order.
        output: Folder for logs and checkpoints.
    """
    L.seed_everything(seed, workers=True, verbose=False)
    options: dict[str, Any] = {"scaling": scaling, "annotations": True, "batch_size": batch_size, "seed": seed}
    data: CMAPSSDataModule
    if folder is None:
        if subset != "FD001":
            raise ValueError(f"expected the folder with the files of C-MAPSS for {subset}, got None; pass folder.")
        data = EnginesDataModule(n_train, **options)
    else:
        data = CMAPSSDataModule(folder, subset, by_condition=subset in ("FD002", "FD004"), **options)
    module = Regressor(
        network,
        {"channels": len(data.channel_names)},
        scale=data.max_rul,
        score=True,
        optimizer=partial(torch.optim.AdamW, lr=learning_rate),
        scheduler=partial(CosineAnnealingLR, T_max=max_epochs),
    )
    trainer = L.Trainer(
        max_epochs=max_epochs,
        logger=CSVLogger(output, name="cmapss"),
        enable_model_summary=False,
        callbacks=[ModelCheckpoint(monitor="val/rmse", mode="min")],
    )
    return Recipe(trainer, module, data)


class Wear(nn.Module):
    """Return the largest target minus the estimate of a regressor: the wear, in cycles."""

    def __init__(self, regressor: nn.Module, max_rul: float) -> None:
        super().__init__()
        self.regressor, self.max_rul = regressor, max_rul

    def forward(self, series: Tensor) -> Tensor:
        return self.max_rul - self.regressor(series)


def series_methods(data: CMAPSSDataModule, n: int = 50) -> dict[str, Attribution]:
    """Return the methods by name; expected gradients start from `n` training windows, as in the thesis."""
    data.setup("fit")
    windows: Any = data.splits["train"]
    baselines = a.sample_baselines(windows, min(n, len(windows)), seed=data.seed)
    return {
        "gradcam": a.GradCAM(),
        "gradcamplusplus": a.GradCAMPlusPlus(),
        "smoothgradcamplusplus": a.SmoothGradCAMPlusPlus(),
        "xgradcam": a.XGradCAM(),
        "hirescam": a.HiResCAM(),
        "layercam": a.LayerCAM(),
        "scorecam": a.ScoreCAM(),
        "ablationcam": a.AblationCAM(),
        "expectedgradcam": a.ExpectedGradCAM(baselines=baselines, n=n),
        "expectedgradcamplusplus": a.ExpectedGradCAMPlusPlus(baselines=baselines, n=n),
    }


def life_metrics() -> dict[str, ImageMetric]:
    """Return the thesis' metrics of C-MAPSS, on the output itself, which is no logit of a class."""
    return {
        "average_increase": m.AverageIncrease(score="logit"),
        "average_drop": m.AverageDrop(score="logit"),
        "average_drop_in_deletion": m.AverageDropInDeletion(score="logit"),
    }


def life_tables(recipe: Recipe, max_windows: int = 200, n: int = 50) -> dict[str, m.Table]:
    """Measure the maps of the estimate and of the wear, on validation windows.

    Args:
        recipe: After the training.
        max_windows: How many windows, chosen by the seed of the data.
        n: Draws of expected gradients.
    """
    data = recipe.data
    assert isinstance(data, CMAPSSDataModule)
    explained, measured = series_methods(data, n), life_metrics()
    known = isinstance(data, EnginesDataModule)
    of_wear = measured | ({"energy": m.EnergyPointingGame(), "pointing": m.PointingGame()} if known else {})
    loader = DataLoader(Subset(data.splits["val"], worn_windows(data)), batch_size=data.batch_size)
    options: dict[str, Any] = {"target": "pred", "max_images": max_windows, "seed": data.seed, "progress": False}
    wear = Wear(recipe.module, data.max_rul)
    return {
        "remaining life": m.evaluate(recipe.module, explained, measured, loader, **options),
        "wear": m.evaluate(wear, explained, of_wear, loader, **options),
    }


def worn_windows(data: CMAPSSDataModule) -> list[int]:
    """Return the validation windows of worn engines; where worn cycles are known, windows with both kinds."""
    data.setup("validate")
    windows: Any = data.splits["val"]
    items = [windows[i] for i in range(len(windows))]
    worn = [0.5 if "mask" not in item else float(item["mask"].float().mean()) for item in items]
    return [i for i, item in enumerate(items) if 0 < worn[i] < 1 and float(item["target"]) < data.max_rul]


def sensors(recipe: Recipe, max_windows: int = 200) -> dict[str, float]:
    """Return the share of the gradient's magnitude that each sensor has, in percent."""
    data = recipe.data
    assert isinstance(data, CMAPSSDataModule)
    series = torch.stack([data.splits["val"][i]["image"] for i in worn_windows(data)[:max_windows]])
    g = a.Gradient(reduce="none")(recipe.module, series.to(recipe.module.device)).abs().mean((0, 2))
    return dict(zip(data.channel_names, (100 * g / g.sum()).tolist()))


def draw_engine(recipe: Recipe, path: str | Path, n: int = 50) -> None:
    """Draw one engine, early, halfway and late in its wear, with the maps of what lowers the estimate."""
    data = recipe.data
    assert isinstance(data, CMAPSSDataModule)
    items = [data.splits["val"][i] for i in worn_windows(data)]
    engine = items[0]["engine"]
    windows = [item for item in items if item["engine"] == engine]
    ends = [min(windows, key=lambda item: abs(float(item["target"]) - s * data.max_rul)) for s in (0.8, 0.4, 0.1)]
    series = torch.stack([item["image"] for item in ends]).to(recipe.module.device)
    names = ("hirescam", "gradcam", "layercam", "expectedgradcam")
    chosen = {name: method for name, method in series_methods(data, n).items() if name in names}
    maps = a.explain({name: chosen[name] for name in names}, recipe.module, series, target=0)
    with torch.no_grad():
        estimates = recipe.module.eval()(series).tolist()
    titles = [f"{float(item['target']):.0f} cycles left, estimate {e:.0f}" for item, e in zip(ends, estimates)]
    share = sensors(recipe)
    order = sorted(range(len(share)), key=lambda c: -share[data.channel_names[c]])[:6]
    worn = torch.stack([item["mask"] for item in ends]) if "mask" in ends[0] else None
    draw_series(series, maps, path, data.channel_names, titles, worn, "worn", order)


def cmapss_report(recipe: Recipe, max_windows: int = 200, n: int = 50) -> str:
    """Measure the trained network, write tables and picture, and return the results as text."""
    folder = Path(recipe.trainer.log_dir or ".")
    errors = recipe.trainer.test(recipe.module, recipe.data, verbose=False)[0]
    tables = life_tables(recipe, max_windows, n)
    for name, table in tables.items():
        table.save(folder / name.replace(" ", "_"))
    draw_engine(recipe, folder / "maps.png", n)
    worn = getattr(recipe.data, "worn_sensors", [])
    shares = sensors(recipe, max_windows)
    lines = [f"  {name:<10} {s:5.1f} %{'  worn' * (c in worn)}" for c, (name, s) in enumerate(shares.items())]
    rmse, mae, score = (errors[f"test/{name}"] for name in ("rmse", "mae", "score"))
    return "\n".join(
        [
            f"test      RMSE {rmse:.2f} cycles, MAE {mae:.2f} cycles, score {score:.1f}",
            *(f"\n{name}: how faithful the maps are\n\n{table}" for name, table in tables.items()),
            "\nshare of the gradient",
            *lines,
            f"\npicture   {folder / 'maps.png'}",
        ]
    )
