"""Metrics against the forward passes that they need, and against the peers.

python benchmarks/bench_metrics.py                # all; an hour on two cores, on which nothing else should run
python benchmarks/bench_metrics.py curves table   # some of the parts
"""

import copy
import ctypes
import sys
import time
import warnings
from functools import partial

import numpy as np
import torch
import torchvision
from timing import interleave, peak_megabytes, row
from torch import nn

from interpretable_training.attribution import (
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    LayerCAM,
    XGradCAM,
    normalize,
)
from interpretable_training.metrics import (
    AverageDrop,
    AverageDropInDeletion,
    AverageGain,
    AverageIncrease,
    Coherency,
    Complexity,
    Deletion,
    Insertion,
    InsertionDeletion,
    evaluate,
)

LAYER = "layer4"
# torchcam's metrics explain the probability, and normalize before they upsample.
METHODS = {
    "gradcam": GradCAM(LAYER, score="prob", normalize="before"),
    "gradcamplusplus": GradCAMPlusPlus(LAYER, score="prob", normalize="before"),
    "xgradcam": XGradCAM(LAYER, score="prob", normalize="before"),
    "layercam": LayerCAM(LAYER, score="prob", normalize="before"),
    "hirescam": HiResCAM(LAYER, score="prob", normalize="before"),
}
THEIRS = {"gradcam": "GradCAM", "gradcamplusplus": "GradCAMpp", "xgradcam": "XGradCAM", "layercam": "LayerCAM"}
CURVES = {"insertion": Insertion(20, "torchcam"), "deletion": Deletion(20, "torchcam")}
SEVEN = {
    "average_drop": AverageDrop("torchcam", score="prob"),
    "average_increase": AverageIncrease(preset="torchcam", score="prob"),
    "average_gain": AverageGain(preset="torchcam", score="prob"),
    **CURVES,
    "coherency": Coherency(),
    "complexity": Complexity(),
}
SOFTMAX = partial(torch.softmax, dim=-1)
quiet = partial(evaluate, target="pred", controls=False, progress=False, resamples=200)


def network():
    torch.manual_seed(0)
    return torchvision.models.resnet18(weights=None).eval()


def batch(size, side=224):
    return torch.randn(size, 3, side, side, generator=torch.Generator().manual_seed(1))


def forwards(model, images):
    """The forward pass of 40 images in batches of 8, which suit the machine best."""

    def run():
        with torch.no_grad():
            for _ in range(5):
                model(images)

    return run


def counted(what, metrics, needed):
    model, images = network(), batch(4)
    seen = ctypes.c_long(0)  # a Python object would be put back, as all that hooks of a user change

    def count(_, args):
        seen.value += len(args[0])

    model.register_forward_pre_hook(count)
    quiet(model, METHODS, metrics, (images, torch.zeros(4)))
    explained = 1  # all five methods share one pass
    print(f"| {what}, images scored per image and five methods | {seen.value / 4 - explained:.0f} | {needed} |")


