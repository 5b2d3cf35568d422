"""A training step with swapped backgrounds, counted in plain training steps of the same network and batch.

python benchmarks/bench_background_swap.py  # a minute on two cores; nothing else should run
"""

from types import SimpleNamespace

import torch
import torch.nn.functional as F
from timing import interleave, row

from interpretable_training.callbacks import BackgroundSwap
from interpretable_training.models import build_network
from interpretable_training.regularization import SwapBackgrounds

LIMIT = "1.05"


def boxed(size, side):
    """A batch with an object in the middle of each image, as mask and as box."""
    torch.manual_seed(0)
    mask = torch.zeros(size, side, side, dtype=torch.bool)
    mask[:, side // 4 : -side // 4, side // 4 : -side // 4] = True
    boxes = torch.tensor([side // 4, side // 4, 3 * side // 4, 3 * side // 4]).float().expand(size, 1, 4)
    images, target = torch.randn(size, 3, side, side), torch.randint(0, 100, (size,))
    return {"image": images, "target": target}, {"mask": mask}, {"boxes": boxes}


def main():
    for name, size, side in (("cifar_resnet18", 32, 32), ("resnet18", 8, 224)):
        net = build_network(name, 100).train()
        plain, mask, boxes = boxed(size, side)
        trainer = SimpleNamespace(current_epoch=1, global_rank=0)

        def step(batch, swap=None, net=net, trainer=trainer):
            net.zero_grad()
            if swap is not None:
                swap.on_train_batch_start(trainer, None, batch, 0)
            F.cross_entropy(net(batch["image"]), batch["target"]).backward()
            if swap is not None:
                swap.on_train_batch_end()

        swap = BackgroundSwap(SwapBackgrounds(share=0.5, widen=3))
        sides = {
            "plain": lambda: step(plain),
            "masks": lambda: step({**plain, **mask}, swap),
            "boxes": lambda: step({**plain, **boxes}, swap),
        }
        seconds = interleave(sides, rounds=11)
        row(f"{name}, {size} images of {side} x {side}", seconds, seconds["plain"], f"limit {LIMIT}")


if __name__ == "__main__":
    main()
