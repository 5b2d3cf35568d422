"""Short trainings with guided explanations: annotated batches, networks and callbacks."""

import lightning as L
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from interpretable_training.attribution import GradCAM
from interpretable_training.callbacks import ExplanationGuidance
from interpretable_training.modules import Classifier
from interpretable_training.regularization import GuidanceLoss

SIDE = 16
ENERGY = GuidanceLoss("energy", method=GradCAM(layer="1"), weight=2.0)
INPUT = GuidanceLoss("input_gradient", weight=3000.0)  # log probabilities of untrained networks are flat
LOSSES = {"energy": ENERGY, "input gradient": INPUT}


def smooth_net() -> nn.Sequential:
    """Return a network without kinks, in float64; layers "1" and "3" are grids."""
    torch.manual_seed(0)
    features = nn.Conv2d(3, 4, 3, 2, 1), nn.Softplus(), nn.Conv2d(4, 5, 3, 2, 1), nn.Tanh()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3)).double()


def annotated(n: int = 6, side: int = SIDE, guided: int | None = None) -> dict[str, torch.Tensor]:
    """Return a batch in float64 whose first `guided` images have a mask."""
    generator = torch.Generator().manual_seed(1)
    image = torch.randn(n, 3, side, side, generator=generator, dtype=torch.float64)
    mask = torch.zeros(n, side, side, dtype=torch.bool)
    for i in range(n if guided is None else guided):
        mask[i, 2 + i % 3 : 9 + i % 4, 3:10] = True
    return {"image": image, "target": torch.randint(0, 3, (n,), generator=generator), "mask": mask}


def loader(batch_size: int = 4, n: int = 16, guided: int = 16, keys: tuple[str, ...] = ()) -> DataLoader:
    """Return batches of annotated images under their own or other keys, in the order of the images."""
    batch = annotated(n, guided=guided)
    names = keys or tuple(batch)
    items = [dict(zip(names, (value[i] for value in batch.values()))) for i in range(n)]
    return DataLoader([{**item, names[0]: item[names[0]].float()} for item in items], batch_size=batch_size)


class PlainStep(L.LightningModule):
    """A module of somebody else: a network without a forward of its own, SGD, no guidance."""

    def __init__(self, net: nn.Module | None = None, keys: tuple[str, str] = ("image", "target")) -> None:
        super().__init__()
        self.net, self.keys = net or smooth_net().float(), keys

    def training_step(self, batch: dict[str, torch.Tensor], batch_idx: int) -> dict[str, torch.Tensor]:
        logits = self.net(batch[self.keys[0]])
        return {"loss": F.cross_entropy(logits, batch[self.keys[1]])}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def callback_of(guidance: GuidanceLoss, **options: object) -> ExplanationGuidance:
    """Return the callback with the options of a loss."""
    return ExplanationGuidance(**vars(guidance), **options)  # type: ignore[arg-type]


def classifier(guidance: GuidanceLoss | None = None) -> Classifier:
    """Return a classifier of the same network and optimizer."""
    return Classifier(
        smooth_net().float(), 3, optimizer=lambda parameters: torch.optim.SGD(parameters, 0.1), guidance=guidance
    )


def by_hand(net: nn.Module, guidance: GuidanceLoss, batches: object, accumulate: int = 1) -> None:
    """Train a network as `PlainStep` with guidance does, without Lightning."""
    for i, batch in enumerate(batches):  # type: ignore[arg-type]
        loss, _ = guidance(net, batch["image"], batch["target"], batch["mask"], step=i // accumulate)
        (loss / accumulate).backward()
        if (i + 1) % accumulate == 0:
            for p in net.parameters():
                p.data -= 0.1 * p.grad
                p.grad = None
