"""Small projects as people write them, under `lightning.pytorch` or `pytorch_lightning`; none knows of this package."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from .foreign_tasks import as_boxes, as_masks, as_tables, detecting_class, segformer, with_table_class

CLASSES = 3


def pictures(n, seed=0, side=32):
    """Images with a bright square, whose corner is the class."""
    generator = torch.Generator().manual_seed(seed)
    images, labels = 0.3 * torch.rand(n, 3, side, side, generator=generator), torch.arange(n) % CLASSES
    for i, label in enumerate(labels.tolist()):
        row, column = divmod(label, 2)
        images[i, :, row * side // 2 : (row + 1) * side // 2, column * side // 2 : (column + 1) * side // 2] += 0.6
    return TensorDataset(images, labels)


def loaders(collate=None, side=32):
    options = {"batch_size": 4, "collate_fn": collate}
    return DataLoader(pictures(8, 0, side), **options), DataLoader(pictures(9, 1, side), **options)


def as_dicts(items):
    """The batches of Hugging Face's image processors."""
    return {"pixel_values": torch.stack([i for i, _ in items]), "labels": torch.stack([y for _, y in items])}


def as_multispectral(items):
    """The batches of torchgeo: dicts of images with more than three channels, and labels."""
    images = torch.stack([i for i, _ in items])
    return {"image": torch.cat([images, images[:, :1]], 1), "label": torch.stack([y for _, y in items])}


@dataclass
class Project:
    """Arguments of a project for its Trainer, and the options that the callbacks need beyond their defaults."""

    module: Callable[[], Any]
    loaders: Callable[[], Any] = loaders
    callbacks: Callable[[], list[Any]] = list
    options: dict[str, Any] = field(default_factory=dict)


def classifier_class(pl):
    """Return a plain classifier under a package."""

    class Classifying(pl.LightningModule):
        def __init__(self, model):
            super().__init__()
            self.model = model

        def forward(self, images):
            return self.model(images)

        def training_step(self, batch, batch_idx):
            loss = F.cross_entropy(self(batch[0]), batch[1])
            self.log("train/loss", loss)
            return loss

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return Classifying


def classes_of_libraries(Classifying):
    """Return classifiers that read the batches of transformers, or log torchmetrics."""

    class HuggingFace(Classifying):
        def forward(self, **batch):
            return self.model(**batch)

        def training_step(self, batch, batch_idx):
            return self(**batch).loss

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self(**batch).loss)

    class WithMetrics(Classifying):
        def __init__(self, model):
            super().__init__(model)
            from torchmetrics.classification import MulticlassAccuracy, MulticlassConfusionMatrix

            self.accuracy, self.confusion = MulticlassAccuracy(CLASSES), MulticlassConfusionMatrix(CLASSES)

        def validation_step(self, batch, batch_idx):
            logits = self(batch[0])
            self.accuracy(logits, batch[1])
            self.confusion.update(logits, batch[1])
            self.log("val/accuracy", self.accuracy, on_step=True, on_epoch=True)

        def on_validation_epoch_end(self):
            self.log("val/hits", self.confusion.compute().diag().sum().float())
            self.confusion.reset()

    return HuggingFace, WithMetrics


def classes_of_other_trainings(Classifying):
    """Return modules with two optimizers, and with masks as targets."""

    class TwoOptimizers(Classifying):
        def __init__(self, model):
            super().__init__(model)
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for optimizer in self.optimizers():
                optimizer.zero_grad()
                self.manual_backward(F.cross_entropy(self(batch[0]), batch[1]))
                optimizer.step()

        def configure_optimizers(self):
            parameters = [*self.parameters()]
            return [torch.optim.SGD(part, lr=0.05) for part in (parameters[:2], parameters[2:])]

    class Segmenting(Classifying):
        """Masks of bright pixels."""

        def training_step(self, batch, batch_idx):
            return F.cross_entropy(self(batch[0]), (batch[0].mean(1) > 0.5).long())

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", self.training_step(batch, batch_idx))

    return TwoOptimizers, Segmenting


