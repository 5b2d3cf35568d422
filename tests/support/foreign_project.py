"""A project of somebody else's: it knows nothing of this package."""

import lightning as L
import timm
import torch
from lightning.pytorch.cli import LightningCLI
from torch import nn
from torch.utils.data import DataLoader, Dataset


class Pictures(Dataset):
    """Bright corners; pairs or dicts."""

    def __init__(self, as_dict):
        self.as_dict = as_dict
        generator = torch.Generator().manual_seed(0)
        self.images = torch.rand(24, 3, 32, 32, generator=generator)
        self.classes = torch.arange(24) % 3
        for i, c in enumerate(self.classes):
            self.images[i, c, :12, :12] += 2

    def __len__(self):
        return len(self.images)

    def __getitem__(self, i):
        image, label = self.images[i], int(self.classes[i])
        return {"pixel_values": image, "labels": label, "name": f"picture {i}"} if self.as_dict else (image, label)


class Data(L.LightningDataModule):
    def __init__(self, as_dict: bool = False):
        super().__init__()
        self.as_dict = as_dict

    def train_dataloader(self):
        return DataLoader(Pictures(self.as_dict), batch_size=8, shuffle=True)

    def val_dataloader(self):
        return DataLoader(Pictures(self.as_dict), batch_size=8)


class TupleModule(L.LightningModule):
    """Pairs, and a forward of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU())
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        return self.head(self.body(x).mean((2, 3)))

    def training_step(self, batch, batch_idx):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.cross_entropy(self(batch[0]), batch[1]))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.05)


class DictModule(TupleModule):
    """Dicts, a network of timm, no forward."""

    def __init__(self):
        super().__init__()
        del self.body, self.head
        self.encoder = timm.create_model("resnet10t", num_classes=3)

    forward = L.LightningModule.forward

    def loss(self, batch):
        return nn.functional.cross_entropy(self.encoder(batch["pixel_values"]), batch["labels"])

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.loss(batch))


if __name__ == "__main__":
    LightningCLI()
