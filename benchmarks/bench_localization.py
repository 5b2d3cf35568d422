"""Localization metrics: components and boxes against scipy, pointing and energy against reading the maps once.

python benchmarks/bench_localization.py             # all; minutes on two cores, on which nothing else should run
python benchmarks/bench_localization.py boxes       # one of the parts
"""

import os
import sys
import time

import torch
import torch.nn.functional as F
from timing import interleave, row

from interpretable_training.attribution.core.components import largest_boxes
from interpretable_training.metrics import BoxAccuracy, EnergyPointingGame, PixelF1, PointingGame

N, SIDE = 256, 224


def maps():
    """Maps like those of CAMs, of gradients, and noise, whose components are as tangled as they can be."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(N, 1, 7, 7, generator=generator)
    noise = torch.rand(N, SIDE, SIDE, generator=generator)
    smooth = F.avg_pool2d(torch.randn(N, 1, SIDE + 2, SIDE + 2, generator=generator).abs(), 3, 1)[:, 0]
    return {"CAM": F.interpolate(coarse, (SIDE, SIDE), mode="bilinear")[:, 0], "gradient": smooth, "noise": noise}


def above_mean(S):
    return S.mean((1, 2), keepdim=True) < S


def boxes():
    """The box around the largest component of each map above its mean."""
    from scipy import ndimage

    def scipy(S):
        for M in above_mean(S).numpy():
            labels, count = ndimage.label(M)
            if count:
                largest = torch.from_numpy(labels).flatten().bincount()[1:].argmax()
                ndimage.find_objects(labels)[int(largest)]

    for name, S in maps().items():
        sides = {"ours": lambda S=S: largest_boxes(above_mean(S)), "scipy, one by one": lambda S=S: scipy(S)}
        seconds = interleave(sides, 3)
        start = time.process_time()
        sides["ours"]()
        cpu = time.process_time() - start
        row(f"{N} {name} maps of {SIDE} x {SIDE}, seconds", seconds, 1, f"ours: {cpu:.2f} s of all processors")


def energy():
    """Metrics of pixels, in units of summing up all maps."""
    S = maps()["noise"]
    mask = torch.zeros(S.shape, dtype=torch.bool)
    mask[:, 50:150, 50:150] = True
    metrics = {"pointing": PointingGame(), "energy": EnergyPointingGame(), "F1": PixelF1()}
    sides = {"sum": lambda: S.sum((1, 2))}
    sides |= {name: lambda m=m: m.measure(saliency=S, mask=mask) for name, m in metrics.items()}
    seconds = interleave(sides, 5)
    gigabytes = S.numel() * 4 / 2**30
    rates = ", ".join(f"{name} {gigabytes / value:.1f} GiB/s" for name, value in seconds.items())
    row(f"{N} maps of {SIDE} x {SIDE}, times the sum of all", seconds, seconds["sum"], rates)


def thresholds():
    """Box accuracy, whose thresholds make each map a hundred masks."""
    S = maps()["CAM"][:8]
    boxes = torch.tensor([[[50.0, 50.0, 150.0, 150.0]]]).expand(8, 1, 4)
    sides = {
        name: lambda m=m: m.measure(saliency=S, boxes=boxes)
        for name, m in {"100 steps": BoxAccuracy(), "maxboxaccv2": BoxAccuracy("maxboxaccv2")}.items()
    }
    row(f"box accuracy of a CAM map of {SIDE} x {SIDE}, milliseconds", interleave(sides, 3), 8e-3)


PARTS = {part.__name__: part for part in (boxes, energy, thresholds)}

if __name__ == "__main__":
    print(f"{torch.get_num_threads()} threads, load of the machine before: {os.getloadavg()[0]:.1f}")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
