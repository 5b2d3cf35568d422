"""Tiny networks, which learn generated shapes in a minute on a CPU."""

import torch
from torch import Tensor, nn


def conv_block(channels_in: int, channels_out: int, stride: int) -> nn.Sequential:
    """Return a convolution, batch norm and ReLU.

    >>> conv_block(3, 4, stride=2)(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 4, 4, 4])
    """
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),  # not in place, so that hooks can read its input
    )


class TinyCNN(nn.Module):
    """Convolutional network whose last map, 1/8 of the image's side, is averaged and classified by one linear layer.

    >>> TinyCNN(num_classes=5)(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 5])

    Args:
        num_classes: Number of outputs.
        channels: Channels of the images.
        width: Channels after the stem; the last map has four times as many.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stem = conv_block(channels, width, stride=2)
        self.stage1 = conv_block(width, 2 * width, stride=1)
        self.stage2 = nn.Sequential(conv_block(2 * width, 4 * width, 2), conv_block(4 * width, 4 * width, 1))
        self.stage3 = nn.Sequential(conv_block(4 * width, 4 * width, 2), conv_block(4 * width, 4 * width, 1))
        self.head = nn.Linear(4 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        A = self.stage3(self.stage2(self.stage1(self.stem(images))))
        return self.head(A.mean((2, 3)))


class SelfAttention(nn.Module):
    """Multi-head self-attention; the output of `softmax` is the attention (B, heads, T, T)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.num_heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.softmax = nn.Softmax(dim=-1)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(2, (3, self.num_heads, -1)).permute(2, 0, 3, 1, 4)  # (B, heads, T, d)
        attention = self.softmax(q @ k.transpose(2, 3) * q.shape[-1] ** -0.5)
        return self.proj((attention @ v).transpose(1, 2).flatten(2))


class TransformerBlock(nn.Module):
    """Self-attention and a two-layer perceptron, each after a layer norm and with a shortcut."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.norm1, self.attn = nn.LayerNorm(dim), SelfAttention(dim, heads)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attn(self.norm1(x))
        return x + self.mlp(self.norm2(x))


class TinyViT(nn.Module):
    """Vision transformer with a class token; modules have timm's names.

    >>> TinyViT(num_classes=5, image_size=64)(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 5])

    Args:
        num_classes: Number of outputs.
        image_size: Side of the images, or height and width; multiples of `patch`.
        channels: Channels of the images.
        patch: Side of a patch.
        dim: Length of a token; a multiple of `heads`.
        heads: Attention heads per block.
        depth: Number of blocks.
    """

    num_prefix_tokens = 1

    def __init__(
        self,
        num_classes: int,
        image_size: int | tuple[int, int] = 64,
        channels: int = 3,
        patch: int = 8,
        dim: int = 64,
        heads: int = 4,
        depth: int = 2,
    ) -> None:
        super().__init__()
        height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
        if height % patch or width % patch:
            raise ValueError(
                f"expected image_size in multiples of patch={patch}, got {image_size}; change one of the two."
            )
        if dim % heads:
            raise ValueError(f"expected dim in multiples of heads={heads}, got {dim}; change one of the two.")
        self.image_size, self.grid_size = (height, width), (height // patch, width // patch)
        self.patch_embed = nn.Conv2d(channels, dim, patch, stride=patch)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + self.grid_size[0] * self.grid_size[1], dim))
        self.blocks = nn.Sequential(*(TransformerBlock(dim, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(dim)
        self.head = nn.Linear(dim, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != self.image_size:
            raise ValueError(
                f"expected images of {self.image_size} pixels, got {tuple(images.shape[2:])}; "
                "resize them or build TinyViT with their image_size."
            )
        patches = self.patch_embed(images).flatten(2).transpose(1, 2)  # (B, T - 1, dim)
        x = torch.cat([self.cls_token.expand(len(images), -1, -1), patches], 1) + self.pos_embed
        return self.head(self.norm(self.blocks(x))[:, 0])
