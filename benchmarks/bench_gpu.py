"""Explaining, rescoring, guided steps and memory on a GPU, in less than eight minutes; without a GPU a sentence.

python benchmarks/bench_gpu.py                  # as `make bench-gpu`
python benchmarks/bench_gpu.py --device cpu     # a trial of the script with small images
"""

import argparse
import contextlib
import copy
import statistics
import sys
import time
from functools import partial

import torch
import torch.nn.functional as F
import torchvision

from interpretable_training.attribution import GradCAM, IntegratedGradients, ScoreCAM
from interpretable_training.metrics import AverageDrop, Deletion, Insertion, evaluate
from interpretable_training.models import CAStream
from interpretable_training.regularization import GuidedGradientRegularizer

SECONDS = 400  # after which no further row begins
AUTOCAST = {"fp32": None, "bf16": torch.bfloat16, "16-mixed": torch.float16}


class Bench:
    """Rows of a Markdown table, measured until the time is over.

    Args:
        device: where the networks run.
        side: of the images, in pixels.
        batches: numbers of images.
        rounds: calls of which the median counts.
    """

    def __init__(self, device, side, batches, rounds=5):
        self.device, self.side, self.batches, self.rounds = torch.device(device), side, batches, rounds
        self.start = time.perf_counter()

    def wait(self):
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def seconds(self, run):
        """Median seconds of a call, after one that does not count."""
        times = []
        for turn in range(self.rounds + 1):
            self.wait()
            start = time.perf_counter()
            run()
            self.wait()
            times += [time.perf_counter() - start] if turn else []
        return statistics.median(times)

    def row(self, what, run, unit=None, images=1):
        """Print seconds, a ratio to `unit` seconds, images per second and the peak of memory; return the seconds."""
        if time.perf_counter() - self.start > SECONDS:
            print(f"| {what} | left out: the time is over | | | |", flush=True)
            return None
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        try:
            spent = self.seconds(run)
        except torch.OutOfMemoryError:
            print(f"| {what} | out of memory | | | |", flush=True)
            return None
        ratio = f"{spent / unit:.2f}" if unit else ""
        peak = f"{torch.cuda.max_memory_allocated() / 2**30:.2f} GiB" if self.device.type == "cuda" else ""
        print(f"| {what} | {1000 * spent:.1f} ms | {ratio} | {images / spent:.0f} | {peak} |", flush=True)
        return spent

    def given(self, name, size):
        torch.manual_seed(0)
        net = torchvision.models.get_model(name, weights=None, num_classes=100).eval().to(self.device)
        images = torch.randn(size, 3, self.side, self.side, device=self.device)
        return net, images, torch.randint(0, 100, (size,), device=self.device)

    def autocast(self, kind):
        dtype = AUTOCAST[kind]
        return contextlib.nullcontext() if dtype is None else torch.autocast(self.device.type, dtype)

    def methods(self):
        for size in self.batches:
            net, images, target = self.given("resnet50", size)
            for kind in ("fp32", "bf16"):
                with self.autocast(kind), torch.no_grad():
                    unit = self.row(f"forward, ResNet-50, {size} images, {kind}", lambda: net(images), None, size)
                with self.autocast(kind):
                    self.row(
                        f"Grad-CAM, {size} images, {kind}", lambda: GradCAM("layer4")(net, images, target), unit, size
                    )
        net, images, target = self.given("resnet18", 1)
        for chunk in (64, 256):
            score = ScoreCAM("layer4", chunk_size=chunk)
            self.row(f"Score-CAM, one image, chunks of {chunk}", lambda score=score: score(net, images, target))
            path = IntegratedGradients(steps=50, chunk_size=chunk)
            self.row(f"integrated gradients, one image, chunks of {chunk}", lambda path=path: path(net, images, target))

    def tables(self):
        net, images, target = self.given("resnet18", self.batches[0])
        metrics = [AverageDrop(), Insertion(20), Deletion(20)]
        for kind in AUTOCAST:
            with self.autocast(kind):
                run = partial(evaluate, net, [GradCAM("layer4")], metrics, (images, target), progress=False)
                self.row(f"evaluate, 3 methods, 3 metrics, ResNet-18, {kind}", run, None, len(images))
        for options in ({"precision": "bf16"}, {"compile": True}, {"compile": True, "precision": "bf16"}):
            if self.device.type == "cuda" or "compile" not in options:  # compiled passes use CUDA graphs
                run = partial(evaluate, net, [GradCAM("layer4")], metrics, (images, target), progress=False, **options)
                self.row(f"the same with {options}, the compiler included", run, None, len(images))

    def steps(self):
        criterion, regularizer = F.cross_entropy, GuidedGradientRegularizer()
        for size in self.batches:
            net, images, target = self.given("resnet18", size)
            net.train()

            def plain(net=net, images=images, target=target):
                net.zero_grad()
                criterion(net(images), target).backward()

            def guided(net=net, images=images, target=target):
                net.zero_grad()
                regularizer(net, images, target, criterion)[0].backward()

            unit = self.row(f"plain step, ResNet-18, {size} images", plain, None, size)
            self.row(f"guided-gradient step, {size} images", guided, unit, size)

    def streams(self):
        for size in self.batches:
            net, images, target = self.given("resnet50", size)
            stream = CAStream(copy.deepcopy(net))

            def tune(net=net, images=images, target=target):
                net.zero_grad()
                F.cross_entropy(net(images), target).backward()

            def train(stream=stream, images=images, target=target):
                stream.zero_grad()
                F.cross_entropy(stream(images), target).backward()

            unit = self.row(f"full fine-tuning step, ResNet-50, {size} images", tune, None, size)
            self.row(f"CA-Stream step, {size} images", train, unit, size)


def main(arguments=None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda")
    device = parser.parse_args(arguments).device
    if device == "cuda" and not torch.cuda.is_available():
        print("No GPU: torch.cuda.is_available() is False. Nothing was measured; --device cpu tries the script.")
        return
    side, batches, rounds = (224, (128, 256), 5) if device == "cuda" else (64, (2,), 1)
    name = torch.cuda.get_device_name() if device == "cuda" else "CPU"
    print(f"{name}, torch {torch.__version__}, {side} x {side}\n")
    print("| what | time | of the line before | images per second | peak memory |\n|---|---|---|---|---|")
    bench = Bench(device, side, batches, rounds)
    for part in (bench.methods, bench.tables, bench.steps, bench.streams):
        part()


if __name__ == "__main__":
    main(sys.argv[1:])
