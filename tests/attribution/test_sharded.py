"""Models whose parameters are spread over two processes are explained, or refused, as the whole model is."""

import copy
import json

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.testing import assert_close

from interpretable_training.attribution import (
    CAM,
    RISE,
    AblationCAM,
    AttentionRollout,
    EigenCAM,
    ExpectedGradCAM,
    ExpectedGradients,
    FullGrad,
    GradCAM,
    GuidedBackprop,
    IntegratedGradients,
    LayerCAM,
    RawAttention,
    ScoreCAM,
    SmoothGrad,
    TGrad,
    TransformerAttribution,
)
from interpretable_training.attribution.core.sharded_parameters import is_sharded
from interpretable_training.metrics import AverageDrop, InputInvariance, ParameterRandomization, evaluate
from interpretable_training.models import CAStream, TinyCNN

pytestmark = pytest.mark.slow  # each process imports torch
IMAGES = torch.arange(5 * 3 * 16 * 16, dtype=torch.float32).view(5, 3, 16, 16).sin()
TARGET = torch.tensor([0, 2, 1, 1, 0])
CNN = [AblationCAM(), CAM(), EigenCAM(), FullGrad(), GradCAM(), GuidedBackprop(), IntegratedGradients(steps=4)]
CNN += [LayerCAM(), RISE(n=8, cells=4), ScoreCAM(), SmoothGrad(n=2), TGrad()]
CNN += [method(baselines=IMAGES[:2], n=2) for method in (ExpectedGradCAM, ExpectedGradients)]
WITHOUT_CAM = [method for method in CNN if not isinstance(method, CAM)]  # which needs one linear layer behind pooling
TOKENS = [AttentionRollout(), RawAttention(), TransformerAttribution(), GradCAM()]


def cnn():
    norm, last = nn.BatchNorm2d(4), nn.Linear(5, 3)
    norm.running_mean.normal_()
    features = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), norm, nn.ReLU(), nn.Conv2d(4, 5, 3, 2, 1), nn.ReLU())
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)


def perceptron():
    head = nn.Sequential(nn.Linear(20, 16), nn.ReLU(), nn.Linear(16, 3))
    return nn.Sequential(nn.Conv2d(3, 5, 3, 2, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), head)


def transformer():
    import timm

    options = {"img_size": 16, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2, "num_classes": 3}
    return timm.models.vision_transformer.VisionTransformer(**options)


def stream():
    return CAStream(TinyCNN(3, width=4), image_size=16)


def shard(net, mesh):
    for child in net.modules():
        if isinstance(child, (nn.Conv2d, nn.BatchNorm2d)) or type(child).__name__ == "Block":
            fully_shard(child, mesh=mesh)
    return fully_shard(net, mesh=mesh)


def split(net, mesh):
    return parallelize_module(net, mesh, {"4.0": ColwiseParallel(), "4.2": RowwiseParallel()})


def unlike(methods, whole, spread):
    """The methods whose maps differ, with the reason."""
    results = {}
    for method in methods:
        try:
            expected = method(whole, IMAGES, TARGET)
            assert_close(method(spread, IMAGES, TARGET), expected, rtol=1e-4, atol=1e-5)
        except (AssertionError, RuntimeError, ValueError) as error:
            results[type(method).__name__] = str(error)
    return results


def with_cache(net, method, images, target):
    evaluate(net, [method], [AverageDrop()], (images, target), cache="cache", progress=False)


def refused(test, net):
    try:
        test(net, GradCAM(), IMAGES, TARGET)
    except ValueError as error:
        return str(error)
    return "not refused"


def work(rank, folder):
    torch.set_num_threads(1)
    torch.manual_seed(0)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    mesh, results = init_device_mesh("cpu", (2,)), {}
    try:
        cases = {
            "cnn, FSDP2": (cnn, shard, CNN),
            "transformer, FSDP2": (transformer, shard, TOKENS),
            "stream, FSDP2": (stream, shard, [CAM(), GradCAM(), RawAttention()]),
            "perceptron, tensor parallel": (perceptron, split, WITHOUT_CAM),
        }
        for name, (make, spread, methods) in cases.items():
            net = make().eval()
            whole = copy.deepcopy(net)
            spread(net, mesh)
            assert is_sharded(net)
            assert not is_sharded(whole)
            results[name] = unlike(methods, whole, net)
            tests = ParameterRandomization(), InputInvariance(), with_cache
            results[f"{name}, refused"] = [refused(test, net) for test in tests]
            if make is stream:
                results["checksums"] = whole.checksums() == net.checksums()
                results["state"] = bool(torch.equal(whole.get_extra_state(), net.get_extra_state()))
            else:
                data = [(IMAGES[:3], TARGET[:3]), (IMAGES[3:4], TARGET[3:4]), (IMAGES[4:], TARGET[4:])]  # not even
                tables = [
                    evaluate(model, [GradCAM()], [AverageDrop()], data, resamples=9, progress=False)
                    for model in (whole, net)
                ]
                values = [table.values["gradcam"]["average_drop"] for table in tables]
                results[f"{name}, evaluate"] = len(values[1]) == 5 and torch.allclose(*values, atol=1e-3)  # percent
                results[f"{name}, weights"] = tables[0].facts["weights"] == tables[1].facts["weights"]
        (folder / f"{rank}.json").write_text(json.dumps(results))
    finally:
        dist.destroy_process_group()


def test_sharded_models_get_the_maps_of_whole_ones(tmp_path):
    mp.spawn(work, (tmp_path,), nprocs=2)
    for rank in (0, 1):
        results = json.loads((tmp_path / f"{rank}.json").read_text())
        for name, value in results.items():
            if name.endswith("refused"):
                assert all(("expected a model with whole" in text or "cache=None" in text) for text in value), (
                    name,
                    value,
                )
            else:
                assert value in ({}, True), (name, value)
