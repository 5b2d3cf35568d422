import copy
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from support.families import few
from support.regularized_nets import STRONG, Residual, batch, parameter_gradient, regularizers, vgg
from torch import nn
from torch.testing import assert_close
from torch.utils.checkpoint import checkpoint

from interpretable_training.models import TinyCNN


def tiny():
    torch.manual_seed(0)
    return TinyCNN(4, width=4)


def gradient_of(net, images, target, regularizer=STRONG, **options):
    loss, parts = regularizer(net, images, target, **options)
    return parameter_gradient(loss, net), parts


def alike(a, b):
    return F.cosine_similarity(a.double(), b.double(), dim=0).item()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_mixed_precision_keeps_gradients_in_float32(dtype):
    images, target = batch(16, 16)
    images = images.float()
    exact, reference = gradient_of(tiny(), images, target)
    with torch.autocast("cpu", dtype):
        mixed, parts = gradient_of(tiny(), images, target, scale=1024.0)
    assert {parts.regularization.dtype, parts.norm.dtype, parts.similarity.dtype} == {torch.float32}
    assert_close(parts.regularization, reference.regularization, rtol=0.05, atol=0.02)
    assert alike(mixed, exact) > 0.98


def test_loss_scale_keeps_small_gradients_in_float16():
    """Float16 ends near 6e-8; a loss times 1e-6 has a gradient of the images below, unless it is scaled."""
    images, target = batch(16, 16)
    results = []
    for scale in (1.0, 2.0**20):
        with torch.autocast("cpu", torch.float16):
            options = {"criterion": lambda y, t: 1e-6 * F.cross_entropy(y, t), "scale": scale}
            results.append(gradient_of(tiny(), images.float(), target, **options)[1])
    _, exact = gradient_of(tiny(), images.float(), target)
    unscaled, scaled = ((parts.regularization - exact.regularization).abs() for parts in results)
    assert scaled < 0.02 < unscaled


def test_bfloat16_parameters_have_gradients_in_float32():
    net, (images, target) = tiny().bfloat16(), batch(8, 16)
    loss, parts = STRONG(net, images.bfloat16(), target)
    loss.backward()
    assert parts.regularization.dtype == torch.float32
    assert all(p.grad.dtype == torch.bfloat16 and p.grad.isfinite().all() for p in net.parameters())


def test_channels_last_changes_nothing():
    net, (images, target) = vgg().eval(), batch()
    expected, _ = gradient_of(net, images, target)
    last = {"memory_format": torch.channels_last}
    results, _ = gradient_of(copy.deepcopy(net).to(**last), images.contiguous(**last), target)
    assert_close(results, expected)


