"""The photographs that come with scikit-image and scikit-learn, and fixed crops of them that a network is sure of."""

import math
from importlib.resources import files
from pathlib import Path

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.transforms import v2
from torchvision.transforms.v2.functional import crop, horizontal_flip, pil_to_tensor, resize

MEAN, STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)  # of the network's inputs
SIDE = 224
PHOTOGRAPHS = {  # name -> package and file
    "astronaut": ("skimage", "data/astronaut.png"),
    "brick": ("skimage", "data/brick.png"),
    "camera": ("skimage", "data/camera.png"),
    "cat": ("skimage", "data/chelsea.png"),
    "clock": ("skimage", "data/clock_motion.png"),
    "coffee": ("skimage", "data/coffee.png"),
    "coins": ("skimage", "data/coins.png"),
    "grass": ("skimage", "data/grass.png"),
    "gravel": ("skimage", "data/gravel.png"),
    "hubble": ("skimage", "data/hubble_deep_field.jpg"),
    "moon": ("skimage", "data/moon.png"),
    "motorcycle": ("skimage", "data/motorcycle_left.png"),
    "retina": ("skimage", "data/retina.jpg"),
    "rocket": ("skimage", "data/rocket.jpg"),
    "china": ("sklearn", "datasets/images/china.jpg"),
    "flower": ("sklearn", "datasets/images/flower.jpg"),
}


def photograph(name: str) -> Image.Image:
    """Return a photograph in color."""
    package, path = PHOTOGRAPHS[name]
    try:
        file = Path(str(files(package))) / path
    except ModuleNotFoundError as error:
        raise ImportError(
            f"expected the package {package}, which holds the photograph {name!r}, got none; run pip install "
            '"interpretable-training[evidence]".'
        ) from error
    with Image.open(file) as picture:
        return picture.convert("RGB")


def normalized(picture: Image.Image) -> Tensor:
    """Return the input of the network (3, SIDE, SIDE)."""
    pixels = pil_to_tensor(resize(picture, [SIDE, SIDE], v2.InterpolationMode.BICUBIC)).float() / 255
    return (pixels - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]


def whole_view(picture: Image.Image) -> Tensor:
    """Return the middle square as the network's input."""
    side = min(picture.size)
    return normalized(crop(picture, (picture.height - side) // 2, (picture.width - side) // 2, side, side))


def random_view(picture: Image.Image, generator: torch.Generator) -> Tensor:
    """Return a crop of 30 to 100 % of the area, flipped or not, as the network's input."""
    area, ratio, left, top, flip = torch.rand(5, generator=generator).tolist()
    pixels = (0.3 + 0.7 * area) * picture.width * picture.height
    ratio = math.exp((2 * ratio - 1) * math.log(4 / 3))
    width = min(round(math.sqrt(pixels * ratio)), picture.width)
    height = min(round(math.sqrt(pixels / ratio)), picture.height)
    corner = int(top * (picture.height - height + 1)), int(left * (picture.width - width + 1))
    view = crop(picture, *corner, height, width)
    return normalized(horizontal_flip(view) if flip < 0.5 else view)


@torch.no_grad()
def sure_views(
    network: nn.Module, n: int = 200, per_photograph: int = 25, least: float = 0.3, seed: int = 0
) -> tuple[Tensor, Tensor, list[str]]:
    """Return up to n views (n, 3, H, W) with a probability of at least `least`, their classes and their photographs.

    Photographs take turns, so that as many as possible have as many views as the others.
    """
    found: dict[str, list[tuple[Tensor, int]]] = {}
    for i, name in enumerate(PHOTOGRAPHS):
        generator = torch.Generator().manual_seed(1000 * seed + i)
        picture = photograph(name)
        views = torch.stack([random_view(picture, generator) for _ in range(2 * per_photograph)])
        p, target = network(views).softmax(1).max(1)
        rows = (p >= least).nonzero()[:per_photograph, 0].tolist()
        found[name] = [(views[row], int(target[row])) for row in rows]
    turns = [
        (name, views[turn]) for turn in range(per_photograph) for name, views in found.items() if turn < len(views)
    ]
    chosen = sorted(turns[:n], key=lambda pair: pair[0])
    images, classes = (torch.stack([pair[0] for _, pair in chosen]), torch.tensor([pair[1] for _, pair in chosen]))
    return images, classes, [name for name, _ in chosen]
