"""Count the passes of a large evaluation, and give hours and disk: 50 000 images, 12 methods, 8 metrics.

python benchmarks/cost_of_evaluation.py --images-per-second 5088   # that the device runs forward, without gradient

Passes are counted on an image of a ResNet-50, whose layers have as many channels at 64 x 64 as at 224 x 224. A pass
back to the images counts as two forward passes; one that ends at a late layer as nothing.
"""

import argparse
import ctypes
import tempfile
from pathlib import Path

import torch
import torchvision
from timing import interleave

from interpretable_training import attribution as a
from interpretable_training import metrics as m
from interpretable_training.attribution.core import batching
from interpretable_training.metrics import evaluate

LAYER = "network.layer4"
METHODS = {
    "gradcam": a.GradCAM(LAYER),
    "gradcamplusplus": a.GradCAMPlusPlus(LAYER),
    "xgradcam": a.XGradCAM(LAYER),
    "layercam": a.LayerCAM(LAYER),
    "hirescam": a.HiResCAM(LAYER),
    "eigencam": a.EigenCAM(LAYER),
    "opticam": a.OptiCAM(LAYER),
    "gradient": a.Gradient(),
    "smoothgrad": a.SmoothGrad(n=20),
    "integratedgradients": a.IntegratedGradients(),
    "rise": a.RISE(n=1000),
    "scorecam": a.ScoreCAM(LAYER),
}
METRICS = {
    "average_drop": m.AverageDrop(),
    "average_increase": m.AverageIncrease(),
    "average_gain": m.AverageGain(),
    "insertion": m.Insertion(steps=28),
    "deletion": m.Deletion(steps=28),
    "coherency": m.Coherency(),
    "complexity": m.Complexity(),
    "adcc": m.ADCC(),
}


class Count(torch.nn.Module):
    """A network with counters of images that it runs, forward and back to its input."""

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.forwards, self.backwards = ctypes.c_long(0), ctypes.c_long(0)  # which no method puts back

    def forward(self, images):
        self.forwards.value += len(images)
        if images.requires_grad:
            images = images.clone()
            images.register_hook(self.count)
        return self.network(images)

    def count(self, gradient):
        self.backwards.value += len(gradient)

    def cost(self, run):
        """Return forward passes, and two for each backward pass."""
        self.forwards.value = self.backwards.value = 0
        run()
        return self.forwards.value + 2 * self.backwards.value


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--images-per-second", type=float, help="of the forward pass; by default measured here")
    parser.add_argument("--images", type=int, default=50_000)
    options = parser.parse_args()
    batching.PIXELS["cpu"] = 8 * 64 * 64  # eight small images a pass, as many as large ones
    torch.manual_seed(0)
    net = torchvision.models.resnet50(weights=None).eval()
    counted, image, target = Count(net), torch.randn(1, 3, 64, 64), torch.tensor([1])
    costs = {
        name: counted.cost(lambda method=method: method(counted, image, target)) for name, method in METHODS.items()
    }
    print("| method | passes of a map |\n|---|---|")
    for name, cost in costs.items():
        print(f"| {name} | {cost} |")
    with tempfile.TemporaryDirectory() as folder:
        table = {"cache": folder, "controls": False, "progress": False, "resamples": 2}
        whole = counted.cost(lambda: evaluate(counted, METHODS, METRICS, (image, target), **table))
        part = next(Path(folder).glob("part-*.pt")).stat().st_size
    rescoring = whole - sum(costs.values())
    print(
        f"\nAll 12 methods and 8 metrics: {whole} passes an image, of them {rescoring} for the metrics "
        f"(ADCC and Coherency explain once more)."
    )
    speed = options.images_per_second or measured(net)
    hours = whole * options.images / speed / 3600
    print(
        f"{options.images} images: {whole * options.images:.3g} passes, {hours:.0f} hours at {speed:.0f} images per "
        f"second; n devices take an n-th. The cache takes at most {part * options.images / 2**30:.1f} GiB."
    )


def measured(net):
    images = torch.randn(8, 3, 224, 224)

    def forward():
        with torch.no_grad():
            net(images)

    return 8 / interleave({"forward": forward}, rounds=5)["forward"]


if __name__ == "__main__":
    main()