def curves():
    """Insertion and deletion of one method."""
    from quantus import PixelFlipping
    from torchcam.methods import GradCAM as TheirGradCAM
    from torchcam.metrics import DeletionInsertionMetric

    model, images = network(), batch(4)
    theirs, third = copy.deepcopy(model), copy.deepcopy(model)
    maps = normalize(GradCAM(LAYER)(model, images))
    target = model(images).argmax(1)
    flipping = PixelFlipping(features_in_step=224 * 224 * 3 // 42, disable_warnings=True, perturb_baseline="black")

    def torchcam():
        with TheirGradCAM(theirs, LAYER) as extractor:
            metric = DeletionInsertionMetric(extractor, SOFTMAX, steps=20)
            metric.update(images)

    def quantus():
        flipping(third, images.numpy(), target.numpy(), a_batch=maps[:, None].numpy(), device="cpu")

    def ours(metric):
        return lambda: metric.measure(model=model, images=images, saliency=maps, target=target)

    both, one = InsertionDeletion(20, "torchcam"), Deletion(42, "torchcam")
    sides = {"40 F": forwards(model, batch(8)), "ours": ours(both), "torchcam": torchcam}
    sides |= {"ours, 42 steps, one curve": ours(one), "Quantus": quantus}
    seconds = interleave(sides, rounds=3)
    per_image = seconds.pop("40 F") / 40 * len(images)
    row("insertion and deletion, 20 steps, 4 images", seconds, per_image, "41 F; one curve of 42: 43 F")


def confidence():
    """Forward passes of the metrics of confidence."""
    four = [AverageDrop(), AverageIncrease(), AverageGain(), AverageDropInDeletion()]
    counted("AD, AI, AG, ADD", four, "1 + 5 x 2")
    counted("insertion and deletion, 20 steps", CURVES, "1 + 1 + 5 x 38")


def table():
    """The whole table against what the peers offer for it, and Quantus for the curves."""
    size = int(next((word for word in sys.argv[1:] if word.isdigit()), 8))
    model, images = network(), batch(size)
    theirs = copy.deepcopy(model)
    found = {}

    def ours():
        found["ours"] = quiet(model, METHODS, SEVEN, [(part, torch.zeros(len(part))) for part in images.split(8)])

    def peers():
        found["peers"] = {name: of_peers(theirs, name, images) for name in METHODS}

    seconds = interleave({"40 F": forwards(model, images[:8]), "ours": ours, "peers": peers}, 2, False)
    row(f"five CAMs x seven metrics, {size} images", seconds, seconds.pop("40 F") / 40 * size, "203 F")
    for name in METHODS:
        cells = [
            f"{metric} {found['ours'][name, metric].mean:.4f} / {found['peers'][name][metric]:.4f}" for metric in SEVEN
        ]
        print(f"  {name}: ours / peers: {', '.join(cells)}")


def of_peers(model, name, images):
    """The seven numbers of a method, each from the peer that has it; the rest in the shortest way with the peer's maps.

    torchcam has drop, increase, insertion and deletion; no peer has gain, coherency and complexity. The methods are
    torchcam's too, whose Grad-CAM is the fastest of the peers.
    """
    from torchcam.metrics import ClassificationMetric, DeletionInsertionMetric

    with extractor_of(model, name) as extractor:
        confidence = ClassificationMetric(extractor, SOFTMAX)
        insertion = DeletionInsertionMetric(extractor, SOFTMAX, steps=20)
        gain, coherency, complexity = [], [], []
        for part in images.split(8):
            confidence.update(part)
            insertion.update(part)
            S = upsampled(extractor, model, part)
            with torch.no_grad(), extractor._hooks_off():
                p, c = model(part).softmax(1).max(1)
                o = model(part * S[:, None]).softmax(1).gather(1, c[:, None])[:, 0]
            again = upsampled(extractor, model, part * S[:, None], c)
            gain.append((o - p).relu() / (1 - p))
            pairs = zip(S.flatten(1), again.flatten(1))
            coherency += [(torch.corrcoef(torch.stack(pair))[0, 1].nan_to_num() + 1) / 2 for pair in pairs]
            complexity.append(S.flatten(1).mean(1))
    return {
        "average_drop": 100 * confidence.summary()["avg_drop"],
        "average_increase": 100 * confidence.summary()["conf_increase"],
        "average_gain": 100 * float(torch.cat(gain).mean()),
        **{key: 100 * insertion.summary()[f"{key}_auc"] for key in CURVES},
        "coherency": float(torch.stack(coherency).mean()),
        "complexity": float(torch.cat(complexity).mean()),
    }


def upsampled(extractor, model, images, target=None):
    """Maps in [0, 1] at the images' size."""
    scores = model(images).softmax(1)
    cam = extractor.fuse_cams(extractor((scores.argmax(1) if target is None else target).tolist(), scores))
    return normalize(nn.functional.interpolate(cam[:, None], images.shape[2:], mode="bilinear")[:, 0]).detach()


def extractor_of(model, name):
    """torchcam's extractor; it has no HiRes-CAM, whose weights are the gradients themselves."""
    import torchcam.methods
    from torchcam.methods import GradCAM as TheirGradCAM

    if name in THEIRS:
        return getattr(torchcam.methods, THEIRS[name])(model, LAYER)

    class HiRes(TheirGradCAM):
        def _get_weights(self, class_idx, scores, **kwargs):
            self._backprop(scores, class_idx, **kwargs)
            return list(self.hook_g)

    return HiRes(model, LAYER)


def linear():
    """Time of the whole table by the number of images."""
    model = network()
    for size in (16, 64, 256):
        images = batch(size, 64)
        data = [(part, torch.zeros(len(part))) for part in images.split(16)]
        start = time.perf_counter()
        quiet(model, METHODS, SEVEN, data)
        print(f"| whole table, 64 x 64, {size} images | {(time.perf_counter() - start) / size:.3f} s per image |")


def memory():
    """Peak memory of a curve by its number of steps."""
    code = (
        "import torch, torchvision\nfrom interpretable_training.metrics import Deletion\n"
        "net = torchvision.models.resnet18().eval()\nx = torch.randn(4, 3, 224, 224)\nS = torch.rand(4, 224, 224)\n"
        "def run():\n    Deletion({}, chunk_size=8).measure(model=net, images=x, saliency=S, target=1)\n"
    )
    found = {steps: peak_megabytes(code.format(steps)) for steps in (8, 28, 224)}
    print(f"| deletion of 4 images, chunk_size=8, peak megabytes by steps | {found} |")


PARTS = {part.__name__: part for part in (confidence, curves, table, linear, memory)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    np.trapz = getattr(np, "trapz", np.trapezoid)  # Quantus 0.6 calls what numpy 2.4 renamed
    chosen = [word for word in sys.argv[1:] if not word.isdigit()]
    for name in chosen or PARTS:
        PARTS[name]()