def mixed_up_class(Classifying):
    """Return a classifier that trains as timm does."""

    class MixedUp(Classifying):
        """timm's mixup and its average of the weights."""

        def __init__(self, model):
            from timm.data import Mixup
            from timm.utils import ModelEmaV3

            super().__init__(model)
            self.mixup, self.ema = Mixup(num_classes=CLASSES, mixup_alpha=0.4, cutmix_alpha=1.0), ModelEmaV3(model)

        def training_step(self, batch, batch_idx):
            images, soft = self.mixup(*batch)
            return F.cross_entropy(self(images), soft)

        def on_train_batch_end(self, *_):
            self.ema.update(self.model)

        def configure_optimizers(self):
            return torch.optim.SGD(self.model.parameters(), lr=0.05)

    return MixedUp


def simclr_class(pl):
    """Return a self-supervised module under a package."""

    class SimCLR(pl.LightningModule):
        """lightly's head and loss, and a classifier that learns beside them."""

        def __init__(self):
            from lightly.loss import NTXentLoss
            from lightly.models.modules import SimCLRProjectionHead

            super().__init__()
            self.backbone = nn.Sequential(*[*small()][:-1])
            self.head, self.online, self.loss = SimCLRProjectionHead(8, 8, 4), nn.Linear(8, CLASSES), NTXentLoss()
            self.loss.memory_bank.bank_ptr.zero_()  # lightly leaves the memory of an empty bank as it was

        def forward(self, images):
            return self.online(self.backbone(images))

        def training_step(self, batch, batch_idx):
            images, labels = batch
            views = [self.backbone(view) for view in (images, images.flip(3))]
            online = F.cross_entropy(self.online(views[0].detach()), labels)
            return self.loss(*map(self.head, views)) + online

        def validation_step(self, batch, batch_idx):
            self.log("val/loss", F.cross_entropy(self(batch[0]), batch[1]))

        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.05)

    return SimCLR


def projects(pl):
    """Name -> project under a package."""
    Classifying, SimCLR = classifier_class(pl), simclr_class(pl)
    (HuggingFace, WithMetrics), MixedUp = classes_of_libraries(Classifying), mixed_up_class(Classifying)
    TwoOptimizers, Segmenting = classes_of_other_trainings(Classifying)

    def compiled():
        model = small()
        model.compile(backend="eager")
        return Classifying(model)

    return {
        "transformers-vit": Project(lambda: HuggingFace(vit()), lambda: loaders(as_dicts)),
        "transformers-convnext": Project(lambda: HuggingFace(convnext()), lambda: loaders(as_dicts, 64)),
        "timm-mixup-ema": Project(lambda: MixedUp(timm_network())),
        "timm-compiled": Project(compiled),
        "smp-unet": Project(lambda: Segmenting(unet()), options={"label_key": False}),  # labels are no masks
        "lightly-simclr": Project(SimCLR),
        "torchmetrics": Project(lambda: WithMetrics(small())),
        "two-optimizers": Project(lambda: TwoOptimizers(small())),
        "transformers-segformer": Project(lambda: HuggingFace(segformer()), lambda: loaders(as_masks, 64)),
        "torchvision-detection": Project(detecting_class(pl), lambda: loaders(as_boxes, 64)),
        "torchgeo": Project(torchgeo_task, lambda: loaders(as_multispectral)),
        "image-and-table": Project(lambda: with_table_class(Classifying)(small()), lambda: loaders(as_tables)),
    }


def torchgeo_task():
    """The classification task of torchgeo, which uses lightning.pytorch alone."""
    from torchgeo.trainers import ClassificationTask

    return ClassificationTask(model="resnet10t", weights=None, in_channels=4, num_classes=CLASSES)


def small():
    layers = [nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 8, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(8, CLASSES))


def timm_network():
    import timm

    return timm.create_model("resnet10t", num_classes=CLASSES)


def unet():
    import segmentation_models_pytorch as smp

    return smp.Unet("resnet18", encoder_weights=None, classes=2)


def vit():
    from transformers import ViTConfig, ViTForImageClassification

    size = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    return ViTForImageClassification(ViTConfig(**size, image_size=32, patch_size=8, num_labels=CLASSES))


def convnext():
    from transformers import ConvNextConfig, ConvNextForImageClassification

    sizes = {"hidden_sizes": [8, 16, 16, 16], "depths": [1, 1, 1, 1]}
    return ConvNextForImageClassification(ConvNextConfig(**sizes, num_labels=CLASSES))
