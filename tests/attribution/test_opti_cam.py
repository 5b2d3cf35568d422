import math
from functools import partial

import pytest
import torch
import torch.nn.functional as F
from support.families import few
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import OptiCAM

close = partial(assert_close, rtol=0, atol=1e-9)
NORMALIZE = {
    "range": lambda S: (S - S.min()) / (S.max() - S.min()),
    "max": lambda S: S / S.max(),
    "sigmoid": lambda S: 1 / (1 + (-S).exp()),
}


def optimize(network, x, A, score, steps, objective="mask", n="range", mean=(0, 0), std=(1, 1)):
    """(1) to (4) for one image (1, C, H, W) under torch's Adam: all maps and objectives on the way."""
    mean, std = (torch.tensor(v, dtype=x.dtype).view(-1, 1, 1) for v in (mean, std))
    u = torch.zeros(A.shape[1], dtype=A.dtype, requires_grad=True)
    adam, maps, values = torch.optim.Adam([u], lr=0.1), [], []
    for _ in range(steps + 1):
        S = sum(w * a for w, a in zip(u.softmax(0), A[0].relu()))
        m = NORMALIZE[n](F.interpolate(S[None, None], x.shape[2:], mode="bilinear")[0])
        y = score(network(((x * std + mean) * m - mean) / std))
        value = y if objective == "mask" else -(score(network(x)) - y).abs()
        maps.append(m[0].detach())
        values.append(value.item())
        adam.zero_grad()
        (-value).backward()
        adam.step()
    return maps, values


@pytest.mark.parametrize("n", ["range", "max", "sigmoid"])
@pytest.mark.parametrize("objective", ["mask", "diff"])
def test_opti_cam_equals_adam_on_printed_objective(n, objective, network, images):
    network = nn.Sequential(network[0][0], nn.Sequential(nn.ReLU(), network[1]))  # signed features
    S = OptiCAM(layer="0", steps=7, n=n, objective=objective)(network, images, [1, 2])
    for i, c in enumerate((1, 2)):
        x = images[i : i + 1]
        A = network[0](x).detach()
        maps, _ = optimize(network, x, A, lambda y, c=c: y[0, c], 7, objective, n)
        assert_close(S[i], maps[-1], rtol=0, atol=1e-7)


def test_opti_cam_masks_with_black_and_explains_logprob(network, images):
    x, black = images[:1], {"mean": (0.4, 0.5), "std": (0.2, 0.3)}
    A = network[0](x).detach()
    maps, _ = optimize(network, x, A, lambda y: y.log_softmax(1)[0, 1], 5, **black)
    S = OptiCAM(layer="0", steps=5, score="logprob", **black)(network, x, 1)
    assert_close(S[0], maps[-1], rtol=0, atol=1e-7)


def test_opti_cam_keep_best_returns_highest_objective(function):
    """The mean of the mask shall be 0.45, and Adam overshoots: the best iterate lies in between."""
    A = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    x = torch.ones(1, 1, 4, 4, dtype=torch.float64)
    model = function(lambda x, features: -((features(x)[:, :1] * 0 + x).mean((2, 3)) - 0.45).abs(), features=Fixed(A))
    maps, values = optimize(model, x, A, lambda y: y[0, 0], 30)
    best = max(range(30), key=lambda t: values[t])
    assert 0 < best < 29
    keep = {keep: OptiCAM(layer="features", steps=30, keep=keep)(model, x, 1)[0] for keep in ("best", "last")}
    assert_close(keep["best"], maps[best], rtol=0, atol=1e-6)
    assert_close(keep["last"], maps[30], rtol=0, atol=1e-6)


class Fixed(nn.Module):
    """Features that do not depend on the image."""

    def __init__(self, A):
        super().__init__()
        self.A = A

    def forward(self, x):
        return self.A.expand(len(x), *self.A.shape[1:])


def blocks():
    """Features that are 1 on the left block L and on the middle block M; nothing on R."""
    A = torch.zeros(1, 2, 2, 6, dtype=torch.float64)
    A[:, 0, :, :2] = A[:, 1, :, 2:4] = 1
    return Fixed(A)


def test_opti_cam_finds_the_block_that_raises_the_score(function):
    """y = sum over L of x - sum over M of x: at u = 0 the mask is 1 on L and M, at the end on L alone."""
    score = lambda x: (x[..., :2].sum((1, 2, 3)) - x[..., 2:4].sum((1, 2, 3)))[:, None]  # noqa: E731
    model = function(lambda x, features: score(x) + 0 * features(x).sum(), features=blocks())
    x = torch.ones(2, 1, 2, 6, dtype=torch.float64)
    start = OptiCAM(layer="features", steps=1, lr=1e-12)(model, x, 1)
    maps = [start, *(OptiCAM(layer="features", steps=steps)(model, x, 1) for steps in (1, 5, 100))]
    close(maps[0][..., 2:4], torch.ones(2, 2, 2, dtype=torch.float64))
    values = [score(x * m[:, None]).sum() for m in maps]
    assert values[0] < values[1] < values[2] < values[3]
    S = maps[-1]
    assert (S[..., :2] > 0.99).all()
    assert (S[..., 2:4] < 0.1).all()
    assert (S[..., 4:] == 0).all()


