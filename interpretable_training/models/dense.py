"""Small networks with dense outputs: a U-Net for segmentation, and a detector of torchvision with a small backbone."""

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS
from torchvision.models.detection.anchor_utils import AnchorGenerator

from .tiny import conv_block


class TinyUNet(nn.Module):
    """Encoder of three stages and a decoder that reads them all.

    >>> TinyUNet(num_classes=5)(torch.randn(2, 3, 64, 64)).shape
    torch.Size([2, 5, 64, 64])

    Args:
        num_classes: Number of classes, the background included.
        channels: Channels of the images.
        width: Channels of the first stage; the last has four times as many.
    """

    def __init__(self, num_classes: int, channels: int = 3, width: int = 16) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(conv_block(channels, width, 1), conv_block(width, width, 1))
        self.stage2 = nn.Sequential(conv_block(width, 2 * width, 2), conv_block(2 * width, 2 * width, 1))
        self.stage3 = nn.Sequential(conv_block(2 * width, 4 * width, 2), conv_block(4 * width, 4 * width, 2))
        self.up2 = conv_block(6 * width, 2 * width, 1)
        self.up1 = conv_block(3 * width, width, 1)
        self.head = nn.Conv2d(width, num_classes, 1)

    def forward(self, images: Tensor) -> Tensor:
        A1 = self.stage1(images)
        A2 = self.stage2(A1)
        A3 = self.stage3(A2)
        A = self.up2(torch.cat([_resized(A3, A2), A2], 1))
        return self.head(self.up1(torch.cat([_resized(A, A1), A1], 1)))


def _resized(A: Tensor, like: Tensor) -> Tensor:
    return nn.functional.interpolate(A, like.shape[2:], mode="bilinear", align_corners=False)


class TinyBackbone(nn.Module):
    """Features at 1/4 of the image's side, as torchvision's detectors take them.

    >>> TinyBackbone(3, 16)(torch.zeros(1, 3, 64, 64)).shape
    torch.Size([1, 64, 16, 16])

    Args:
        channels: Channels of the images.
        width: Channels of the first layer; the last has four times as many.
    """

    def __init__(self, channels: int, width: int) -> None:
        super().__init__()
        self.out_channels = 4 * width
        self.stem = conv_block(channels, width, 2)
        self.stage1 = nn.Sequential(conv_block(width, 2 * width, 1), conv_block(2 * width, 4 * width, 2))
        self.stage2 = nn.Sequential(conv_block(4 * width, 4 * width, 1), conv_block(4 * width, 4 * width, 1))

    def forward(self, images: Tensor) -> Tensor:
        return self.stage2(self.stage1(self.stem(images)))


class TinyDetector(FCOS):
    """FCOS of torchvision on one grid, with a small backbone. Tian et al., ICCV 2019, https://arxiv.org/abs/1904.01355

    >>> detector = TinyDetector(num_classes=3, image_size=32).eval()
    >>> sorted(detector(torch.zeros(1, 3, 32, 32))[0])
    ['boxes', 'labels', 'scores']

    Args:
        num_classes: Number of classes, the background (0) included.
        image_size: Side of the images, which are not resized.
        width: Channels of the first layer.
    """

    def __init__(self, num_classes: int, image_size: int = 64, width: int = 16) -> None:
        super().__init__(
            TinyBackbone(3, width),
            num_classes,
            min_size=image_size,
            max_size=image_size,
            image_mean=[0.0, 0.0, 0.0],  # the images are normalized before
            image_std=[1.0, 1.0, 1.0],
            anchor_generator=AnchorGenerator(((image_size // 4,),), ((1.0,),)),
            center_sampling_radius=1.5,
            score_thresh=0.05,
            detections_per_img=10,
        )
