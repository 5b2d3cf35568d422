"""Small networks that several test files share."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ATTENTION_KINDS = ["nn", "nn encoder", "fused", "explicit", "method"]
DIM, HEADS = 6, 2


class Function(nn.Module):
    """A function as a model; its submodules can be given by name."""

    def __init__(self, forward: Callable[..., Tensor], **modules: nn.Module) -> None:
        super().__init__()
        self.function = forward
        for name, module in modules.items():
            self.add_module(name, module)

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x, **dict(self.named_children()))


class GapLinear(nn.Module):
    """y = W mean(A) + b, where the features A are the image itself; `hidden` heads are no linear layer by type."""

    def __init__(self, W: Tensor, b: Tensor, hidden: bool) -> None:
        super().__init__()
        self.features = nn.Identity()
        self.W, self.b, self.hidden = nn.Parameter(W), nn.Parameter(b), hidden
        if not hidden:
            self.head = nn.Linear(W.shape[1], W.shape[0])
            self.head.weight, self.head.bias = self.W, self.b

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.features(x).flatten(2).mean(2)
        return F.linear(pooled, self.W, self.b) if self.hidden else self.head(pooled)


def pyramid(side: int) -> nn.Sequential:
    """Return a network with features of `side`, a half and a quarter of it, for images (B, 2, side, side)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU()]
        layers += [
            nn.MaxPool2d(2),
            nn.Conv2d(4, 5, 3, 1, 1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(5 * (side // 4) ** 2, 3),
        ]
        return nn.Sequential(*layers).double()


class BiasedResidual(nn.Module):
    """Convolutions with bias, batch norm, in-place ReLU, a residual sum in place, pooling and two linear layers."""

    def __init__(self, axes: int, act: type[nn.Module] = nn.ReLU, bias: bool = True) -> None:
        super().__init__()
        Conv, Norm = getattr(nn, f"Conv{axes}d"), getattr(nn, f"BatchNorm{axes}d")
        self.stem = nn.Sequential(Conv(2, 6, 3, 2, 1, bias=bias), Norm(6), act())
        self.body = nn.Sequential(Conv(6, 6, 3, 1, 1, bias=bias), Norm(6), act(), Conv(6, 6, 1, bias=bias))
        self.pool = getattr(nn, f"MaxPool{axes}d")(2)
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(6 * 2**axes, 9, bias), nn.ReLU(True), nn.Linear(9, 3, bias))
        self.mean = getattr(nn, f"AdaptiveAvgPool{axes}d")(2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        out = self.body(x)
        out += x
        return self.head(self.mean(self.pool(F.relu_(out))))


def residual(axes: int = 2, bias: bool = True, **options: type[nn.Module]) -> tuple[BiasedResidual, Tensor]:
    """Return a `BiasedResidual` in eval mode with statistics as after a training, and images (3, 2, 16, ...) for it."""
    with torch.random.fork_rng():
        torch.manual_seed(axes)
        net = BiasedResidual(axes, bias=bias, **options).double().eval()
        for module in net.modules():
            if hasattr(module, "running_var"):
                nn.init.uniform_(module.running_var, 0.5, 2)
                nn.init.normal_(module.weight)
                for tensor in (module.running_mean, module.bias):
                    tensor.data.normal_() if bias else tensor.data.zero_()
        return net, torch.randn(3, 2, *[16] * axes, dtype=torch.float64)


def residual_terms(net: BiasedResidual, x: Tensor, target: int = 1) -> list[Tensor]:
    """Return dy/dx * x and dy/dz * b of all operations with a position, one after the other by hand."""
    conv1, norm1 = net.stem[:2]
    conv2, norm2, _, conv3 = net.body
    x = x.clone().requires_grad_()
    z1 = conv1(x)
    z2 = norm1(z1)
    z3 = conv2(z2.relu())
    z4 = norm2(z3)
    z5 = conv3(z4.relu())
    y = net.head(net.mean(net.pool((z5 + z2.relu()).relu())))[:, target].sum()
    gx, *g = torch.autograd.grad(y, [x, z1, z2, z3, z4, z5])
    shift = [n.bias - n.weight * n.running_mean / (n.running_var + n.eps) ** 0.5 for n in (norm1, norm2)]
    biases = [conv1.bias, shift[0], conv2.bias, shift[1], conv3.bias]
    return [x * gx, *[b[:, None, None] * gz for b, gz in zip(biases, g)]]


class AttentionBlock(nn.Module):
    """One self-attention, written in one of the ways in which models write it."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        if kind == "nn encoder":
            self.layer = nn.TransformerEncoderLayer(DIM, HEADS, 8, batch_first=True)
            self.mha = self.layer.self_attn
        else:
            self.mha = nn.MultiheadAttention(DIM, HEADS, batch_first=True)

    def heads(self, x: Tensor) -> list[Tensor]:
        q, k, v = F.linear(x, self.mha.in_proj_weight, self.mha.in_proj_bias).chunk(3, -1)
        return [t.unflatten(-1, (HEADS, DIM // HEADS)).transpose(1, 2) for t in (q, k, v)]

    def attention(self, x: Tensor) -> Tensor:
        """Return softmax(q k / sqrt(d)), head by head and row by row."""
        q, k, _ = self.heads(x)
        A = torch.zeros(len(x), HEADS, x.shape[1], x.shape[1], dtype=x.dtype)
        for h in range(HEADS):
            for t in range(x.shape[1]):
                e = (q[:, h, t, None] * k[:, h]).sum(-1).div((DIM // HEADS) ** 0.5).exp()
                A[:, h, t] = e / e.sum(1, keepdim=True)
        return A

    def forward(self, x: Tensor) -> Tensor:
        if self.kind == "nn encoder":
            return self.layer(x)
        if self.kind == "nn":
            return x + self.mha(x, x, x, need_weights=False)[0]
        q, k, v = self.heads(x)
        if self.kind == "fused":
            mixed = F.scaled_dot_product_attention(q, k, v)
        else:
            scores = q @ k.transpose(-2, -1) * q.shape[-1] ** -0.5
            mixed = (torch.softmax(scores, -1) if self.kind == "explicit" else scores.softmax(dim=-1)) @ v
        return x + self.mha.out_proj(mixed.transpose(1, 2).flatten(2))


class PatchTransformer(nn.Module):
    """Patches of 4 x 4 pixels behind an optional class token, two blocks and a head."""

    def __init__(self, kind: str, cls: bool = True) -> None:
        super().__init__()
        self.patch = nn.Conv2d(2, DIM, 4, 4)
        self.cls = nn.Parameter(torch.randn(1, 1, DIM)) if cls else None
        self.blocks = nn.ModuleList([AttentionBlock(kind), AttentionBlock(kind)])
        self.head = nn.Linear(DIM, 3)

    def tokens(self, x: Tensor) -> Tensor:
        x = self.patch(x).flatten(2).transpose(1, 2)
        return x if self.cls is None else torch.cat([self.cls.expand(len(x), -1, -1), x], 1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.tokens(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x[:, 0] if self.cls is not None else x.mean(1))

    def attentions(self, x: Tensor) -> list[Tensor]:
        """Return A of every block by hand."""
        x, maps = self.tokens(x), []
        for block in self.blocks:
            maps.append(block.attention(x))
            x = block(x)
        return [A.detach() for A in maps]


def patch_transformer(kind: str, cls: bool = True) -> PatchTransformer:
    """Return the same `PatchTransformer` at every call, in double precision and eval mode."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return PatchTransformer(kind, cls).double().eval()


def patch_grid(row: Tensor) -> Tensor:
    """Return values of the patches (B, 6) as a grid (B, 2, 3)."""
    return row.unflatten(1, (2, 3))
