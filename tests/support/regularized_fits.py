"""Short trainings with guided-gradient regularization, by the module and by the callback."""

import copy

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.callbacks import GuidedGradientRegularization
from interpretable_training.modules import Classifier, GuidedGradientClassifier
from interpretable_training.regularization import GuidedGradientRegularizer

EPOCHS = {"max_epochs": 3, "precision": "64-true"}
STRONG = GuidedGradientRegularizer(weight=1.0)


def loader(batch_size=4, keys=None):
    generator = torch.Generator().manual_seed(0)
    items = [(torch.randn(3, 16, 16, generator=generator), i % 2) for i in range(16)]
    items = items if keys is None else [dict(zip(keys, item)) for item in items]
    return DataLoader(items, batch_size=batch_size)


def fit(folder, module, *callbacks, data=None, **kwargs):
    trainer = L.Trainer(
        **{"max_epochs": 1, **kwargs},
        accelerator="cpu",
        callbacks=[*callbacks],
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(1)
    trainer.fit(module, data or loader())
    return trainer


def two_ways():
    def optimizer(parameters):
        return torch.optim.SGD(parameters, 0.1)

    torch.manual_seed(0)
    network = nn.Sequential(nn.Conv2d(3, 4, 3, 2), nn.ReLU(), nn.Flatten(), nn.Linear(196, 2))
    known = GuidedGradientClassifier(copy.deepcopy(network), 2, STRONG, optimizer=optimizer)
    plain = Classifier(network, 2, optimizer=optimizer)
    return {"module": (known, []), "callback": (plain, [GuidedGradientRegularization(STRONG)])}
