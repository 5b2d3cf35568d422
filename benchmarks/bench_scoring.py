"""Passes without graph: as the network runs them, channels last, and with batch norm folded and weights packed.

python benchmarks/bench_scoring.py                     # all families, 8 images of 224 x 224; some minutes
python benchmarks/bench_scoring.py resnet18 resnet50   # some of them
"""

import sys

import torch
import torchvision
from timing import interleave

from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.attribution.core.scoring import folding_of

NETWORKS = ["resnet18", "resnet50", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0", "densenet121"]
NETWORKS += ["regnet_y_400mf", "vgg11_bn", "googlenet", "convnext_tiny", "shufflenet_v2_x0_5", "vit_b_32"]


def compare(name):
    torch.manual_seed(0)
    net = torchvision.models.get_model(name, weights=None).eval()
    images = torch.randn(8, 3, 224, 224)
    last = images.contiguous(memory_format=torch.channels_last)
    with prepare_model(net) as prepared, torch.no_grad():
        for _ in range(20):  # layers are folded once that pays
            prepared.run_fast(images)
        change = (prepared.run_fast(images).softmax(1) - prepared.run(images).softmax(1)).abs().max()
        sides = {
            "plain": lambda: prepared.run(images),
            "last": lambda: prepared.run(last),
            "fast": lambda: prepared.run_fast(images),
        }
        seconds = interleave(sides, rounds=7)
    last, fast = seconds["last"] / seconds["plain"], seconds["fast"] / seconds["plain"]
    print(
        f"| {name} | {last:.2f} | {fast:.2f} | {float(change):.0e} | {folding_of(net) or 'runs as it is'} |", flush=True
    )


if __name__ == "__main__":
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| network | channels last | fast passes | largest change of a probability | batch norms |")
    print("|---|---|---|---|---|")
    for name in sys.argv[1:] or NETWORKS:
        compare(name)
