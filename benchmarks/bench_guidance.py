"""Explanation guidance against its limits, counted in plain training steps of the same network and batch.

python benchmarks/bench_guidance.py             # some minutes on two cores; nothing else should run
python benchmarks/bench_guidance.py step memory # some of the parts
"""

import sys
import warnings

import torch
import torch.nn.functional as F
from timing import interleave, peak_megabytes, row

from interpretable_training.attribution import GradCAM, Gradient
from interpretable_training.models import build_network
from interpretable_training.regularization import GuidanceLoss

MODES = {
    "energy": GuidanceLoss("energy"),
    "energy at layer3": GuidanceLoss("energy", method=GradCAM(layer="layer3")),
    "energy at layer2": GuidanceLoss("energy", method=GradCAM(layer="layer2")),
    "input_gradient": GuidanceLoss("input_gradient"),
    "input_gradient, share=0.25": GuidanceLoss("input_gradient", share=0.25),
    "energy of the gradient": GuidanceLoss("energy", method=Gradient("l2")),
}
LIMITS = "energy 1.5, input_gradient 2.5, share=0.25 1.75"


def batch(size=32, side=32):
    torch.manual_seed(0)
    images, target = torch.randn(size, 3, side, side), torch.randint(0, 100, (size,))
    region = torch.zeros(size, side, side, dtype=torch.bool)
    region[:, side // 4 : 3 * side // 4, side // 4 : 3 * side // 4] = True
    return images, target, region


def sides(name, images, target, region):
    net = build_network(name, 100)

    def plain():
        net.zero_grad()
        F.cross_entropy(net(images), target).backward()

    def guided(guidance):
        net.zero_grad()
        guidance(net, images, target, region)[0].backward()

    return {"plain": plain, **{mode: lambda guidance=guidance: guided(guidance) for mode, guidance in MODES.items()}}


def step():
    seconds = interleave(sides("cifar_resnet18", *batch()), rounds=5)
    row("cifar_resnet18, batch 32", seconds, seconds["plain"], LIMITS)


MEMORY = """
import bench_guidance as bench
run = bench.sides("cifar_resnet18", *bench.batch())[{side!r}]
"""


def memory():
    peaks = {side: peak_megabytes(MEMORY.format(side=side)) for side in ("plain", "energy", "input_gradient")}
    row("cifar_resnet18, batch 32, peak memory", peaks, peaks["plain"], f"plain: {peaks['plain']:.0f} MB")


PARTS = {part.__name__: part for part in (step, memory)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | plain training steps of the same network and batch | limit |")
    print("|---|---|---|")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
