"""Guided-gradient regularization against its limits, counted in plain training steps of the same network and batch.

python benchmarks/bench_regularization.py              # all, some minutes on two cores; nothing else should run
python benchmarks/bench_regularization.py step memory  # some of the parts
"""

import copy
import sys
import time
import warnings
from contextlib import nullcontext
from dataclasses import replace
from itertools import islice

import torch
import torch.nn.functional as F
from timing import interleave, peak_megabytes, row
from torch import nn

from interpretable_training.data import ShapesDataModule
from interpretable_training.models import build_network
from interpretable_training.regularization import GuidedGradientRegularizer, cosine
from interpretable_training.regularization import gradients as passes

EXACT = GuidedGradientRegularizer()
MODES = {
    "exact": EXACT,
    "every_n_steps=4": replace(EXACT, every_n_steps=4),
    "fraction=0.25": replace(EXACT, fraction=0.25),
    "at layer2": replace(EXACT, at="layer2"),
    "at layer3": replace(EXACT, at="layer3"),
}
LIMITS = "exact 3.0 and naive / 1.15, every_n_steps=4 1.55, fraction=0.25 1.75"


class GuidedReLU(nn.Module):
    """What libraries put in the place of registered ReLUs."""

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(ctx, z):
            ctx.save_for_backward(z)
            return z.clamp(min=0)

        @staticmethod
        def backward(ctx, g):
            return g.clamp(min=0) * (ctx.saved_tensors[0] > 0)

    def forward(self, z):
        return self.Function.apply(z)


def twin(net):
    """A copy with the same parameters whose registered ReLUs are guided."""
    other = copy.deepcopy(net)
    for module in [*other.modules()]:
        for name, child in module.named_children():
            if isinstance(child, (nn.ReLU, nn.ReLU6)):
                setattr(module, name, GuidedReLU())
    for (name, _), p in zip(copy.deepcopy([*other.named_parameters()]), net.parameters()):
        owner, _, leaf = name.rpartition(".")
        setattr(other.get_submodule(owner), leaf, p)
    return other


def batch(size, side, device="cpu"):
    torch.manual_seed(0)
    return torch.randn(size, 3, side, side, device=device), torch.randint(0, 100, (size,), device=device)


def plain(net, images, target):
    net.zero_grad()
    F.cross_entropy(net(images), target).backward()


def naive(net, guided, images, target):
    """Two networks, two forward passes, as the thesis describes its own version."""
    net.zero_grad()
    x = images.clone().requires_grad_()
    loss = F.cross_entropy(net(x), target)
    d = torch.autograd.grad(loss, x, create_graph=True)[0]
    d2 = torch.autograd.grad(F.cross_entropy(guided(x), target), x)[0]
    (loss + EXACT.weight * cosine(d, d2).mean()).backward()


def regularized(net, regularizer, images, target, step=0):
    net.zero_grad()
    regularizer(net, images, target, step=step)[0].backward()


def hooks_only(net, images, target):
    """One forward pass, and the second derivatives of torch."""
    quick = passes.Quick
    passes.Quick = Idle
    try:
        regularized(net, EXACT, images, target)
    finally:
        passes.Quick = quick


class Idle(passes.Quick):
    """Computes nothing itself."""

    def __torch_function__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


def sides(name, images, target, device="cpu"):
    net = build_network(name, 100).to(device)
    guided = twin(net)
    layers = name == "cifar_resnet18"
    found = {"plain": lambda: plain(net, images, target), "naive": lambda: naive(net, guided, images, target)}
    found["hooks only"] = lambda: hooks_only(net, images, target)
    for mode, regularizer in MODES.items():
        if layers or not mode.startswith("at"):
            found[mode] = lambda regularizer=regularizer: regularized(net, regularizer, images, target)
    return found


def step():
    for name, size, side in (("cifar_resnet18", 32, 32), ("cifar_mobilenetv2", 32, 32), ("resnet50", 16, 96)):
        images, target = batch(size, side)
        seconds = interleave(sides(name, images, target), rounds=5)
        seconds["every_n_steps=4"] = (seconds["every_n_steps=4"] + 3 * seconds["plain"]) / 4  # one step in four
        row(
            f"{name}, {size} images of {side} x {side}",
            seconds,
            seconds["plain"],
            LIMITS if name == "cifar_resnet18" else "",
        )


