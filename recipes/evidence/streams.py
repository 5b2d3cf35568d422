"""Does CA-Stream help on a frozen network? It is compared with a linear probe and timm's pooling.

Backbones: EfficientNet-Lite0 with its ImageNet weights, and a small ViT trained on clean shapes. Data: shapes on
textures of which most name the class, decoy digits, and plain digits. Each pooling is trained with new linear head, the
same optimizer and schedule on the same cached features.
"""

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any, Literal, get_args

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import DataLoader, Dataset

from interpretable_training.attribution import GradCAM, RawAttention
from interpretable_training.attribution.core.base import Attribution
from interpretable_training.data import DigitsDataModule, SeededDataModule, ShapesDataModule
from interpretable_training.evaluation import evaluate
from interpretable_training.files import whole_file
from interpretable_training.metrics import AverageDrop, AverageGain, Deletion, EnergyPointingGame, Insertion
from interpretable_training.models import CAStream, Probe, TinyViT
from interpretable_training.models.probe import probe_cost
from interpretable_training.modules import CAStreamClassifier, Classifier
from interpretable_training.recipes.evidence.lite0 import lite0
from interpretable_training.recipes.evidence.photographs import MEAN, STD
from interpretable_training.recipes.recipe import stored_numbers
from interpretable_training.recipes.repair import mean_and_interval

Backbone = Literal["lite0", "vit"]
Pool = Literal["linear", "latent", "stream"]
Source = Literal["textures", "decoy_digits", "digits"]
SIDES: dict[Backbone, int] = {"lite0": 224, "vit": 64}
STAGES: dict[Backbone, tuple[str, ...] | None] = {"lite0": ("blocks.2", "blocks.4", "blocks"), "vit": None}
N_TRAIN, N_TEST, N_MAPS, EPOCHS = 600, 240, 24, 15
COLUMNS = (
    "accuracy",
    "wrong cues",
    "energy on object",
    "drop",
    "gain",
    "insertion",
    "deletion",
    "trained parameters",
    "first epoch (s)",
    "later epoch (s)",
)
CUE = 0.8  # share of the images whose texture or patch names the class


@dataclass(frozen=True)
class Setting:
    """Learning rate, weight decay and options of a pooling; a sweep on another seed chose those of the table."""

    pool: Pool
    lr: float = 1e-3
    weight_decay: float = 0.01
    options: tuple[tuple[str, Any], ...] = ()  # of CAStream or Probe

    def network(self, name: Backbone, backbone: nn.Module, num_classes: int) -> CAStream:
        """Return the backbone with the pooling and a new head; all poolings read the same last stage."""
        options = {"num_classes": num_classes, "image_size": SIDES[name], "stages": STAGES[name], **dict(self.options)}
        if self.pool == "stream":
            return CAStream(backbone, train_head=True, **options)
        return Probe(backbone, kind="average" if self.pool == "linear" else "latent", **options)