@pytest.mark.parametrize("steps", [1, 10])
def test_opti_cam_of_one_channel_is_its_normalized_map(steps, gap_linear, features):
    A = features[:, :1]
    expected = torch.stack([NORMALIZE["range"](a) for a in A[:, 0]])
    close(OptiCAM(layer="features", steps=steps)(gap_linear([[1.0], [2]]), A, 0), expected)
    twice = A.expand(-1, 2, -1, -1)
    close(OptiCAM(layer="features", steps=steps)(gap_linear([[1.0, 3], [2, 4]]), twice, 0), expected)


def test_opti_cam_of_constant_sum_of_features_is_zero(function):
    A = torch.zeros(1, 2, 2, 2, dtype=torch.float64)
    A[:, 0, :, 0] = A[:, 1, :, 1] = 1
    model = function(lambda x, features: x.sum((2, 3)) + 0 * features(x).sum(), features=Fixed(A))
    assert not OptiCAM(layer="features")(model, torch.ones(1, 1, 2, 2, dtype=torch.float64), 1).any()


def test_opti_cam_sigmoid_map_is_at_least_half(network, images):
    S = OptiCAM(layer="0", steps=5, n="sigmoid")(network, images, 1)
    assert 0.5 <= S.min() <= S.max() < 1


def test_opti_cam_drops_finished_images_from_the_batch(function, images):
    """A constant score changes by 0 in the second step; the other image goes on."""
    rows = Tally()

    def forward(x, features):
        rows.append(len(x))
        return (x.abs() * (x[:, :1, :1, :1] >= 0)).mean((2, 3)) + 0 * features(x).sum()

    A = torch.rand(1, 3, 8, 8, dtype=torch.float64)
    x = images.abs()
    x[0] *= -1
    OptiCAM(layer="features", steps=6)(function(forward, features=Fixed(A)), x, 0)
    assert rows[-6:] == [2, 2, 1, 1, 1, 1]


def test_opti_cam_official_stop_ends_batch_on_falling_objective(function):
    """Scores fall from call to call, so that of 20 steps the third, which is compared with the first, is the last."""
    calls = Tally()

    def forward(x, features):
        calls.append(len(x))
        return x.mean((2, 3)) - len(calls) + 0 * features(x).sum()

    model, x = function(forward, features=blocks()), torch.ones(2, 1, 2, 6, dtype=torch.float64)
    OptiCAM(layer="features", steps=20, stop="official")(model, x, 1)
    stopped = len(calls)
    calls.clear()
    OptiCAM(layer="features", steps=20, stop="tolerance")(model, x, 1)
    assert len(calls) - stopped == 17


def official(network, x, A, target, steps, objective, n):
    """The published loop, as described: the batch's loss of step 0, k, 2 k, ... is compared with the one before.

    The loss is that before the step's update, the map that is returned on stopping is that of the loss: k is a tenth of
    all steps. Returns the maps and how many updates they saw.
    """
    rows = torch.arange(len(x))
    clean = network(x)[rows, target].detach()
    u = torch.full(A.shape[:2], 0.5, dtype=A.dtype, requires_grad=True)
    adam, before = torch.optim.Adam([u], lr=2.0), math.inf

    def maps():
        S = torch.einsum("bk,bkij->bij", u.softmax(1), A)
        return torch.stack([NORMALIZE[n](s) for s in F.interpolate(S[:, None], x.shape[2:], mode="bilinear")[:, 0]])

    for step in range(steps):
        m = maps()
        y = network(x * m[:, None])[rows, target]
        loss = (clean - y).abs().sum() if objective == "diff" else (clean - y).sum()
        adam.zero_grad()
        loss.backward()
        adam.step()
        if step % (steps // 10) == 0:
            if loss > before:
                return m.detach(), step
            before = loss.item()
    return maps().detach(), steps


@pytest.mark.parametrize("n", ["range", "sigmoid"])
@pytest.mark.parametrize("objective", ["mask", "diff"])
@pytest.mark.parametrize("steps", few([10, 24, 50], 10, 24))
def test_opti_cam_official_stop_returns_published_maps(steps, objective, n):
    """Of eight small networks with long steps some end early, where the objective fell."""
    ends = set()
    for seed in range(8):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            head = nn.Sequential(nn.Conv2d(5, 6, 3), nn.Tanh(), nn.Flatten(), nn.Linear(24, 3))
            network = nn.Sequential(nn.Sequential(nn.Conv2d(2, 5, 3, 2, 1), nn.ReLU()), head).double()
            x = torch.randn(3, 2, 8, 8, dtype=torch.float64)
        target = torch.tensor([0, 2, 1])
        expected, updates = official(network, x, network[0](x).detach(), target, steps, objective, n)
        ends.add(updates)
        method = OptiCAM(layer="0", steps=steps, stop="official", objective=objective, n=n, lr=2.0)
        assert_close(method(network, x, target), expected, rtol=0, atol=1e-6)
    assert min(ends) < steps


@pytest.mark.parametrize("wrong", [{"objective": "masks"}, {"stop": "never"}, {"keep": "first"}, {"n": "minmax"}])
def test_opti_cam_refuses_unknown_options(wrong, network, images):
    with pytest.raises(ValueError, match=f"got '{next(iter(wrong.values()))}'"):
        OptiCAM(layer="0", steps=2, **wrong)(network, images, 0)
