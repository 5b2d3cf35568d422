"""Networks with state in buffers, parameters, hooks and layers of torch; `stateful_networks` has the others."""

import torch
import torchmetrics
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations, parametrize, spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from support.stateful_networks import Net, means, over

# Buffers


class Prototypes(Net):
    def start(self):
        self.register_buffer("p", torch.zeros(8))
        self.register_buffer("n", torch.zeros((), dtype=torch.long))

    def middle(self, h):
        self.n += 1
        self.p = 0.9 * self.p + 0.1 * means(h)
        return h - over(self.p) / self.n


class BufferGrows(Net):
    def start(self):
        self.register_buffer("q", torch.zeros(0, 8))

    def middle(self, h):
        self.q = torch.cat([self.q, means(h)[None]])[-6:]
        return h + 0.1 * over(self.q.mean(0))


class BufferResizedInPlace(Net):
    def start(self):
        self.register_buffer("q", torch.zeros(1, 8))
        self.register_buffer("z", torch.zeros(8))

    def middle(self, h):
        self.q.resize_(min(len(self.q) + 1, 6), 8)[-1] = means(h)
        self.z += 0.1 * means(h)
        return h + 0.1 * over(self.q[-1] - self.z)


class BufferMadeLate(Net):
    def middle(self, h):
        if not hasattr(self, "late"):
            self.register_buffer("late", means(h))
        return h - over(self.late)


class BatchNorm(Net):
    def start(self):
        self.bn = nn.BatchNorm2d(8, momentum=None)

    def middle(self, h):
        return self.bn(h)


class BatchNormAlwaysTrains(Net):
    def start(self):
        self.bn = nn.BatchNorm2d(8)

    def middle(self, h):
        self.bn.train()
        return self.bn(h)


class BatchNormWithoutStatistics(Net):
    def start(self):
        self.bn = nn.BatchNorm2d(8, track_running_stats=False)

    def middle(self, h):
        return self.bn(h)


class FunctionalBatchNorm(Net):
    def start(self):
        self.register_buffer("m", torch.zeros(8))
        self.register_buffer("v", torch.ones(8))

    def middle(self, h):
        return F.batch_norm(h, self.m, self.v, training=True)


class FakeQuantization(Net):
    def start(self):
        observer = torch.ao.quantization.MovingAverageMinMaxObserver
        self.q = torch.ao.quantization.FakeQuantize(observer=observer, quant_min=0, quant_max=255)

    def middle(self, h):
        return self.q(h)


class MetricUpdated(Net):
    def start(self):
        self.metric = torchmetrics.MeanMetric()

    def middle(self, h):
        self.metric.update(h.detach().mean())
        return h - self.metric.compute()


class MetricCalled(Net):
    def start(self):
        self.metric = torchmetrics.MeanMetric()

    def middle(self, h):
        self.metric(h.detach().mean())
        return h - self.metric.compute()


# Parameters


class MomentumEncoder(Net):
    def start(self):
        self.slow = nn.Conv2d(6, 8, 3, stride=2, padding=1).requires_grad_(False)

    def features(self, images):
        with torch.no_grad():
            for p, q in zip(self.slow.parameters(), self.c2.parameters()):
                p.mul_(0.9).add_(0.1 * q)
        a = self.c1(images).relu()
        return self.c2(a).relu() + 0.5 * self.slow(a).relu()


class WeightsWritten(Net):
    def features(self, images):
        with torch.no_grad():
            self.c1.weight.mul_(0.999)
        return super().features(images)


class WeightsWrittenByData(Net):
    def features(self, images):
        self.c1.weight.data.mul_(0.999)
        return super().features(images)


class ParameterMadeLate(Net):
    def middle(self, h):
        if not hasattr(self, "late"):
            self.late = nn.Parameter(means(h))
        return h - over(self.late)


class FlagsToggled(Net):
    def middle(self, h):
        for p in self.head.parameters():
            p.requires_grad_(not p.requires_grad)
        return h


class Lazy(Net):
    def start(self):
        self.lazy = nn.LazyConv2d(8, 1)

    def middle(self, h):
        return self.lazy(h)


class LazyBatchNorm(Net):
    def start(self):
        self.lazy = nn.LazyBatchNorm2d()

    def middle(self, h):
        return self.lazy(h)


class TiedWeights(Net):
    def start(self):
        self.a, self.b = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.b.weight = self.a.weight

    def middle(self, h):
        return self.b(self.a(h).relu())


class SpectralNormByHook(Net):
    def start(self):
        self.c2 = spectral_norm(self.c2)


class SpectralNorm(Net):
    def start(self):
        parametrizations.spectral_norm(self.c2)


class WeightNormByHook(Net):
    def start(self):
        self.c2 = weight_norm(self.c2)


class WeightNorm(Net):
    def start(self):
        parametrizations.weight_norm(self.c2)


class Orthogonal(Net):
    def start(self):
        parametrizations.orthogonal(self.head)


class CachedParametrization(Net):
    def start(self):
        parametrizations.weight_norm(self.c2)

    def forward(self, images):
        with parametrize.cached():
            return super().forward(images)


# Hooks and passes


class ForwardHook(Net):
    def start(self):
        calls = [0]

        def hook(module, inputs, output):
            calls[0] += 1
            return output * (1 + 0.01 * calls[0])

        self.c2.register_forward_hook(hook)


class BackwardHook(Net):
    def start(self):
        calls = [0]

        def hook(module, inputs, outputs):
            calls[0] += 1
            return tuple(None if g is None else g * (1 + 0.01 * calls[0]) for g in inputs)

        self.c2.register_full_backward_hook(hook)


class CountsTrainCalls(Net):
    def start(self):
        self.switches = 0

    def train(self, mode=True):
        self.switches = getattr(self, "switches", 0) + 1
        return super().train(mode)

    def middle(self, h):
        return h * (1 + 0.001 * self.switches)


class Checkpointed(Net):
    def features(self, images):
        return checkpoint(super().features, images, use_reentrant=False)
