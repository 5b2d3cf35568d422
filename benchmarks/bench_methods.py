"""Methods that draw, mask or take the network apart, counted in forward passes F, and against the peers.

python benchmarks/bench_methods.py              # all, some minutes on two cores; nothing else should run
python benchmarks/bench_methods.py biases rise   # some of the parts
"""

import copy
import sys
import warnings

import timm
import torch
from bench_attribution import forward, network, peer_grad_cam
from timing import interleave, row

from interpretable_training.attribution import (
    RISE,
    ExpectedGradCAM,
    ExpectedGradCAMPlusPlus,
    ExtremalPerturbation,
    FullGrad,
    GradCAM,
    GuidedExpectedGradCAM,
    HyperExpectedGradCAM,
    Occlusion,
    PolyCAM,
    TGrad,
    TransformerAttribution,
    cache_baselines,
)


def biases():
    for name in ("resnet18", "resnet50", "vgg16_bn"):
        model, images = network(name), torch.randn(8, 3, 224, 224)
        theirs = copy.deepcopy(model)
        sides = {
            "forward": lambda: forward(model, images),
            "FullGrad": lambda: FullGrad()(model, images, 1),
            "T-Grad": lambda: TGrad()(model, images, 1),
        }
        if name == "resnet18":
            sides["FullGrad of pytorch-grad-cam"] = peer_grad_cam("FullGrad", theirs, "layer4", images)
        seconds = interleave(sides, rounds=5)
        row(f"Gradients and biases, {name}, batch 8", seconds, seconds["forward"], "3.3")


def expected():
    """In passes of one draw: forward, and backward above the layer, in the same chunks."""
    model, images, baselines = network("resnet18"), torch.randn(4, 3, 224, 224), torch.randn(50, 3, 224, 224)
    kept = cache_baselines(model, baselines, "layer4")
    draws = torch.randn(8, 3, 224, 224)  # two draws of four images
    options = {"layer": "layer4", "n": 50}
    sides = {
        "forward": lambda: forward(model, images),
        "two draws": lambda: GradCAM("layer4")(model, draws, 1),
        "kept baselines": lambda: ExpectedGradCAM(baselines=kept, **options)(model, images, 1),
        "fresh baselines": lambda: ExpectedGradCAM(baselines=baselines, **options)(model, images, 1),
        "tangent": lambda: ExpectedGradCAM(baselines=baselines, difference="tangent", **options)(model, images, 1),
        "plus plus": lambda: ExpectedGradCAMPlusPlus(baselines=kept, **options)(model, images, 1),
        "guided": lambda: GuidedExpectedGradCAM(ExpectedGradCAM(baselines=kept, **options))(model, images, 1),
    }
    seconds = interleave(sides, rounds=3)
    draw = seconds["two draws"] / 2
    limit = "kept baselines 1.15 x 50 = 57.5"
    row("Expected Grad-CAM, resnet18, batch 4, 50 draws, in draws of the batch", seconds, draw, limit)
    row("the same in forward passes", seconds, seconds["forward"], "")


def hyper():
    """Fifty draws at each scale of the network, and ten for each block of the image."""
    model, images, baselines = network("resnet18"), torch.randn(1, 3, 224, 224), torch.randn(50, 3, 224, 224)
    method = HyperExpectedGradCAM(ExpectedGradCAM("layer4", baselines=baselines, n=50))
    stages = method.stages(model, images, 1)
    blocks = sum(-(-224 // a) * -(-224 // b) for a, b in stages.blocks[0])
    batch = torch.randn(8, 3, 224, 224)
    sides = {"forward of 8": lambda: forward(model, batch), "ours": lambda: method(model, images, 1)}
    seconds = interleave(sides, rounds=3)
    draws = 50 * len(stages.layers) + 10 * blocks
    row(f"Hyper Expected Grad-CAM, resnet18, one image, {draws} draws", seconds, seconds["forward of 8"] / 8)


def rise():
    for size in (1, 8):
        model, images = network("resnet18"), torch.randn(size, 3, 224, 224)
        batch, n = torch.randn(8, 3, 224, 224), 80
        sides = {"forward of 8": lambda: forward(model, batch), "ours": lambda: RISE(n=n)(model, images, 1)}
        seconds = interleave(sides, rounds=3)
        limit = f"{1.1 * n * size:.0f}"
        row(f"RISE, resnet18, batch {size}, {n} masks", seconds, seconds["forward of 8"] / 8, limit)


def occlusion():
    from captum.attr import Occlusion as Peer

    model, images = network("resnet18"), torch.randn(1, 3, 224, 224)
    theirs, batch = Peer(copy.deepcopy(model)), torch.randn(8, 3, 224, 224)
    shapes = {"sliding_window_shapes": (3, 32, 32), "strides": (3, 24, 24)}
    sides = {
        "forward of 8": lambda: forward(model, batch),
        "ours": lambda: Occlusion(32, 24)(model, images, 1),
        "captum": lambda: theirs.attribute(images, target=1, **shapes),
        "captum, 8 at once": lambda: theirs.attribute(images, target=1, perturbations_per_eval=8, **shapes),
    }
    seconds = interleave(sides, rounds=3)
    row("Occlusion, resnet18, one image, 81 patches", seconds, seconds["forward of 8"] / 8, "captum")


def poly():
    model, images = network("resnet18"), torch.randn(1, 3, 224, 224)
    batch = torch.randn(8, 3, 224, 224)
    sides = {
        "forward of 8": lambda: forward(model, batch),
        "ours": lambda: PolyCAM("+", layers=["relu", "layer1"])(model, images, 1),
    }
    seconds = interleave(sides, rounds=3)
    row("PCAM+, resnet18, one image, 128 channels", seconds, seconds["forward of 8"] / 8, "")


def transformer():
    torch.manual_seed(0)
    model = timm.create_model("vit_small_patch16_224", pretrained=False).eval()
    images = torch.randn(8, 3, 224, 224)
    sides = {
        "forward": lambda: forward(model, images),
        "gradients": lambda: TransformerAttribution(relevance="attn")(model, images, 1),
        "relevance": lambda: TransformerAttribution()(model, images, 1),
    }
    seconds = interleave(sides, rounds=3)
    row("Transformer attribution, vit_small_patch16_224, batch 8", seconds, seconds["forward"], "")


def extremal():
    model, images, steps = network("resnet18"), torch.randn(4, 3, 224, 224), 4
    sides = {
        "forward": lambda: forward(model, images),
        "all": lambda: ExtremalPerturbation(steps=steps)(model, images, 1),
        "none": lambda: ExtremalPerturbation(steps=0)(model, images, 1),
    }
    seconds = interleave(sides, rounds=3)
    one = {"iteration": (seconds["all"] - seconds["none"]) / steps}
    row("Extremal perturbation, resnet18, batch 4, one iteration", one, seconds["forward"], "")


PARTS = {part.__name__: part for part in (biases, expected, hyper, rise, occlusion, poly, transformer, extremal)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 224 x 224\n")
    print("| what | forward passes F of the same images, unless said otherwise | limit |")
    print("|---|---|---|")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
