"""Training under FSDP2 equals that of the whole model; losses of gradients refuse it, and tensor parallelism."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import Replicate
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module
from torch.testing import assert_close

from interpretable_training.attribution.core.sharded_parameters import whole
from interpretable_training.models import CAStream, TinyCNN
from interpretable_training.regularization import GuidanceLoss, GuidedGradientRegularizer

pytestmark = pytest.mark.slow  # each process imports torch
IMAGES = torch.arange(4 * 3 * 16 * 16, dtype=torch.float32).view(4, 3, 16, 16).sin()
TARGET = torch.tensor([0, 2, 1, 1])


def cnn():
    features = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU()
    return nn.Sequential(*features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(5, 3))


def stream():
    return CAStream(TinyCNN(3, width=4), image_size=16)


def regularized(**options):
    return lambda net: GuidedGradientRegularizer(**{"weight": 1.0, **options})(net, IMAGES, TARGET)


def guided(loss):
    return lambda net: GuidanceLoss(loss)(net, IMAGES, TARGET, torch.ones(4, 16, 16, dtype=torch.bool))


def plain(net):
    return F.cross_entropy(net(IMAGES), TARGET), None


TRAINED = {"plain": (cnn, plain), "stream": (stream, plain), "without weight": (cnn, regularized(weight=0.0))}
REFUSED = {
    "regularizer": (cnn, regularized()),
    "regularizer of a part": (cnn, regularized(fraction=0.5)),
    "regularizer at a layer": (cnn, regularized(at="1")),
    "regularized stream": (stream, regularized()),
    "guided maps": (cnn, guided("energy")),
}


def trained(net, loss_of):
    """The losses and the parameters after three steps."""
    optimizer = torch.optim.SGD([p for p in net.parameters() if p.requires_grad], lr=0.1)
    losses = []
    for _ in range(3):
        loss, _ = loss_of(net)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(float(loss.detach()))
    return losses, {name: whole(p.detach()) for name, p in net.named_parameters()}


def work(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh, results = init_device_mesh("cpu", (2,)), {}
    try:
        for name, (make, loss_of) in {**TRAINED, **REFUSED}.items():
            net = make()
            spread = copy.deepcopy(net)
            for child in list(spread.modules()):
                if isinstance(child, nn.Conv2d):
                    fully_shard(child, mesh=mesh)
            fully_shard(spread, mesh=mesh)
            try:
                assert_close(trained(spread, loss_of), trained(net, loss_of), rtol=1e-4, atol=1e-5)
            except (AssertionError, RuntimeError, ValueError) as error:
                results[name] = str(error)
        parallel = parallelize_module(cnn(), mesh, {"6": ColwiseParallel(output_layouts=Replicate())})
        for loss_of in (regularized(), regularized(fraction=0.5), guided("energy"), guided("input_gradient")):
            with pytest.raises(ValueError, match="spread over processes"):
                loss_of(parallel)
        (folder / f"{rank}.json").write_text(json.dumps(results))
    finally:
        dist.destroy_process_group()


def test_sharded_training_equals_that_of_the_whole_model(tmp_path):
    mp.spawn(work, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        assert results.keys() == REFUSED.keys(), results
        assert all("whose parameters are spread over processes" in text for text in results.values()), results
