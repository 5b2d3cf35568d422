"""CA-Stream against its limits: steps, inference and memory in units of a forward pass of the plain backbone.

python benchmarks/bench_ca_stream.py                 # some minutes on two cores; nothing else should run
python benchmarks/bench_ca_stream.py step inference   # some of the parts
"""

import statistics
import sys
import tempfile
import time
import warnings

import lightning as L
import timm
import torch
import torchvision
from timing import interleave, peak_megabytes, row
from torch.nn.functional import cross_entropy

from interpretable_training.models import CAStream
from interpretable_training.modules import CAStreamClassifier

NAMES = ("resnet50", "resnet18", "convnext_tiny", "vgg16")


def network(name):
    torch.manual_seed(0)
    return torchvision.models.get_model(name).eval()


def forward(model, images):
    with torch.no_grad():
        return model(images)


def training_step(net, optimizer, images, target):
    optimizer.zero_grad()
    cross_entropy(net(images), target).backward()
    optimizer.step()


def trainable(net):
    learned = [parameter for parameter in net.parameters() if parameter.requires_grad]
    return torch.optim.SGD(learned, lr=0.1, momentum=0.9, weight_decay=1e-4)


def step():
    for name in NAMES[:3]:
        images, target = torch.randn(8, 3, 224, 224), torch.randint(1000, (8,))
        net, full = CAStream(network(name)).train(), network(name).train()
        optimizer, other = trainable(net), trainable(full)
        sides = {
            "forward": lambda: forward(net.backbone, images),
            "CA-Stream": lambda: training_step(net, optimizer, images, target),
            "full fine-tuning": lambda: training_step(full, other, images, target),
        }
        seconds = interleave(sides, rounds=5)
        row(f"training step, {name}, batch 8", seconds, seconds["forward"], "1.25")


def inference():
    for name in NAMES:
        for batch in (1, 8):
            images, net = torch.randn(batch, 3, 224, 224), CAStream(network(name)).eval()
            sides = {"GAP": lambda: forward(net.backbone, images), "CA": lambda: forward(net, images)}
            seconds = interleave(sides, rounds=15)
            row(f"inference, {name}, batch {batch}", seconds, seconds["GAP"], "1.03")


def tokens():
    """Inference of a stream on transformers against the backbone with its own pooling and head."""
    for name in ("vit_small_patch16_224", "deit3_small_patch16_224", "swin_tiny_patch4_window7_224"):
        backbone = timm.create_model(name).eval()
        images, net = torch.randn(8, 3, 224, 224), CAStream(backbone, num_classes=1000).eval()
        sides = {"own pooling": lambda: forward(backbone, images), "CA": lambda: forward(net, images)}
        seconds = interleave(sides, rounds=15)
        row(f"inference, {name}, batch 8", seconds, seconds["own pooling"], "1.05")


def cached():
    """An epoch of 256 images in memory with cached features, and without, by the Trainer; all stages, and the last."""
    for name, stages in {"all stages": None, "last stage": ("bn2",)}.items():
        torch.manual_seed(0)
        backbone = timm.create_model("tf_efficientnet_lite0").eval()
        images, target = torch.randn(256, 3, 224, 224), torch.randint(10, (256,))
        loader = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(images, target), 32)
        seconds = {kept: epoch(backbone, stages, kept == "cached", loader)[1] for kept in ("without", "cached")}
        row(f"an epoch of the stream on EfficientNet-Lite0, {name}", seconds, seconds["without"], "0.05")


class Clock(L.Callback):
    def __init__(self):
        self.seconds = []

    def on_train_epoch_start(self, trainer, pl_module):
        self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer, pl_module):
        self.seconds.append(time.perf_counter() - self.start)


def epoch(backbone, stages, cache, loader):
    """Seconds of the first epoch, and of a later one."""
    clock, options = Clock(), {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    with tempfile.TemporaryDirectory() as folder:
        stream = CAStream(backbone, stages, num_classes=10)
        module = CAStreamClassifier(stream, 10, cache_features=cache, cache_folder=folder, scheduler=None)
        options |= {"default_root_dir": folder, "enable_model_summary": False, "callbacks": [clock]}
        L.Trainer(max_epochs=4 if cache else 2, accelerator="cpu", **options).fit(module, loader)
    return clock.seconds[0], statistics.median(clock.seconds[1:])


MEMORY = """
import torch
from bench_ca_stream import CAStream, forward, network, trainable, training_step
net = CAStream(network({name!r}))
images, target = torch.randn(8, 3, 224, 224), torch.randint(1000, (8,))
optimizer = trainable(net)
def run():
    for _ in range(2):
        if {plain}:
            forward(net.backbone, images)
        else:
            training_step(net.train(), optimizer, images, target)
"""


def memory():
    for name in NAMES[:3]:
        sides = {side: MEMORY.format(name=name, plain=side == "forward") for side in ("forward", "CA-Stream")}
        peaks = {side: peak_megabytes(code) for side, code in sides.items()}
        learned = 2 * sum(p.numel() for p in CAStream(network(name)).stream.parameters()) * 4 / 2**20
        peaks["without gradients and momentum of the stream"] = peaks["CA-Stream"] - learned
        note = f"1.3; {peaks['forward']:.0f} MB, gradients and momentum {learned:.0f} MB"
        row(f"training step, {name}, batch 8, peak memory beside the weights", peaks, peaks["forward"], note)


def gpu():
    """bfloat16, batch 256, and the largest batch that fits, against full fine-tuning; needs a GPU."""
    net, full = CAStream(network("resnet50")).cuda().train(), network("resnet50").cuda().train()
    optimizer, other = trainable(net), trainable(full)

    def synchronized(run, *args):
        with torch.autocast("cuda", torch.bfloat16):
            run(*args)
        torch.cuda.synchronize()

    def fits(model, optimizer, batch):
        try:
            images, target = torch.randn(batch, 3, 224, 224, device="cuda"), torch.zeros(batch, device="cuda").long()
            synchronized(training_step, model, optimizer, images, target)
        except torch.OutOfMemoryError:
            return False
        return True

    images, target = torch.randn(256, 3, 224, 224, device="cuda"), torch.zeros(256, device="cuda").long()
    sides = {
        "forward": lambda: synchronized(forward, net.backbone, images),
        "CA forward": lambda: synchronized(forward, net, images),
        "CA-Stream": lambda: synchronized(training_step, net, optimizer, images, target),
        "full fine-tuning": lambda: synchronized(training_step, full, other, images, target),
    }
    seconds = interleave(sides, rounds=10)
    row("GPU, resnet50, bfloat16, batch 256", seconds, seconds["forward"], "1.25, 1.03")
    for name, model, opt in (("CA-Stream", net, optimizer), ("full fine-tuning", full, other)):
        batch = 256
        while fits(model, opt, 2 * batch):
            batch *= 2
        print(f"| GPU, resnet50, bfloat16, largest power of two that fits, {name} | {batch} | |")


PARTS = {
    part.__name__: part
    for part in (step, inference, tokens, cached, memory, *([gpu] if torch.cuda.is_available() else []))
}

if __name__ == "__main__":
    warnings.simplefilter("ignore")
    print(f"torch {torch.__version__}, {torch.get_num_threads()} threads, 224 x 224\n")
    print("| what | forward passes of the plain backbone (memory: as a share of the forward's peak) | limit |")
    print("|---|---|---|")
    for name in sys.argv[1:] or PARTS:
        PARTS[name]()
