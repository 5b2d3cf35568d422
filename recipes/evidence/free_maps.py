"""A picture of the map that CA-Stream gives for nothing, on real photographs.

The stream replaces the average of the network with ImageNet weights; the classifier of 1000 classes stays. Its labels
are the answers of the network itself on random views of the photographs, so that no label is needed.
"""

from functools import partial
from pathlib import Path

import lightning as L
import torch
from torch.optim.lr_scheduler import CosineAnnealingLR
from torch.utils.data import TensorDataset

from interpretable_training.attribution import GradCAM, RawAttention, explain
from interpretable_training.files import save_picture
from interpretable_training.models import CAStream
from interpretable_training.modules import CAStreamClassifier
from interpretable_training.recipes.evidence.lite0 import lite0
from interpretable_training.recipes.evidence.photographs import MEAN, STD, photograph, sure_views, whole_view
from interpretable_training.recipes.evidence.streams import batches_of_32, train_quietly
from interpretable_training.visual import denormalize, draw_sheet, overlay

SHOWN = ("cat", "coffee", "rocket", "motorcycle", "flower", "china", "camera", "clock")
EPOCHS = 15


def draw_free_maps(folder: Path, file: Path, n: int = 400) -> dict[str, float]:
    """Train the stream, draw its maps beside Grad-CAM, and return how often it agrees with the network on new views."""
    L.seed_everything(0, verbose=False)
    network = lite0()
    images, target, _ = sure_views(network, n, per_photograph=40, seed=1)
    new, answers, _ = sure_views(network, 100, per_photograph=10, seed=2)
    stream = CAStream(network, image_size=images.shape[-1], queries=4)
    module = CAStreamClassifier(
        stream,
        1000,
        cache_features=True,
        cache_folder=str(folder / "features"),
        reference_batch=None,
        optimizer=partial(torch.optim.AdamW, lr=3e-4),
        scheduler=partial(CosineAnnealingLR, T_max=EPOCHS),
    )
    train_quietly(module, batches_of_32(TensorDataset(images, target), shuffle=True), EPOCHS, folder)
    stream.eval()
    with torch.no_grad():
        agree = [stream(part).argmax(1) == right for part, right in zip(new.split(20), answers.split(20))]
    x = torch.stack([whole_view(photograph(name)) for name in SHOWN])
    with torch.no_grad():
        said = stream(x).argmax(1)
    pictures = denormalize(x, MEAN, STD)
    maps = explain({"Grad-CAM of the network": GradCAM(layer="blocks")}, network, x, said)
    free = {"attention, last stage": RawAttention(), "the stage before": RawAttention(block=-2)}
    maps |= explain(free, stream, x, said)
    rows = {"photograph": (255 * pictures).byte().permute(0, 2, 3, 1)}
    rows |= {name: overlay(pictures, S) for name, S in maps.items()}
    save_picture(draw_sheet(rows, list(SHOWN)), file)
    return {"agreement": 100 * float(torch.cat(agree).float().mean())}
