"""ResNet-18 and MobileNet-V2 for images of 32 x 32 pixels, as in https://github.com/weiaicunzai/pytorch-cifar100.

The first convolutions keep the resolution, where networks for ImageNet halve it twice. The numbers of parameters equal
those of the repository: 11 220 132 and 2 369 380 with 100 classes.
"""

import torch.nn.functional as F
from torch import Tensor, nn


class BasicBlock(nn.Module):
    """Residual block of two convolutions and a shortcut."""

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.shortcut = nn.Sequential()
        if stride != 1 or channels_in != channels_out:
            conv = nn.Conv2d(channels_in, channels_out, 1, stride, bias=False)
            self.shortcut = nn.Sequential(conv, nn.BatchNorm2d(channels_out))

    def forward(self, x: Tensor) -> Tensor:
        z = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return F.relu(z + self.shortcut(x), inplace=True)  # no registered module, as in the repository


class CIFARResNet18(nn.Module):
    """Residual network of 17 convolutions and a linear layer; the last map of 32 x 32 pixels is 4 x 4.

    >>> CIFARResNet18(num_classes=100, width=8)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 100])

    Args:
        num_classes: Number of outputs.
        channels: Channels of the images.
        width: Channels after the stem; the last map has eight times as many.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 64) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            nn.Conv2d(channels, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        widths = [width, width, 2 * width, 4 * width, 8 * width]
        self.layer1, self.layer2, self.layer3, self.layer4 = (
            nn.Sequential(BasicBlock(widths[i], widths[i + 1], stride), BasicBlock(widths[i + 1], widths[i + 1], 1))
            for i, stride in enumerate((1, 2, 2, 2))
        )
        self.fc = nn.Linear(8 * width, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        A = self.layer4(self.layer3(self.layer2(self.layer1(self.stem(images)))))
        return self.fc(A.mean((2, 3)))


class InvertedResidual(nn.Module):
    """Depthwise convolution between two pointwise convolutions, with a shortcut where input and output fit."""

    def __init__(self, channels_in: int, channels_out: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * channels_in
        self.layers = nn.Sequential(
            nn.Conv2d(channels_in, wide, 1),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, wide, 3, stride, 1, groups=wide),
            nn.BatchNorm2d(wide),
            nn.ReLU6(inplace=True),
            nn.Conv2d(wide, channels_out, 1),
            nn.BatchNorm2d(channels_out),
        )
        self.residual = stride == 1 and channels_in == channels_out

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x) + x if self.residual else self.layers(x)


class CIFARMobileNetV2(nn.Module):
    """Network of inverted residuals; the last map of 32 x 32 pixels is 5 x 5, because the stem pads by one pixel.

    >>> CIFARMobileNetV2(num_classes=100)(torch.randn(2, 3, 32, 32)).shape
    torch.Size([2, 100])

    Args:
        num_classes: Number of outputs.
        channels: Channels of the images.
    """

    def __init__(self, num_classes: int, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(channels, 32, 1, padding=1), nn.BatchNorm2d(32), nn.ReLU6(inplace=True))
        blocks, channels_in = [InvertedResidual(32, 16, 1, 1)], 16
        for repeat, channels_out, stride in ((2, 24, 2), (3, 32, 2), (4, 64, 2), (3, 96, 1), (3, 160, 1), (1, 320, 1)):
            for i in range(repeat):
                blocks.append(InvertedResidual(channels_in, channels_out, 1 if i else stride, 6))
                channels_in = channels_out
        self.blocks = nn.Sequential(*blocks)
        self.conv = nn.Sequential(nn.Conv2d(320, 1280, 1), nn.BatchNorm2d(1280), nn.ReLU6(inplace=True))
        self.fc = nn.Linear(1280, num_classes)

    def forward(self, images: Tensor) -> Tensor:
        A = self.conv(self.blocks(self.stem(images)))
        return self.fc(A.mean((2, 3)))
