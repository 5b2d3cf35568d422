"""Networks that keep state in every way that people use: what explaining them must leave as it was."""

import collections
import itertools
import random

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

NETWORKS = {}


class Net(nn.Module):
    """Two convolutions and a head; subclasses keep state in `start` and use it in `middle`, or in `features`."""

    def __init_subclass__(cls):
        NETWORKS[cls.__name__] = cls

    def __init__(self):
        super().__init__()
        self.c1, self.c2 = nn.Conv2d(3, 6, 3, padding=1), nn.Conv2d(6, 8, 3, stride=2, padding=1)
        self.head = nn.Linear(8, 3)
        self.start()

    def start(self):
        pass

    def features(self, images):
        return self.c2(self.c1(images).relu()).relu()

    def middle(self, h):
        return h

    def forward(self, images):
        return self.head(self.middle(self.features(images)).mean((2, 3)))


def means(h):
    return h.detach().mean((0, 2, 3))


def over(m):
    return m[:, None, None]


# Counters


class Counter(Net):
    def start(self):
        self.n = 0

    def middle(self, h):
        self.n += 1
        return h * (1 + 0.01 * self.n)


class CounterInDict(Net):
    def start(self):
        self.stats = {"n": 0}

    def middle(self, h):
        self.stats["n"] += 1
        return h * (1 + 0.01 * self.stats["n"])


class CounterOfCollections(Net):
    def start(self):
        self.counter = collections.Counter()

    def middle(self, h):
        self.counter["n"] += 1
        return h * (1 + 0.01 * self.counter["n"])


class Iterator(Net):
    def start(self):
        self.numbers = itertools.count()

    def middle(self, h):
        return h * (1 + 0.01 * next(self.numbers))


class Holder:
    __slots__ = ("m", "n")

    def __init__(self):
        self.n, self.m = 0, torch.zeros(8)


class ObjectWithSlots(Net):
    def start(self):
        self.holder = Holder()

    def middle(self, h):
        self.holder.n += 1
        self.holder.m += 0.1 * means(h)
        return h * (1 + 0.01 * self.holder.n) - over(self.holder.m)


class PlainObject(Net):
    class State:
        n = 0

    def start(self):
        self.state = self.State()

    def middle(self, h):
        self.state.n += 1
        return h * (1 + 0.01 * self.state.n)


CALLS = {"n": 0}
COUNT = 0


class GlobalDict(Net):
    def middle(self, h):
        CALLS["n"] += 1
        return h * (1 + 0.01 * CALLS["n"])


class GlobalNumber(Net):
    def middle(self, h):
        global COUNT
        COUNT += 1
        return h * (1 + 0.01 * COUNT)


class Counts(torch.autograd.Function):
    calls = 0

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        Counts.calls += 1
        return gradient * (1 + 0.01 * Counts.calls)


class ClassAttributeInBackward(Net):
    def middle(self, h):
        return Counts.apply(h)


class DefaultArgument(Net):
    def middle(self, h, seen=[]):  # noqa: B006  # the mistake is what is tested
        seen.append(float(means(h).sum()))
        return h + 0.1 * sum(seen[-3:])


class Closure(Net):
    def start(self):
        n = 0

        def scale():
            nonlocal n
            n += 1
            return 1 + 0.01 * n

        self.scale = scale

    def middle(self, h):
        return h * self.scale()


class CompiledPart(Net):
    def start(self):
        self.n = 0
        self.part = torch.compile(lambda h, k: h * (1 + 0.01 * k), backend="eager")

    def middle(self, h):
        self.n += 1
        return self.part(h, torch.tensor(float(self.n)))


# Tensors and containers outside of buffers


class TensorInPlace(Net):
    def start(self):
        self.m = torch.zeros(8)

    def middle(self, h):
        self.m.mul_(0.9).add_(0.1 * means(h))
        return h - over(self.m)


class TensorReplaced(Net):
    def start(self):
        self.m = torch.zeros(8)

    def middle(self, h):
        self.m = 0.9 * self.m + 0.1 * means(h)
        return h - over(self.m)


class TensorInTrainMode(Net):
    def start(self):
        self.m = torch.zeros(8)

    def middle(self, h):
        if self.training:
            self.m = 0.9 * self.m + 0.1 * means(h)
        return h - over(self.m)


class TensorInDict(Net):
    def start(self):
        self.stats = {"m": torch.zeros(8)}

    def middle(self, h):
        self.stats["m"].add_(0.1 * means(h))
        return h - over(self.stats["m"])


class MemoryBank(Net):
    def start(self):
        self.bank = []

    def middle(self, h):
        self.bank.append(means(h))
        self.bank = self.bank[-5:]
        return h + 0.1 * over(torch.stack(self.bank).mean(0))


class MemoryDeque(Net):
    def start(self):
        self.bank = collections.deque(maxlen=5)

    def middle(self, h):
        self.bank.append(means(h))
        return h + 0.1 * over(torch.stack(tuple(self.bank)).mean(0))


class ListInDict(Net):
    def start(self):
        self.cache = {"seen": []}

    def middle(self, h):
        self.cache["seen"].append(float(means(h).sum()))
        return h * (1 + 0.01 * len(self.cache["seen"]))


class Set(Net):
    def start(self):
        self.seen = set()

    def middle(self, h):
        self.seen.add(round(float(means(h).sum()), 9))
        return h * (1 + 0.01 * len(self.seen))


class OrderedCache(Net):
    def start(self):
        self.cache = collections.OrderedDict()

    def middle(self, h):
        self.cache[len(self.cache)] = h.detach().mean()
        return h - torch.stack(list(self.cache.values())).mean()


class KeyValueCache(Net):
    def start(self):
        self.past = None

    def middle(self, h):
        now = means(h)[None]
        self.past = now if self.past is None else torch.cat([self.past, now])[-4:]
        return h + over(self.past.mean(0))


class Array(Net):
    def start(self):
        self.m = np.zeros(8, dtype=np.float32)

    def middle(self, h):
        self.m += 0.1 * means(h).numpy()
        return h - over(torch.from_numpy(self.m.copy()))


class Bytes(Net):
    def start(self):
        self.raw = bytearray(2)

    def middle(self, h):
        self.raw[0] = (self.raw[0] + 1) % 256
        return h * (1 + 0.01 * self.raw[0])


# Random generators


class TorchGenerator(Net):
    def start(self):
        self.g = torch.Generator().manual_seed(3)

    def middle(self, h):
        return h * over((torch.rand(8, generator=self.g) > 0.2).float())


class NumpyGenerator(Net):
    def start(self):
        self.g = np.random.default_rng(3)

    def middle(self, h):
        return h * (1 + 0.1 * self.g.random())


class NumpyRandomState(Net):
    def start(self):
        self.g = np.random.RandomState(3)

    def middle(self, h):
        return h * (1 + 0.1 * self.g.rand())


class PythonRandom(Net):
    def start(self):
        self.draw = random.Random(3).random  # only the method is kept

    def middle(self, h):
        return h * (1 + 0.1 * self.draw())


class GlobalGenerators(Net):
    def middle(self, h):
        return F.dropout(h, 0.2, True) * (1 + 0.1 * np.random.rand()) * (1 + 0.1 * random.random())


class Reseeds(Net):
    def middle(self, h):
        torch.manual_seed(torch.initial_seed() + 1)
        return F.dropout(h, 0.2, True)


class StochasticDepth(Net):
    def middle(self, h):
        return h if self.training and torch.rand(()) < 0.3 else h + 0.1 * h.square()
