"""`evaluate` in float32, in bfloat16, compiled, and in two processes, against each other and against the peers.

python benchmarks/bench_evaluate.py                    # all; half an hour on two cores without other programs
python benchmarks/bench_evaluate.py curves processes   # some of the parts
"""

import copy
import statistics
import sys
import tempfile
import time
import warnings
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torchvision
from bench_attribution import peer_grad_cam, peer_torchcam
from bench_metrics import CURVES, METHODS, SEVEN, batch
from timing import interleave, row
from torch.utils.data import DataLoader, TensorDataset

from interpretable_training.attribution import GradCAM, ScoreCAM
from interpretable_training.attribution.core import compiled_passes
from interpretable_training.metrics import Complexity, evaluate

LAYERS = {"resnet18": "layer4", "resnet50": "layer4", "efficientnet_b0": "features"}
MODES = {"ours": {}, "bf16": {"precision": "bf16"}, "compiled": {"compile": True}}
MODES["compiled bf16"] = {"compile": True, "precision": "bf16"}
quiet = partial(evaluate, target="pred", controls=False, progress=False, resamples=100)


def network(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name, weights=None).eval()


def sides(net, methods, metrics, images, found):
    """Return ours without compilation; `found` gets tables and times."""

    def run(mode):
        start = time.perf_counter()
        data = DataLoader(TensorDataset(images, torch.zeros(len(images), dtype=torch.long)), 8)
        found[mode] = quiet(net, methods, metrics, data, **MODES[mode])
        found[f"seconds of {mode}"].append(time.perf_counter() - start - compiling(found[mode]))

    found["run"] = run
    return {mode: partial(run, mode) for mode in ("ours", "bf16")}


def compiling(table):
    """Return the seconds that the compiler took, which are stated apart."""
    fact = str(table.facts.get("compiled", "0 shapes compiled in 0 s"))
    return float(fact.split()[-2]) if fact.endswith(" s") else 0.0


def told(what, found, seconds, peers, limit):
    """Print a row, ratios to the peers, the largest change of a cell in percent points, and what is compiled."""
    for mode in ("compiled", "compiled bf16"):
        found["run"](mode)
    seconds |= {mode: statistics.median(found[f"seconds of {mode}"][-2:]) for mode in MODES}
    row(what, seconds, seconds["F"], limit)
    for peer in peers:
        print(f"  {peer} / ours: { {mode: round(seconds[peer] / seconds[mode], 2) for mode in MODES} }")
    for mode in MODES:
        table = found[mode]
        pairs = [(table[key].mean, cell.mean) for key, cell in found["ours"].cells.items()]
        change = max(abs(a - b) for a, b in pairs)
        print(
            f"  {mode}: largest change of a cell {change:.2g}; {table.facts.get('compiled', 'not compiled')}",
            flush=True,
        )


def new():
    """Return where ours put tables and times."""
    return {f"seconds of {mode}": [] for mode in MODES}


def forwards(net, images):
    def run():
        with torch.no_grad():
            for part in images.split(8):
                net(part)

    return run


def curves():
    """Insertion and deletion of Grad-CAM, 20 steps: what torchcam offers."""
    from torchcam.methods import GradCAM as TheirGradCAM
    from torchcam.metrics import DeletionInsertionMetric

    for name, layer in LAYERS.items():
        net, images, found = network(name), batch(8), new()
        theirs = copy.deepcopy(net)

        def torchcam(theirs=theirs, layer=layer, images=images):
            with TheirGradCAM(theirs, layer) as extractor:
                metric = DeletionInsertionMetric(extractor, partial(torch.softmax, dim=-1), steps=20)
                for part in images.split(8):
                    metric.update(part)

        ours = sides(net, {"gradcam": GradCAM(layer, score="prob", normalize="before")}, CURVES, images, found)
        seconds = interleave({"F": forwards(net, images), **ours, "torchcam": torchcam}, rounds=2)
        told(f"insertion and deletion, 20 steps, {name}, 8 images", found, seconds, ["torchcam"], "41 F")


def score():
    """Score-CAM with 512 live channels."""
    net, images, found = network("resnet18"), batch(2), new()
    peers = {
        "pytorch-grad-cam": peer_grad_cam("ScoreCAM", copy.deepcopy(net), "layer4", images),
        "torchcam": peer_torchcam("ScoreCAM", copy.deepcopy(net), "layer4", images),
    }
    ours = sides(net, {"scorecam": ScoreCAM("layer4")}, {"complexity": Complexity()}, images, found)
    seconds = interleave({"F": forwards(net, images), **ours, **peers}, rounds=1)
    told("Score-CAM, resnet18, 2 images", found, seconds, peers, "513 F")


def share(rank, folder, world, n):
    """Evaluate in one of several processes with a thread each; the first one writes how long it took."""
    torch.set_num_threads(1)
    if world > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/store-{n}", rank=rank, world_size=world)
    images = batch(n, 128)
    data = DataLoader(TensorDataset(images, torch.zeros(n, dtype=torch.long)), 4)
    net = network("resnet18")
    quiet(net, METHODS, SEVEN, (images[: 4 * world], torch.zeros(4 * world, dtype=torch.long)))  # warm
    start = time.perf_counter()
    quiet(net, METHODS, SEVEN, data)
    if rank == 0:
        Path(folder, f"{world}.txt").write_text(str(time.perf_counter() - start))
    if world > 1:
        dist.destroy_process_group()


def processes():
    """The whole table by one process and by two, each with one thread."""
    ratios = []
    for turn in range(3):
        with tempfile.TemporaryDirectory() as folder:
            for world in (1, 2):
                mp.spawn(share, (folder, world, 16), nprocs=world)
            one, two = (float(Path(folder, f"{world}.txt").read_text()) for world in (1, 2))
        ratios.append(one / two)
        print(f"  turn {turn}: one process {one:.1f} s, two {two:.1f} s", flush=True)
    print(f"| five CAMs x seven metrics, 16 images, one process / two | {sorted(ratios)[1]:.2f} | 1.8 |")


PARTS = {part.__name__: part for part in (curves, score, processes)}

if __name__ == "__main__":
    warnings.filterwarnings("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 224 x 224\n")
    compiled_passes.AFTER = 3  # soon, as in a long evaluation; the time of the compiler is left out
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