def where():
    """The parts of an exact step, in forward passes."""
    images, target = batch(32, 32)
    net = build_network("cifar_resnet18", 100)
    times = {"forward": [], "guided gradient": [], "gradient with graph": [], "backward": []}
    for turn in range(6):
        net.zero_grad()
        marks = [time.perf_counter()]
        with passes.record_forward(net) as run:
            loss = F.cross_entropy(net(run.leaf(images)), target)
        marks.append(time.perf_counter())
        d2 = run.gradient(loss, guided=True)
        marks.append(time.perf_counter())
        d = run.gradient(loss, guided=False, create_graph=True)
        marks.append(time.perf_counter())
        (loss + EXACT.weight * cosine(d, d2).mean()).backward()
        marks.append(time.perf_counter())
        for i, part in enumerate(times if turn else ()):
            times[part].append(marks[i + 1] - marks[i])
    medians = {part: sorted(values)[len(values) // 2] for part, values in times.items()}
    row("where an exact step goes, in forward passes", medians, medians["forward"], "1, 1, 1, 4")


MEMORY = """
import bench_regularization as bench
images, target = bench.batch(32, 32)
run = bench.sides("cifar_resnet18", images, target)[{side!r}]
"""


def memory():
    names = ("plain", "naive", "hooks only", "exact", "fraction=0.25", "at layer3")
    peaks = {side: peak_megabytes(MEMORY.format(side=side)) for side in names}
    row("cifar_resnet18, batch 32, peak memory", peaks, peaks["plain"], f"plain: {peaks['plain']:.0f} MB")


def effect():
    """How much of the regularizer's gradient the cheaper modes keep: cosines with the exact one, mean over batches."""
    torch.manual_seed(0)
    data = ShapesDataModule(image_size=32, n_train=1280, batch_size=32)
    data.setup("fit")
    net = build_network("cifar_resnet18", 6, width=16)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3)
    for _ in range(3):
        for pair in data.train_dataloader():
            optimizer.zero_grad()
            F.cross_entropy(net(pair[0]), pair[1]).backward()
            optimizer.step()
    found = {mode: [] for mode in MODES if not mode.startswith("every")}
    found["another batch"] = []
    previous = None
    for images, target in islice(data.train_dataloader(), 20):
        exact = direction(net, EXACT, images, target)
        for mode in MODES.keys() & found.keys():
            found[mode].append(F.cosine_similarity(exact, direction(net, MODES[mode], images, target), 0).item())
        if previous is not None:
            found["another batch"].append(F.cosine_similarity(exact, previous, 0).item())
        previous = exact
    means = {mode: sum(values) / len(values) for mode, values in found.items()}
    row("cosine with the exact gradient of L_R, a ResNet-18 of width 16 on shapes", means, 1, "")


def direction(net, regularizer, images, target):
    regularization = regularizer(net, images, target)[1].regularization
    found = torch.autograd.grad(regularization, [*net.parameters()], materialize_grads=True, allow_unused=True)
    return torch.cat([g.flatten() for g in found])


def gpu():
    if not torch.cuda.is_available():
        print("| on a GPU | not measured: there is none | |")
        return
    for name, size, side in (("cifar_resnet18", 128, 32), ("cifar_mobilenetv2", 128, 32), ("resnet50", 64, 224)):
        for dtype in (torch.float32, torch.bfloat16):
            images, target = batch(size, side, "cuda")
            found = {}
            for mode, run in sides(name, images, target, "cuda").items():
                found[mode] = lambda run=run: synchronized(run, dtype)
            seconds = interleave(found, rounds=10)
            seconds["every_n_steps=4"] = (seconds["every_n_steps=4"] + 3 * seconds["plain"]) / 4
            row(f"{name}, batch {size}, {side} pixels, {dtype}, GPU", seconds, seconds["plain"], "")
            peaks = {mode: peak_of_gpu(run) for mode, run in found.items()}
            row("  its peak memory", peaks, peaks["plain"], f"plain: {peaks['plain']:.0f} MB")


def synchronized(run, dtype):
    with torch.autocast("cuda", dtype) if dtype != torch.float32 else nullcontext():
        run()
    torch.cuda.synchronize()


def peak_of_gpu(run):
    torch.cuda.reset_peak_memory_stats()
    run()
    return torch.cuda.max_memory_allocated() / 2**20


PARTS = {part.__name__: part for part in (step, where, memory, effect, gpu)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads\n")
    print("| what | plain training steps of the same network and batch | limit |")
    print("|---|---|---|")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