class Views(Dataset):
    """Items of a data set in color, in the range of the real network's inputs."""

    def __init__(self, items: Any, mean: tuple[float, ...], std: tuple[float, ...], n: int | None = None) -> None:
        self.items, self.n = items, min(n or len(items), len(items))
        self.shift, self.scale = (torch.tensor(values)[:, None, None] for values in (mean, std))

    def __len__(self) -> int:
        return self.n

    def __getitem__(self, index: int) -> dict[str, Any]:
        item = dict(self.items[index])
        pixels = (item["image"] * self.scale + self.shift).expand(3, -1, -1)
        item["image"] = (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
        return item


def pictures_of(source: Source, side: int, cues: str, seed: int) -> SeededDataModule:
    """Return the data module, with test images whose cues are the "same" as in training or "swapped"."""
    options: dict[str, Any] = {"annotations": True, "seed": seed, "shortcut": CUE, "shortcut_val": cues}
    if source == "textures":
        counts: dict[str, Any] = {"n_train": N_TRAIN, "n_val": N_TEST, "n_test": N_TEST}
        return ShapesDataModule(side, cue="background", **counts, **options)
    if source == "digits":
        del options["shortcut"], options["shortcut_val"]
    return DigitsDataModule(side, margin=0.125, **options)


def views_of(source: Source, side: int, split: str, seed: int, cues: str = "same") -> Views:
    """Return the images of a split."""
    data = pictures_of(source, side, cues, seed)
    data.setup("fit" if split == "train" else "test")
    return Views(data.splits[split], data.mean, data.std, N_TRAIN if split == "train" else N_TEST)


def batches_of_32(images: Dataset, shuffle: bool = False, seed: int = 0) -> DataLoader:
    """Return batches of 32 in an order that the seed decides."""
    return DataLoader(images, 32, shuffle=shuffle, generator=torch.Generator().manual_seed(seed))


def backbone_of(name: Backbone, folder: Path) -> nn.Module:
    """Return the frozen network; the ViT is trained on clean shapes the first time."""
    if name == "lite0":
        return lite0()
    vit = TinyViT(6, image_size=SIDES["vit"])
    file = folder / "vit.pt"
    if not file.exists():
        L.seed_everything(0, verbose=False)
        optimizer, scheduler = partial(torch.optim.AdamW, lr=1e-3), partial(CosineAnnealingLR, T_max=20)
        module = Classifier(vit, 6, optimizer=optimizer, scheduler=scheduler)
        data = ShapesDataModule(SIDES["vit"], n_train=6000, batch_size=64, annotations=True)
        data.setup("fit")
        train_quietly(
            module, DataLoader(Views(data.splits["train"], data.mean, data.std), 64, shuffle=True), 20, folder
        )
        with whole_file(file) as beside:
            torch.save(vit.state_dict(), beside)
    vit.load_state_dict(torch.load(file))
    return vit.eval()


class Seconds(L.Callback):
    """Duration of each epoch of training."""

    def __init__(self) -> None:
        self.epochs: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.start = perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append(perf_counter() - self.start)


def train_quietly(module: L.LightningModule, loader: DataLoader, epochs: int, folder: Path) -> list[float]:
    """Train in silence, and return the seconds of each epoch."""
    seconds = Seconds()
    quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    trainer = L.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[seconds],
        **quiet,
    )
    trainer.fit(module, loader)
    return seconds.epochs


def fit_pool(
    name: Backbone, backbone: nn.Module, setting: Setting, images: Views, num_classes: int, seed: int, folder: Path
) -> tuple[CAStreamClassifier, list[float]]:
    """Train a pooling on cached features."""
    L.seed_everything(seed, verbose=False)
    module = CAStreamClassifier(
        setting.network(name, backbone, num_classes),
        num_classes,
        cache_features=True,
        cache_folder=str(folder / "features"),
        reference_batch=None,
        optimizer=partial(torch.optim.AdamW, lr=setting.lr, weight_decay=setting.weight_decay),
        scheduler=partial(CosineAnnealingLR, T_max=EPOCHS),
    )
    return module, train_quietly(module, batches_of_32(images, shuffle=True, seed=seed), EPOCHS, folder)


@torch.no_grad()
def percent_right(network: nn.Module, images: Dataset) -> float:
    """Return the share of right answers, in percent."""
    right: list[Tensor] = []
    for batch in batches_of_32(images):
        right.append(network(batch["image"]).argmax(1) == batch["target"])
    return 100 * float(torch.cat(right).float().mean())


def free_map(net: CAStream) -> Attribution:
    """Return the map that costs no further pass: of the linear probe the class activation map, else the attention.

    Behind an average and a linear layer, Grad-CAM is the class activation map.
    """
    return GradCAM(layer=net.stages[-1]) if getattr(net, "kind", "") == "average" else RawAttention()


def measure_pool(module: CAStreamClassifier, source: Source, side: int, seed: int) -> dict[str, float]:
    """Return accuracy, with and without cues that mislead, and the numbers of the free map."""
    net = module.network.eval()
    test = views_of(source, side, "test", seed)
    numbers = {"accuracy": percent_right(net, test)}
    if source != "digits":
        numbers["wrong cues"] = percent_right(net, views_of(source, side, "test", seed, "swapped"))
    metrics = {
        "energy on object": EnergyPointingGame(region="mask"),
        "drop": AverageDrop(),
        "gain": AverageGain(),
        "insertion": Insertion(steps=14),
        "deletion": Deletion(steps=14),
    }
    options: dict[str, Any] = {"target": "label", "max_images": N_MAPS, "controls": False, "progress": False}
    table = evaluate(net, {"free": free_map(net)}, metrics, batches_of_32(test), mean=MEAN, std=STD, **options)
    numbers |= {name: table["free", name].mean for name in metrics}
    return {**numbers, "trained parameters": probe_cost(net, torch.zeros(1, 3, side, side))[0]}


