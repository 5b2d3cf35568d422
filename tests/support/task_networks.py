"""Small networks of every task, and trainings with them."""

from types import SimpleNamespace

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

SIDE = 16


def encoder(channels=6):
    return nn.Sequential(nn.Conv2d(3, 4, 3, 2, 1), nn.ReLU(), nn.Conv2d(4, channels, 3, 2, 1), nn.ReLU())


class Pooled(nn.Module):
    """Numbers (B, N)."""

    def __init__(self, outputs=3):
        super().__init__()
        self.body, self.head = encoder(), nn.Linear(6, outputs)

    def forward(self, images):
        return self.head(self.body(images).mean((2, 3)))


class UnitLength(Pooled):
    """Embeddings of length one."""

    def __init__(self):
        super().__init__(8)

    def forward(self, images):
        return F.normalize(super().forward(images), dim=1)


class Pixels(nn.Module):
    """Logits (B, C, H / 4, W / 4) in a dict, as Hugging Face's, or at full resolution."""

    def __init__(self, classes=4, full=False):
        super().__init__()
        self.body, self.head, self.full = encoder(), nn.Conv2d(6, classes, 1), full

    def forward(self, images):
        A = self.head(self.body(images))
        return F.interpolate(A, images.shape[2:]) if self.full else {"logits": A}


class BoxesOfQuarters(nn.Module):
    """The class of each quarter of the image, with its box, as torchvision's detectors return them."""

    def __init__(self, classes=3):
        super().__init__()
        self.body, self.head, self.classes = encoder(), nn.Conv2d(6, classes, 1), classes

    def forward(self, images, targets=None):
        p = F.adaptive_avg_pool2d(self.head(self.body(images)), 2).flatten(2).softmax(1)
        H, W = images.shape[2] / 2, images.shape[3] / 2
        corners = torch.tensor([[0, 0], [W, 0], [0, H], [W, H]])
        boxes = torch.cat([corners, corners + torch.tensor([W, H])], 1).to(images)
        scores, labels = p.max(1)
        return [{"boxes": boxes, "scores": s, "labels": n} for s, n in zip(scores, labels)]


class WithTable(nn.Module):
    """An image, and numbers that are not of the image."""

    def __init__(self):
        super().__init__()
        self.body, self.head = encoder(), nn.Linear(6 + 2, 3)

    def forward(self, image, meta):
        return self.head(torch.cat([self.body(image).mean((2, 3)), meta], 1))


class Siamese(nn.Module):
    """The difference of two images."""

    def __init__(self):
        super().__init__()
        self.body, self.head = encoder(), nn.Linear(6, 2)

    def forward(self, first, second):
        return self.head((self.body(first) - self.body(second)).mean((2, 3)))


class ImagesAndTexts(nn.Module):
    """Embeddings of images and texts, read by keyword."""

    def __init__(self):
        super().__init__()
        self.body, self.words, self.head = encoder(), nn.Embedding(9, 5), nn.Linear(6, 5)

    def forward(self, input_ids=None, pixel_values=None, attention_mask=None):
        words = self.words(input_ids) * attention_mask[..., None]
        z = self.head(self.body(pixel_values).mean((2, 3)))
        return SimpleNamespace(image_embeds=z, text_embeds=words.sum(1), logits_per_image=z @ words.sum(1).T)


def network_of(task, seed=0):
    kinds = {
        "segmentation": Pixels,
        "detection": BoxesOfQuarters,
        "embedding": UnitLength,
        "regression": lambda: Pooled(2),
        "classification": Pooled,
    }
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kinds[task]()


def data_of(task, n=6):
    """Return a loader of images in [0, 1] and the targets of a task."""
    images = torch.rand(n, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(0))
    if task == "segmentation":
        mask = torch.zeros(n, SIDE, SIDE, dtype=torch.long)
        mask[:, 4:12, 4:12] = 1 + torch.arange(n)[:, None, None] % 3
        return DataLoader(TensorDataset(images, mask), batch_size=3)
    if task == "detection":
        target = {"boxes": torch.tensor([[0.0, 0, 8, 8]]), "labels": torch.tensor([1])}
        items = [(image, dict(target)) for image in images]
        return DataLoader(items, batch_size=3, collate_fn=lambda batch: tuple(zip(*batch)))
    if task == "regression":
        return DataLoader(TensorDataset(images, images.mean((2, 3))[:, :2] * 3 + 0.1), batch_size=3)
    if task == "embedding":
        return DataLoader(TensorDataset(images), batch_size=3)
    return DataLoader(TensorDataset(images, torch.arange(n) % 3), batch_size=3)


class TaskModule(L.LightningModule):
    """Trains on the sum of what its network returns: the task is not its business."""

    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, images):
        return self.network(images)

    def training_step(self, batch, batch_idx):
        images = batch[0] if isinstance(batch[0], torch.Tensor) else torch.stack(batch[0])
        output = self(images)
        values = [o["scores"] for o in output] if isinstance(output, list) else [output]
        return sum((v["logits"] if isinstance(v, dict) else v).square().mean() for v in values)

    def validation_step(self, batch, batch_idx):
        self.log("val/loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
