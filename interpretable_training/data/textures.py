"""Photo-like textures made of noise: grass, water, bricks, sand, wood and clouds.

    z       = F^-1[g(f) F[noise]], scaled to mean 0 and variance 1    (1)
    picture = dark + v (light - dark)                                  (2)

noise: independent normal numbers. F: Fourier transform. f: frequency along x and y in cycles per shorter side of the
image. g: gain of each frequency. v: brightness in [0, 1], a function of z and of the place. dark, light: colors of a
texture, shifted at random for each picture.

Numbers are drawn alike for all textures, so the kind of a picture changes no other picture.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

KNOBS = 7  # numbers of each picture: four for its texture, three for its colors
JITTER = 0.08  # largest shift of a color channel


@dataclass(frozen=True)
class Canvas:
    """Random numbers of N pictures, and the places of their pixels."""

    noise: Tensor  # (N, 2, H, W)
    knobs: Tensor  # (N, KNOBS, 1, 1), in [0, 1]

    def knob(self, i: int, low: float, high: float) -> Tensor:
        """Return a number in [low, high] for each picture (N, 1, 1)."""
        return low + (high - low) * self.knobs[:, i]

    def turned(self, x: Tensor, y: Tensor, degrees: float) -> tuple[Tensor, Tensor]:
        """Return coordinates (N, H, W) rotated by up to so many degrees, differently for each picture."""
        angle = self.knob(0, -math.radians(degrees), math.radians(degrees))
        return angle.cos() * x + angle.sin() * y, angle.cos() * y - angle.sin() * x

    def frequencies(self) -> tuple[Tensor, Tensor]:
        """Return f along x and y, (1, w) and (H, 1)."""
        H, W = self.noise.shape[-2:]
        side = min(H, W)
        return side * torch.fft.rfftfreq(W)[None], side * torch.fft.fftfreq(H)[:, None]

    def places(self) -> tuple[Tensor, Tensor]:
        """Return x and y of the pixels in shorter sides, (1, W) and (H, 1)."""
        H, W = self.noise.shape[-2:]
        return torch.arange(W)[None] / min(H, W), torch.arange(H)[:, None] / min(H, W)

    def field(self, gain: Tensor, i: int = 0) -> Tensor:
        """Return z (N, H, W) for gains (H, w) or (N, H, w) (1)."""
        noise = self.noise[:, i]
        z = torch.fft.irfft2(torch.fft.rfft2(noise) * gain, s=noise.shape[-2:])
        z = z - z.mean((1, 2), keepdim=True)
        return z / z.std((1, 2), keepdim=True).clamp(min=1e-6)


def _grass(canvas: Canvas) -> Tensor:
    """Return v of upright blades, leaning to one side."""
    across, along = canvas.turned(*canvas.frequencies(), degrees=20)
    blades = (-((along / (1 + 0.3 * across.abs())) ** 2)).exp() / (1 + (across / 14) ** 2)
    return 0.45 + 0.22 * canvas.field(blades) + 0.08 * canvas.field(torch.ones(1), 1)


def _water(canvas: Canvas) -> Tensor:
    """Return v of level waves with bright crests."""
    level, upright = canvas.turned(*canvas.frequencies(), degrees=8)
    period = canvas.knob(1, 4, 7)
    z = canvas.field((-(((upright.abs() - period) / 2) ** 2) - (level / 2.5) ** 2).exp())
    return 0.3 + 0.15 * z + 0.25 * (z - 0.6).clamp(min=0)


def _bricks(canvas: Canvas) -> Tensor:
    """Return v of rows of bricks, each of its own shade, between joints."""
    x, y = canvas.places()
    side, rows = min(canvas.noise.shape[-2:]), canvas.knob(1, 4.5, 6.5)
    y = rows * (y + canvas.knob(2, 0, 1))
    x = rows / 2 * (x + canvas.knob(3, 0, 1)) + 0.5 * y.floor()
    joint = (0.08 * side / rows).clamp(min=1) / side * rows  # at least a pixel, in heights of a brick
    in_joint = (y.remainder(1) < joint) | (2 * x.remainder(1) < joint)
    cells = canvas.noise[:, 1].flatten(1)
    shade = cells.gather(1, (x.floor() * 7 + y.floor() * 31).long().flatten(1) % cells.shape[1]).view_as(in_joint)
    return torch.where(in_joint, 1.0, 0.3 + 0.12 * shade.clamp(-2, 2)) + 0.05 * canvas.noise[:, 0]


def _sand(canvas: Canvas) -> Tensor:
    """Return v of grains on gentle dunes."""
    f = torch.hypot(*canvas.frequencies())
    return 0.55 + 0.18 * canvas.field(torch.ones(1)) + 0.12 * canvas.field((f + 1) ** -2, 1)


def _wood(canvas: Canvas) -> Tensor:
    """Return v of growth rings, cut lengthwise."""
    fx, fy = canvas.frequencies()
    _, y = canvas.turned(*canvas.places(), degrees=10)
    bend = canvas.field((-(fx**2) - (fy / 2) ** 2).exp())
    rings = (2 * math.pi * (canvas.knob(1, 4, 6) * y + 0.45 * bend)).sin()
    return 0.5 + 0.27 * rings + 0.1 * canvas.field((-((fx / 1.5) ** 2)).exp(), 1)


def _clouds(canvas: Canvas) -> Tensor:
    """Return v of clouds in a sky."""
    f = torch.hypot(*canvas.frequencies())
    return (1.8 * canvas.field((f + 1) ** -2)).sigmoid()


# v, dark and light of each texture
TEXTURES: dict[str, tuple[Callable[[Canvas], Tensor], tuple[float, ...], tuple[float, ...]]] = {
    "grass": (_grass, (0.08, 0.22, 0.04), (0.62, 0.78, 0.30)),
    "water": (_water, (0.03, 0.20, 0.32), (0.75, 0.92, 0.95)),
    "bricks": (_bricks, (0.38, 0.12, 0.08), (0.80, 0.74, 0.68)),
    "sand": (_sand, (0.52, 0.42, 0.28), (0.98, 0.90, 0.72)),
    "wood": (_wood, (0.30, 0.17, 0.08), (0.72, 0.50, 0.28)),
    "clouds": (_clouds, (0.30, 0.52, 0.80), (0.97, 0.97, 0.98)),
}


def draw_textures(kind: Tensor, n: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """Return pictures (N, 3, H, W) in [0, 1].

    Args:
        kind: Index into TEXTURES of each (N,).
        n: Number of pictures, N or more, that random numbers are drawn for.
        size: Height and width.
        generator: Drawn from in the same way whatever the kinds are.
    """
    noise, knobs = torch.randn(n, 2, *size, generator=generator), torch.rand(n, KNOBS, 1, 1, generator=generator)
    pictures, textures = torch.empty(len(kind), 3, *size), list(TEXTURES.values())
    for i, index in enumerate(kind.tolist()):  # one by one: the last bit of a Fourier transform depends on the others
        texture, *colors = textures[index]
        canvas, (dark, light) = Canvas(noise[i : i + 1], knobs[i : i + 1]), torch.tensor(colors)[:, :, None, None]
        shift = JITTER * (2 * knobs[i, -3:] - 1)
        pictures[i] = dark + shift + texture(canvas).clamp(0, 1) * (light - dark)  # (2)
    return pictures.clamp_(0, 1)
