"""Small networks with activations of all kinds, and the regularizer as one would write it first."""

import copy
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from interpretable_training.regularization import GuidedGradientRegularizer, cosine

STRONG = GuidedGradientRegularizer(weight=1.0)


def vgg() -> nn.Sequential:
    """Every ReLU is a module of its own."""
    torch.manual_seed(0)
    return nn.Sequential(
        *(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(inplace=True), nn.MaxPool2d(2)),
        *(nn.Conv2d(6, 8, 3, padding=1, stride=2, groups=2), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(0.2)),
        *(nn.Flatten(), nn.Linear(8 * 4, 12), nn.ReLU(), nn.Linear(12, 4)),
    ).double()


class Residual(nn.Module):
    """Half of its activations are registered, the other half is made inside `forward`."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.stem, self.conv1, self.conv2 = nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 3, 1, 1), nn.Conv2d(4, 4, 3, 1, 1)
        self.bn1, self.bn2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        self.relu1, self.relu2 = nn.ReLU(), nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 4)
        self.double()

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        x = nn.ReLU(inplace=True)(x + self.bn1(self.conv1(self.relu1(x))))
        x = F.relu(x + self.bn2(self.conv2(self.relu2(x - 0.3))), inplace=True)
        return self.head(x.mean((2, 3)))


def batch(n: int = 6, size: int = 8) -> tuple[Tensor, Tensor]:
    """Images (n, 3, size, size) in float64 and classes of four."""
    generator = torch.Generator().manual_seed(1)
    images = torch.randn(n, 3, size, size, generator=generator, dtype=torch.float64)
    return images, torch.randint(0, 4, (n,), generator=generator)


def parameter_gradient(loss: Tensor, net: nn.Module) -> Tensor:
    """Of all parameters, as one vector; zero where the loss does not depend on one."""
    parameters = [*net.parameters()]
    results = torch.autograd.grad(loss, parameters, retain_graph=True, allow_unused=True)
    return torch.cat([(torch.zeros_like(p) if g is None else g).flatten() for p, g in zip(parameters, results)])


class GuidedReLU(nn.Module):
    """What libraries put in the place of registered ReLUs."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            return g.clamp(min=0) * (ctx.saved_tensors[0] > 0)

    def forward(self, z: Tensor) -> Tensor:
        return self.Function.apply(z)


def surgery(net):
    """A deep copy whose registered ReLUs are replaced."""
    net = copy.deepcopy(net)
    for module in [*net.modules()]:
        for name, child in module.named_children():
            if isinstance(child, nn.ReLU):
                setattr(module, name, GuidedReLU())
    return net


def naive(net, images, target, error=cosine):
    """L_R as in the thesis: two networks, two forward passes."""
    x = images.clone().requires_grad_()
    d = torch.autograd.grad(F.cross_entropy(net(x), target), x, create_graph=True)[0]
    d2 = torch.autograd.grad(F.cross_entropy(surgery(net)(x), target), x)[0]
    return error(d, d2).mean(), d, d2


class RegularizedStep(nn.Module):
    """A step that runs inside DistributedDataParallel, as those of Lightning do."""

    def __init__(self, net, regularizer):
        super().__init__()
        self.net, self.regularizer = net, regularizer

    def forward(self, images, target):
        return self.regularizer(self.net, images, target)[0]


def regularizers():
    """Return regularizers whose result does not depend on how a batch is split."""
    return [STRONG, replace(STRONG, error="mae", grad_of="sum"), replace(STRONG, at="conv1")]