def tried_settings() -> list[Setting]:
    """Return what the sweep compares, on pictures of another seed."""
    rates = [Setting(pool, lr) for pool in get_args(Pool) for lr in (1e-3, 3e-3, 1e-2)]
    streams: list[dict[str, Any]] = [{"start": 2}, {"queries": 4}, {"heads": 4}]
    return [*rates, Setting("stream", 1e-3, 1.0), *(Setting("stream", 1e-3, 0.01, tuple(o.items())) for o in streams)]


def tried_rows(folder: Path, seed: int = 100) -> list[list[str]]:
    """Return the accuracy of each setting behind the real network, on shapes with textures."""
    rows = [["setting", *COLUMNS[:3]]]
    for setting in tried_settings():
        options = "".join(f" {key}={value}" for key, value in setting.options)
        name = f"{setting.pool} lr={setting.lr:g} decay={setting.weight_decay:g}{options}"
        compute = partial(stream_cell, "lite0", "textures", setting, seed, folder)
        n = stored_numbers(folder / f"tried-textures-{name.replace(' ', '-')}.json", compute)
        rows.append([name, *(f"{n[key]:.1f}" for key in COLUMNS[:3])])
    shutil.rmtree(folder / "features", ignore_errors=True)
    return rows


def default_settings() -> dict[Pool, Setting]:
    """Return the most accurate setting of each pooling in the sweep."""
    stream = Setting("stream", options=(("queries", 4),))
    return {"linear": Setting("linear", 1e-2), "latent": Setting("latent", 1e-3), "stream": stream}


def stream_cells(folder: Path, seeds: int) -> Iterator[tuple[str, Callable[[], dict[str, float]]]]:
    """Yield the name of each cell and the function that computes it; features are kept for one data set."""
    for backbone in get_args(Backbone):
        for seed in range(seeds):
            for source in get_args(Source):
                for setting in default_settings().values():
                    name = f"{backbone}-{source}-{setting.pool}-{seed}"
                    yield name, partial(stream_cell, backbone, source, setting, seed, folder)
                shutil.rmtree(folder / "features", ignore_errors=True)


def stream_cell(backbone: Backbone, source: Source, setting: Setting, seed: int, folder: Path) -> dict[str, float]:
    """Train and measure one pooling."""
    side, network = SIDES[backbone], backbone_of(backbone, folder)
    images = views_of(source, side, "train", seed)
    classes = 6 if source == "textures" else 10
    module, seconds = fit_pool(backbone, network, setting, images, classes, seed, folder)
    numbers = measure_pool(module, source, side, seed)
    later = sum(seconds[1:]) / max(1, len(seconds) - 1)
    return {**numbers, "first epoch (s)": seconds[0], "later epoch (s)": later}


def stream_tables(folder: Path, output: Path, seeds: int = 5) -> dict[str, list[list[str]]]:
    """Compute what is missing, and return the rows of the tables."""
    numbers = {name: stored_numbers(folder / f"{name}.json", compute) for name, compute in stream_cells(folder, seeds)}
    rows, gains = [["backbone", "data", "pooling", *COLUMNS]], [["backbone", "data", *COLUMNS[:3]]]
    for backbone, source in product(get_args(Backbone), get_args(Source)):
        runs = {p: [numbers[f"{backbone}-{source}-{p}-{seed}"] for seed in range(seeds)] for p in get_args(Pool)}
        for pool, own in runs.items():
            rows.append([backbone, source, pool, *(column(own, key) for key in COLUMNS)])
        pairs = list(zip(runs["stream"], runs["linear"]))
        differences = [{key: ours[key] - theirs[key] for key in ours} for ours, theirs in pairs]
        gains.append([backbone, source, *(column(differences, key) for key in COLUMNS[:3])])
    raw = [["cell", *COLUMNS], *([name, *(f"{n.get(key, '')}" for key in COLUMNS)] for name, n in numbers.items())]
    return {"streams": rows, "stream_gains": gains, "streams_tried": tried_rows(folder), "streams_raw": raw}


def column(runs: list[dict[str, float]], key: str) -> str:
    """Return mean and interval over the seeds; nothing where the data have no such number."""
    if key == "trained parameters":
        return f"{runs[0][key]:,.0f}"
    return mean_and_interval([round(run[key], 4) for run in runs]) if key in runs[0] else ""
