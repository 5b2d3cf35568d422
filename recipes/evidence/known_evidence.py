"""Networks whose evidence is known: they read the class from the object, from a mark, or from the background."""

from functools import partial
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import CosineAnnealingLR

from interpretable_training.data import ShapesDataModule
from interpretable_training.data.shortcuts import CueSplit
from interpretable_training.files import whole_file
from interpretable_training.metrics.region_effects import without_patch
from interpretable_training.modules import Classifier
from interpretable_training.regularization.background_swap import widened, without_objects

Scene = Literal["object", "mark", "texture"]
SIDE = 64
CUES: dict[Scene, dict[str, Any]] = {
    "object": {},
    "mark": {"shortcut": 0.95},
    "texture": {"shortcut": 0.95, "cue": "background"},
}


def scene_data(scene: Scene, seed: int, cues: CueSplit = "same") -> ShapesDataModule:
    """Return the pictures of a scene, with all masks."""
    options: dict[str, Any] = {"n_train": 3000, "n_val": 300, "n_test": 300, "batch_size": 32, "annotations": True}
    return ShapesDataModule(SIDE, seed=seed, shortcut_val=cues, **options, **CUES[scene])


class PatchesRemoved(Classifier):
    """Classifier that also learns images without a patch, so that these are nothing new to it."""

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        half = len(batch["image"]) // 2
        images = torch.cat([without_patch(batch["image"][:half]), batch["image"][half:]])
        return super().training_step({**batch, "image": images}, batch_idx)


def scene_network(scene: Scene, seed: int, folder: Path, patches_removed: bool = False) -> nn.Module:
    """Return a network that has learned the scene."""
    L.seed_everything(seed, verbose=False)
    epochs = 8
    kind = PatchesRemoved if patches_removed else Classifier
    optimizer, scheduler = partial(torch.optim.AdamW, lr=1e-3), partial(CosineAnnealingLR, T_max=epochs)
    module = kind("tiny_cnn", 6, optimizer=optimizer, scheduler=scheduler)
    file = folder / f"{scene}-{seed}{'-patches' * patches_removed}.pt"
    if not file.exists():
        quiet: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
        trainer = L.Trainer(
            max_epochs=epochs, accelerator="cpu", enable_model_summary=False, default_root_dir=folder, **quiet
        )
        data = scene_data(scene, seed)
        data.setup("fit")
        trainer.fit(module, data.train_dataloader())
        with whole_file(file) as beside:
            torch.save(module.network.state_dict(), beside)
    module.network.load_state_dict(torch.load(file))
    return module.network.eval()


@torch.no_grad()
def scene_accuracy(network: nn.Module, data: ShapesDataModule) -> float:
    """Return the accuracy on the test images, in percent."""
    data.setup("test")
    answers = [network(batch["image"]).argmax(1) == batch["target"] for batch in data.test_dataloader()]
    return 100 * float(torch.cat(answers).float().mean())


@torch.no_grad()
def interventions(scene: Scene, network: nn.Module, seed: int) -> dict[str, float]:
    """Return the accuracy as it is, without the evidence, and with other things than the evidence exchanged."""
    data = scene_data(scene, seed)
    numbers = {"as it is": scene_accuracy(network, data)}
    if scene == "object":
        x, target, mask = scene_batch(data, 300)
        W = widened(mask, 2)
        removed = without_objects(x, W, torch.randn(x.shape, generator=torch.Generator().manual_seed(0)))
        changed = {"object removed": removed, "background exchanged": torch.where(W[:, None], x, removed.roll(1, 0))}
        for name, images in changed.items():
            numbers[name] = 100 * float((network(images).argmax(1) == target).float().mean())
    else:
        numbers["cue exchanged"] = scene_accuracy(network, scene_data(scene, seed, "swapped"))
    return numbers


def scene_batch(data: ShapesDataModule, n: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return test images, targets and masks of their evidence."""
    data.setup("test")
    items = [data.splits["test"][i] for i in range(n)]
    name = "shortcut_mask" if data.shortcut else "mask"
    return (
        torch.stack([item["image"] for item in items]),
        torch.tensor([item["target"] for item in items]),
        torch.stack([item[name] for item in items]).bool(),
    )
