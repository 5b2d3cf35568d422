"""Attribution against its limit, counted in forward passes F of the same batch, and against the peers.

python benchmarks/bench_attribution.py             # all, some minutes on two cores; nothing else should run
python benchmarks/bench_attribution.py gradcam ig   # some of the parts
"""

import contextlib
import copy
import io
import sys
import warnings

import torch
import torchvision
from timing import interleave, peak_megabytes, row

from interpretable_training.attribution import (
    AblationCAM,
    EigenCAM,
    GradCAM,
    GradCAMPlusPlus,
    HiResCAM,
    IntegratedGradients,
    LayerCAM,
    OptiCAM,
    ScoreCAM,
    SmoothGrad,
    XGradCAM,
    explain,
)

SIX = [GradCAM("layer4"), GradCAMPlusPlus("layer4"), XGradCAM("layer4"), HiResCAM("layer4"), LayerCAM("layer4")]
SIX.append(EigenCAM("layer4"))


def network(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def forward(model, images):
    with torch.no_grad():
        return model(images)


def peer_grad_cam(name, model, layer, images, **attributes):
    import pytorch_grad_cam
    from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

    cam = getattr(pytorch_grad_cam, name)(model, [model.get_submodule(layer)])
    vars(cam).update(attributes)

    def run():
        with contextlib.redirect_stderr(io.StringIO()):  # its progress bars
            cam(images, [ClassifierOutputTarget(1)] * len(images))

    return run


def peer_torchcam(name, model, layer, images):
    import torchcam.methods

    def run():
        with getattr(torchcam.methods, name)(model, layer) as extractor:
            extractor([1] * len(images), model(images))

    return run


def gradcam():
    from captum.attr import LayerGradCam

    for name in ("resnet18", "resnet50"):
        for size in (8, 32):
            model, images = network(name), torch.randn(size, 3, 224, 224)
            theirs, other, third = (copy.deepcopy(model) for _ in range(3))
            captum = LayerGradCam(theirs, theirs.layer4)
            sides = {
                "forward": lambda: forward(model, images),
                "ours": lambda: GradCAM("layer4")(model, images, 1),
                "ours, auto": lambda: GradCAM()(model, images, 1),
                "six at once": lambda: explain(SIX, model, images, 1),
                "captum": lambda: captum.attribute(images, target=1),
                "torchcam": peer_torchcam("GradCAM", other, "layer4", images),
                "pytorch-grad-cam": peer_grad_cam("GradCAM", third, "layer4", images),
            }
            seconds = interleave(sides, rounds=7 if size == 8 else 5)
            row(f"Grad-CAM, {name}, batch {size}", seconds, seconds["forward"], "1.10, six at once 1.30")


MEMORY = """
import torch, torchvision
from interpretable_training.attribution import GradCAM
model = torchvision.models.get_model({name!r}).eval()
images = torch.randn(32, 3, 224, 224)
def run():
    if {plain}:
        with torch.no_grad():
            model(images)
    else:
        GradCAM("layer4")(model, images, 1)
"""


def memory():
    for name in ("resnet18", "resnet50"):
        peaks = {
            side: peak_megabytes(MEMORY.format(name=name, plain=side == "forward")) for side in ("forward", "ours")
        }
        row(f"Grad-CAM, {name}, batch 32, peak memory", peaks, peaks["forward"], "1.25")


def ablation():
    model, images = network("resnet18"), torch.randn(1, 3, 224, 224)
    theirs = copy.deepcopy(model)
    sides = {
        "forward": lambda: forward(model, images),
        "ours": lambda: AblationCAM("layer4")(model, images, 1),
        "pytorch-grad-cam": peer_grad_cam("AblationCAM", theirs, "layer4", images),
    }
    seconds = interleave(sides, rounds=2)
    row("Ablation-CAM, resnet18, pooling and linear head", seconds, seconds["forward"], "1/100 of pytorch-grad-cam")
    model, images = network("vgg16"), torch.randn(1, 3, 96, 96)
    theirs = copy.deepcopy(model)
    sides = {
        "forward": lambda: forward(model, images),
        "ours": lambda: AblationCAM("features.29", chunk_size=512)(model, images, 1),
        "pytorch-grad-cam": peer_grad_cam("AblationCAM", theirs, "features.29", images),
    }
    seconds = interleave(sides, rounds=1)
    row("Ablation-CAM, vgg16 at 96 x 96, 512 channels above the layer", seconds, seconds["forward"], "")


def score():
    images = torch.randn(1, 3, 224, 224)
    for dead in (0, 256):
        model = network("resnet18")
        model.layer4 = torch.nn.Sequential(model.layer4, Deaden(dead))
        theirs, other = copy.deepcopy(model), copy.deepcopy(model)
        batch = images.expand(8, -1, -1, -1)
        sides = {
            "forward of 8": lambda: forward(model, batch),
            "ours": lambda: ScoreCAM("layer4")(model, images, 1),
            "torchcam": peer_torchcam("ScoreCAM", other, "layer4", images),
            "pytorch-grad-cam": peer_grad_cam("ScoreCAM", theirs, "layer4", images),
        }
        seconds = interleave(sides, rounds=3)
        live = 512 - dead
        row(f"Score-CAM, resnet18, {live} live channels", seconds, seconds["forward of 8"] / 8, f"{1.1 * live:.0f}")


class Deaden(torch.nn.Module):
    """Sets the first channels to zero, as dead units are."""

    def __init__(self, channels):
        super().__init__()
        self.channels = channels

    def forward(self, A):
        return torch.cat([torch.zeros_like(A[:, : self.channels]), A[:, self.channels :]], 1)


def opti():
    for name, layer in (("resnet18", "layer4"), ("resnet50", "layer4"), ("vgg16", "features.29")):
        model, images = network(name), torch.randn(8, 3, 224, 224)
        steps = 4
        sides = {
            "forward": lambda: forward(model, images),
            "iteration": lambda: OptiCAM(layer, steps=steps, tolerance=0)(model, images, 1),
            "none": lambda: OptiCAM(layer, steps=0)(model, images, 1),
        }
        seconds = interleave(sides, rounds=3)
        one = {"iteration": (seconds["iteration"] - seconds["none"]) / steps}
        row(f"Opti-CAM, {name}, batch 8, one iteration", one, seconds["forward"], "3.0")


def ig():
    import captum.attr

    model, images = network("resnet18"), torch.randn(4, 3, 224, 224)
    theirs = copy.deepcopy(model)
    target = torch.tensor([1] * 4)
    integrated = captum.attr.IntegratedGradients(theirs)
    smooth = captum.attr.NoiseTunnel(captum.attr.Saliency(theirs))
    saliency = copy.deepcopy(images).requires_grad_()
    sides = {
        "forward": lambda: forward(model, images),
        "ours": lambda: IntegratedGradients(steps=20)(model, images, 1),
        "captum": lambda: integrated.attribute(images, target=target, n_steps=20),
        "captum, batches of 8": lambda: integrated.attribute(images, target=target, n_steps=20, internal_batch_size=8),
        "captum, batches of 32": lambda: integrated.attribute(
            images, target=target, n_steps=20, internal_batch_size=32
        ),
    }
    seconds = interleave(sides, rounds=3)
    row("Integrated gradients, resnet18, batch 4, 20 steps", seconds, seconds["forward"], "captum")
    sides = {
        "forward": lambda: forward(model, images),
        "ours": lambda: SmoothGrad(n=20)(model, images, 1),
        "captum": lambda: smooth.attribute(saliency, target=target, nt_samples=20, stdevs=0.5),
    }
    seconds = interleave(sides, rounds=3)
    row("SmoothGrad, resnet18, batch 4, 20 samples", seconds, seconds["forward"], "captum")


PARTS = {part.__name__: part for part in (gradcam, memory, ablation, score, opti, ig)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 224 x 224 unless said otherwise\n")
    print("| what | forward passes F of the same batch (peak memory: as a share of the forward's) | limit |")
    print("|---|---|---|")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
