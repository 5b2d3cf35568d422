"""Small networks, every method in a cheap form, and the state that an explanation must not change."""

import random

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import interpretable_training.attribution as attribution
from interpretable_training.attribution import (
    CAM,
    RISE,
    AblationCAM,
    AttentionRollout,
    CaptumAttribution,
    DeconvNet,
    EigenCAM,
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    ExpectedGradients,
    ExtremalPerturbation,
    FakeCAM,
    FullGrad,
    GradCAM,
    GradCAMPlusPlus,
    Gradient,
    GuidedBackprop,
    GuidedExpectedGradCAM,
    GuidedGradCAM,
    HiResCAM,
    HyperExpectedGradCAM,
    InputXGradient,
    IntegratedGradients,
    LayerCAM,
    Occlusion,
    OptiCAM,
    PolyCAM,
    RandomMap,
    RawAttention,
    ScoreCAM,
    SmoothGrad,
    SmoothGradCAMPlusPlus,
    TGrad,
    TransformerAttribution,
    XGradCAM,
)
from support.tally import Tally

SIZE = (16, 24)
ONE_PASS = [GradCAM(), GradCAMPlusPlus(), XGradCAM(), HiResCAM(), LayerCAM(), EigenCAM()]
OF_ATTENTION = ("attentionrollout", "rawattention", "transformerattribution")
BASELINES = torch.randn(4, 3, *SIZE, generator=torch.Generator().manual_seed(0))
METHODS: dict[str, attribution.Attribution] = {
    type(method).__name__.lower(): method
    for method in [
        *ONE_PASS,
        CAM(),
        AblationCAM(),
        AttentionRollout(),
        CaptumAttribution(call_args={"n_steps": 3}),
        DeconvNet(),
        ExpectedGradCAM(baselines=BASELINES, n=3, batches=2),
        ExpectedGradCAMPlusPlus(baselines=BASELINES, n=3),
        ExpectedGradients(baselines=BASELINES, n=3),
        ExtremalPerturbation(steps=3, step=4, sigma=6.0),
        FakeCAM(),
        FullGrad(),
        RandomMap(),
        Gradient(),
        GuidedBackprop(),
        GuidedExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES, n=3)),
        GuidedGradCAM(),
        HyperExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES, n=3), local_draws=2),
        InputXGradient(),
        IntegratedGradients(steps=3),
        Occlusion(patch=9, stride=3),
        OptiCAM(steps=3),
        PolyCAM(),
        RawAttention(),
        RISE(n=20, cells=4),
        ScoreCAM(),
        SmoothGrad(n=3),
        SmoothGradCAMPlusPlus(n=3),
        TGrad(),
        TransformerAttribution(),
    ]
}


class Boom(nn.Module):
    """The identity, which raises an error when it runs for the `at`-th time."""

    def __init__(self) -> None:
        super().__init__()
        self.passes, self.at = Tally(), 0

    @property
    def runs(self) -> int:
        return len(self.passes)

    def forward(self, x: Tensor) -> Tensor:
        self.passes.append(len(x))
        if self.runs == self.at:
            raise RuntimeError("boom")
        return x


class ToyCNN(nn.Module):
    """Batch norm, in-place ReLU, dropout, and a buffer that every forward pass changes in any mode."""

    def __init__(self, channels: int = 3, dims: int = 2) -> None:
        super().__init__()
        conv, norm = getattr(nn, f"Conv{dims}d"), getattr(nn, f"BatchNorm{dims}d")
        self.stem = nn.Sequential(conv(channels, 6, 3, 2, 1), norm(6), nn.ReLU(inplace=True))
        self.block = nn.Sequential(conv(6, 8, 3, 2, 1), norm(8), nn.ReLU(inplace=True))
        self.boom = Boom()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return self.head(self.drop(self.boom(self.block(self.stem(x))).flatten(2).mean(2)))


class ToyViT(nn.Module):
    """Patches of 4 with a class token, two blocks, and the buffers and dropout of `ToyCNN`."""

    def __init__(self) -> None:
        super().__init__()
        self.patch = nn.Sequential(nn.Conv2d(3, 8, 4, 4), nn.BatchNorm2d(8))
        self.cls = nn.Parameter(torch.randn(1, 1, 8))
        self.blocks = nn.Sequential(*[Block() for _ in range(2)])
        self.boom = Boom()
        self.drop = nn.Dropout(0.3)
        self.head = nn.Linear(8, 4)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        tokens = self.patch(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(x), -1, -1).to(tokens.dtype), tokens], 1)
        return self.head(self.drop(self.boom(self.blocks(tokens))[:, 0]))


class Block(nn.Module):
    """A pre-norm transformer block."""

    def __init__(self) -> None:
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(8), nn.LayerNorm(8)
        self.qkv, self.proj = nn.Linear(8, 24), nn.Linear(8, 8)
        self.mlp = nn.Sequential(nn.Linear(8, 16), nn.GELU(), nn.Linear(16, 8))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(self.norm1(x)).unflatten(2, (3, 2, 4)).permute(2, 0, 3, 1, 4)
        x = x + self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return x + self.mlp(self.norm2(x))


def toy(name: str = "gradcam") -> ToyCNN | ToyViT:
    """Return a network that the method `name` can explain, in eval mode, with statistics as after some training."""
    torch.manual_seed(0)
    net = ToyViT() if name in OF_ATTENTION else ToyCNN()
    for _ in range(2):
        net(toy_images(8))
    net.boom.passes.clear()
    return net.eval()


def toy_images(n: int = 3, channels: int = 3, size: tuple[int, ...] = SIZE) -> Tensor:
    """Return the same images at every call."""
    return torch.randn(n, channels, *size, generator=torch.Generator().manual_seed(1))


def disorder(net: nn.Module) -> None:
    """Mix modes, frozen parameters and `.grad` of `net` as in the middle of a training."""
    for i, module in enumerate(net.modules()):
        module.training = i % 3 != 1
    for i, p in enumerate(net.parameters()):
        p.requires_grad_(i % 2 == 0)
        p.grad = torch.full_like(p, float(i)) if i % 4 == 0 else None


def state(net: nn.Module) -> dict[str, object]:
    """Return flags, hooks, gradients, parameters and buffers of `net` with their identities, for comparison."""
    snapshot: dict[str, object] = {"global": [len(h) for h in _global_hooks()]}
    for name, module in net.named_modules():
        hooks = {key: list(value) for key, value in vars(module).items() if "hooks" in key and value is not None}
        snapshot[name] = (module.training, hooks, sorted(vars(module)))
        for key, buffer in module._buffers.items():
            snapshot[f"{name}.{key}"] = None if buffer is None else (id(buffer), buffer.requires_grad, values(buffer))
    for name, p in net.named_parameters():
        hooks = [p._backward_hooks, p._post_accumulate_grad_hooks]
        grad = None if p.grad is None else (id(p.grad), values(p.grad))
        snapshot[f"parameter {name}"] = (id(p), p.requires_grad, hooks, grad, values(p))
    return snapshot


def values(tensor: Tensor) -> list[float]:
    return tensor.detach().double().flatten().tolist()


def generators() -> tuple[object, ...]:
    """Return the states of all random generators, for comparison."""
    kind, keys, *rest = np.random.get_state()
    return torch.get_rng_state().tolist(), random.getstate(), kind, keys.tolist(), *rest


def _global_hooks() -> list[dict[int, object]]:
    module = nn.modules.module
    return [value for key, value in vars(module).items() if key.startswith("_global") and isinstance(value, dict)]