class Attention(nn.Module):
    """One layer of attention over the pixels."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.qkv, self.head = nn.Linear(3, 3 * 8), nn.Linear(8, 4)

    def forward(self, images):
        q, k, v = self.qkv(images.flatten(2).transpose(1, 2))[:, None].chunk(3, -1)
        return self.head(F.scaled_dot_product_attention(q, k, v).relu().mean((1, 2)))


def test_attention_uses_the_twice_differentiable_kernel():
    net, (images, target) = Attention(), batch()
    results, _ = gradient_of(net, images.float(), target)
    assert torch.backends.cuda.flash_sdp_enabled()

    def attend(q, k, v):
        return (q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5).softmax(-1) @ v

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(F, "scaled_dot_product_attention", attend)
        expected, _ = gradient_of(net, images.float(), target)
    assert_close(results, expected)


class Checkpointed(nn.Module):
    def __init__(self, module, reentrant=False):
        super().__init__()
        self.module, self.reentrant = module, reentrant

    def forward(self, x):
        return checkpoint(self.module, x, use_reentrant=self.reentrant)


def test_checkpointing_changes_no_gradient_or_statistics():
    """Batch norm counts a checkpointed step twice, here as in plain training: the passes to the images do not count."""
    results = []
    for wrap in (lambda module: module, Checkpointed):
        net, (images, target) = vgg(), batch()
        net = nn.Sequential(net[:4], wrap(net[4:8]), net[8:])
        torch.manual_seed(2)
        loss, parts = STRONG(net, images, target)
        loss.backward()
        assert parts.gated == 3
        results.append([p.grad for p in net.parameters()])
    assert_close(*results)
    assert (net[0][1].num_batches_tracked, net[1].module[1].num_batches_tracked) == (1, 2)


def test_checkpointed_attention_gives_the_same_gradient():
    images, target = batch()
    expected, _ = gradient_of(Attention(), images.float(), target)
    net = Checkpointed(Attention())
    loss, _ = STRONG(net, images.float(), target)
    loss.backward()
    assert_close(torch.cat([p.grad.flatten() for p in net.parameters()]), expected)
    assert torch.backends.cuda.flash_sdp_enabled()


def test_reentrant_checkpointing_error_says_what_to_do():
    net, (images, target) = nn.Sequential(vgg()[:4], Checkpointed(vgg()[4:], reentrant=True)), batch()
    with pytest.raises(RuntimeError, match="use_reentrant=False"):
        STRONG(net, images, target)


@pytest.mark.parametrize("how", few(["wrapped", "in place", "around"], "wrapped"))
def test_compiled_modules_run_eagerly_and_warn_once(how):
    net, (images, target) = vgg(), batch()
    expected, _ = gradient_of(copy.deepcopy(net).eval(), images, target)
    net.eval()
    step = STRONG.__call__
    if how == "in place":
        net.compile(backend="aot_eager")
    model = torch.compile(net, backend="aot_eager") if how == "wrapped" else net
    if how == "around":
        step = torch.compile(lambda *args: STRONG(*args), backend="aot_eager")
    else:
        model(images)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("default")
        for _ in range(3):
            loss, _ = step(model, images, target)
            assert_close(parameter_gradient(loss, net), expected)
    assert len([w for w in said if "cannot be differentiated twice" in str(w.message)]) == (how != "around")


RANK = """
import sys
import torch, torch.distributed as dist
sys.path[:0] = [{folder!r}]
from support.regularized_nets import Residual, RegularizedStep, batch, regularizers
from torch.nn.parallel import DistributedDataParallel as DDP
torch.set_num_threads(1)
rank = int(sys.argv[1])
dist.init_process_group("gloo", init_method="file://{file}", rank=rank, world_size=2)
images, target = batch(8)
found = []
for regularizer in regularizers():
    for inside in (False, True):
        net = Residual().eval()
        part = images[rank::2], target[rank::2]
        if inside:
            model = DDP(RegularizedStep(net, regularizer))
            loss = model(*part)
        else:
            model = DDP(net)
            loss, _ = regularizer(model, *part)
        loss.backward()
        found.append([p.grad for p in net.parameters()])
if rank == 0:
    torch.save(found, {out!r})
dist.barrier()
dist.destroy_process_group()
"""


@pytest.mark.slow
def test_two_processes_equal_one(tmp_path):
    """Without statistics of the batch, which processes do not share, and with errors free of its size."""
    out = str(tmp_path / "found.pt")
    code = RANK.format(folder=str(Path(__file__).parents[1]), file=tmp_path / "meet", out=out)
    ranks = [subprocess.Popen([sys.executable, "-c", code, str(rank)], stderr=subprocess.PIPE) for rank in range(2)]
    for rank in ranks:
        _, error = rank.communicate(timeout=120)
        assert rank.returncode == 0, error.decode()
    results = torch.load(out)
    expected = []
    for regularizer in regularizers():
        net, (images, target) = Residual().eval(), batch(8)
        regularizer(net, images, target)[0].backward()
        expected += [[p.grad for p in net.parameters()]] * 2
    assert_close(results, expected, rtol=0, atol=1e-6)
