"""A training of a fraction of a second with everything in it that a callback could disturb."""

import lightning as L
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics.classification import MulticlassAccuracy

from interpretable_training.testing import verify_observer


def small_network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, stride=2, padding=1),
        nn.BatchNorm2d(4),
        nn.ReLU(inplace=True),
        nn.Conv2d(4, 6, 3, padding=1),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.3),
        nn.Linear(6, 3),
    )


class Small(L.LightningModule):
    """Somebody's own module: random augmentation on the device, a metric, a schedule, and weights that nothing uses."""

    def __init__(self, network=None):
        super().__init__()
        self.network = network or small_network()
        self.accuracy = MulticlassAccuracy(3)
        self.idle = nn.Parameter(torch.tensor([0.0, 1.0]), requires_grad=False)

    def forward(self, images):
        return self.network(images)

    def on_after_batch_transfer(self, batch, dataloader_idx):
        images, target = batch
        return (images + 0.1 * torch.randn_like(images) if self.trainer.training else images), target

    def training_step(self, batch, batch_idx):
        loss = F.cross_entropy(self(batch[0]), batch[1])
        self.log("train/loss", loss, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        logits = self(batch[0])
        self.accuracy.update(logits, batch[1])
        self.log("val/loss", F.cross_entropy(logits, batch[1]))
        self.log("val/accuracy", self.accuracy)

    def test_step(self, batch, batch_idx):
        self.log("test/loss", F.cross_entropy(self(batch[0]), batch[1]))

    def predict_step(self, batch, batch_idx):
        return self(batch[0])

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW([p for p in self.parameters() if p.requires_grad], lr=0.01)
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)]


class Pictures(TensorDataset):
    """Random images of three classes."""

    def __init__(self, n):
        generator = torch.Generator().manual_seed(n)
        super().__init__(torch.randn(n, 3, 16, 16, generator=generator), torch.arange(n) % 3)


def loaders():
    """For training, in a drawn order, and validation."""
    return DataLoader(Pictures(18), batch_size=3, shuffle=True), DataLoader(Pictures(6), batch_size=3)


def trainers(folder, *others, **options):
    """A function from callbacks to a trainer, as `verify_observer` asks for."""

    def make(callbacks):
        return L.Trainer(
            **{"max_epochs": 2, "logger": False, "enable_checkpointing": False, **options},
            accelerator="cpu",
            callbacks=[*callbacks, *(other() for other in others)],
            default_root_dir=folder,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
        )

    return make


SHORT = {"max_epochs": 1, "limit_train_batches": 5, "limit_val_batches": 1, "num_sanity_val_steps": 0}


def verify(
    folder, callbacks, make_module=Small, make_data=loaders, others=(), stages=("fit",), ckpt_path=None, **options
):
    """`verify_observer`, with options of the trainer."""
    make_trainer = trainers(folder, *others, **options)
    return verify_observer(make_trainer, make_module, make_data, callbacks, stages=stages, ckpt_path=ckpt_path)


class Does(L.Callback):
    """Something to a module, once, in a hook of a user's choice."""

    def __init__(self, action, hook="on_train_batch_end", step=4):
        self.action, self.step = action, step
        setattr(self, hook, self.call)

    def __deepcopy__(self, memo):
        return self  # a function bound to the copied object would be the first object's

    def call(self, trainer, module, *args):
        if trainer.global_step == self.step and trainer.fit_loop.epoch_loop.batch_progress.current.ready > 0:
            self.action(module)


def one_ulp(module):
    """The smallest change there is, to weights that nothing uses."""
    module.idle.data[1] = torch.nextafter(module.idle.data[1], torch.tensor(2.0))
