"""The model: what it computes and what it counts; its seal and files are tested beside this file."""

import copy
import pickle

import pytest
import torch
import torchvision
from torch import nn
from torch.testing import assert_close

from interpretable_training.models import CAStream, TinyCNN


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "total"),
    [("resnet18", 12129320), ("resnet50", 32526184), ("convnext_small", 51202792), ("convnext_base", 90331112)],
)
def test_parameters_in_all(name, total):
    with torch.device("meta"):
        assert count(CAStream(torchvision.models.get_model(name))) == total


@pytest.mark.parametrize(
    ("name", "arguments", "total"),
    [
        ("resnet18", {}, 439808),
        ("convnext_small", {}, 979104),
        ("convnext_base", {}, 1739648),
        ("resnet50", {}, 6969152),
        ("resnet50", {"start": 1}, 6952704),
        ("resnet50", {"start": 2}, 6821376),
        ("resnet50", {"start": 3}, 6296576),
        ("resnet50", {"start": 4}, 4198400),
        ("resnet50", {"projected": True}, 18126272),
        ("resnet50", {"class_specific": True}, 32590120 - 25557032),
        ("resnet50", {"bias": False}, 6963264),
        ("resnet50", {"heads": 8}, 6969152),
    ],
)
def test_parameters_of_the_stream(name, arguments, total):
    with torch.device("meta"):
        assert count(CAStream(torchvision.models.get_model(name), **arguments).stream) == total


def test_a_uniform_last_stage_is_average_pooling(tiny, averaging, images):
    """q = 0, W = 1, b = 0 at the last stage: a = 1 / p, so that the query of the head is the average."""
    net = averaging(tiny(start=2))
    logits, attention = net.forward_with_attention(images)
    assert_close(logits, net.gap()(images))
    assert_close(attention.maps[0], torch.full((2, 4, 4), 1 / 16, dtype=torch.float64))


def test_a_uniform_last_stage_of_a_resnet_is_average_pooling(averaging):
    net = averaging(CAStream(torchvision.models.resnet18(num_classes=5), start=4))
    images = torch.randn(2, 3, 64, 96)
    assert_close(net(images), net.gap().eval()(images))


def test_scores_are_grids_and_attention_sums_to_one(tiny, images):
    logits, attention = tiny().forward_with_attention(images)
    assert [tuple(s.shape) for s in attention] == [(2, 16, 16), (2, 8, 8), (2, 4, 4)]
    assert tiny(heads=2).forward_with_attention(images)[1][0].shape == (2, 2, 16, 16)
    for s, a in zip(attention, attention.maps):
        assert_close(a.sum((1, 2)), torch.ones(2, dtype=torch.float64))
        assert_close(a.log() - a.log().mean((1, 2), keepdim=True), s - s.mean((1, 2), keepdim=True))
    assert_close(logits, tiny()(images))


def test_one_pass_gives_the_logits_of_both_poolings(tiny, images):
    net, count = tiny(), []
    plain = copy.deepcopy(net.gap())(images)
    handle = net.gap().stem.register_forward_hook(lambda *_: count.append(1))
    seen = net.look(images)
    handle.remove()
    assert count == [1]
    assert_close(seen.gap, plain, rtol=0, atol=0)
    assert_close(seen.logits, net(images))


@pytest.mark.parametrize("arguments", [{}, {"start": 1}, {"projected": True, "heads": 2}, {"bias": False}])
def test_placement_and_variants_give_logits(tiny, images, arguments):
    net = tiny(**arguments)
    assert net(images).shape == (2, 3)
    net(images).sum().backward()
    assert all(parameter.grad is not None for parameter in net.stream.parameters())


def test_class_specific_queries_follow_the_label_or_the_plain_network(tiny, images):
    net = tiny(class_specific=True)
    predicted = net.gap()(images).argmax(1)
    other = (predicted + 1) % 3
    assert_close(net(images), net(images, predicted))
    assert (net(images) - net(images, other)).abs().amax(1).gt(1e-6).all()
    assert_close(net(images, other)[1:], net(images[1:], other[1:]))


def test_equal_queries_per_class_are_one_query(tiny, images):
    net, one = tiny(class_specific=True), tiny()
    one.stream.load_state_dict({**net.stream.state_dict(), "query": net.stream.query.detach()[:1]})
    net.stream.query.data[:] = net.stream.query.data[:1].clone()
    assert_close(net(images), one(images))


def slow_logits(net, stages, pooled_head, images):
    """Equations 3.1 to 3.7 in plain loops over images, stages and cells; stages by calling the layers by hand."""
    rows = []
    for image in images:
        q, x = net.stream.query[0], image[None]
        for stage, step in zip(stages, net.stream.blocks):
            x = stage(x)
            cells = [x[0, :, i, j] for i in range(x.shape[2]) for j in range(x.shape[3])]
            s = torch.stack([(cell * q).sum() / len(cell) ** 0.5 for cell in cells])
            a = s.exp() / s.exp().sum()
            CA = sum(weight * cell for weight, cell in zip(a, cells))
            q = torch.stack([(row * CA).sum() + b for row, b in zip(step.out.weight, step.out.bias)])
        rows.append(pooled_head(q))
    return torch.stack(rows)


def resnet_parts(m):
    stem = nn.Sequential(m.conv1, m.bn1, m.relu, m.maxpool)
    return [stem, m.layer1, m.layer2, m.layer3, m.layer4], m.fc


def convnext_parts(m):
    stages = [m.features[0], m.features[1:3], m.features[3:5], m.features[5:8]]
    norm, _, linear = m.classifier
    return stages, lambda q: linear(nn.functional.layer_norm(q, q.shape, norm.weight, norm.bias, norm.eps))


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        ("resnet18", resnet_parts),
        pytest.param("resnet50", resnet_parts, marks=pytest.mark.slow),
        pytest.param("convnext_tiny", convnext_parts, marks=pytest.mark.slow),
    ],
)
def test_plain_loops_give_the_same_logits(name, parts):
    torch.manual_seed(0)
    net = CAStream(torchvision.models.get_model(name, num_classes=7).double())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_close(net(images), slow_logits(net, *parts(net.backbone), images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (64, 24)])
def test_any_size_batch_and_memory_format(tiny, size):
    net, images = tiny(), torch.randn(3, 3, *size, dtype=torch.float64)
    logits = net(images)
    assert_close(net(images[:1]), logits[:1])
    assert_close(net(images.to(memory_format=torch.channels_last)), logits)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert_close(last(images.to(memory_format=torch.channels_last)), logits)


def test_one_channel(tiny):
    assert tiny(channels=1)(torch.randn(2, 1, 24, 24, dtype=torch.float64)).shape == (2, 3)


def test_scores_are_float32_under_autocast():
    """Features in bfloat16 times a query are scores of 2 to the power of 9 here, which bfloat16 knows to 2 only."""
    torch.manual_seed(0)
    net, images = CAStream(TinyCNN(3, width=4)), torch.randn(2, 3, 32, 32)
    with torch.autocast("cpu", torch.bfloat16):
        logits, attention = net.forward_with_attention(images)
        features = net.backbone.stage1(net.backbone.stem(images))
    assert features.dtype == torch.bfloat16
    assert {s.dtype for s in attention} == {torch.float32}
    expected = torch.einsum("bkij,k->bij", features.float(), net.stream.query[0]) / 8**0.5
    assert_close(attention[0], expected)
    assert_close(logits.float(), net(images), rtol=0, atol=0.02)


def test_a_model_in_half_precision_runs(images):
    net = CAStream(TinyCNN(3, width=4)).bfloat16()
    logits, attention = net.forward_with_attention(images.bfloat16())
    assert (logits.dtype, attention[0].dtype) == (torch.bfloat16, torch.float32)


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda net: pickle.loads(pickle.dumps(net))])
def test_copies_are_models_of_their_own(tiny, images, twin):
    net = tiny()
    other = twin(net)
    assert_close(other(images), net(images))
    before = net(images)
    other.backbone.stage3[0][0].weight.data.zero_()
    assert not torch.allclose(other(images), before)
    assert_close(net(images), before)


def test_two_streams_may_share_a_backbone(images):
    torch.manual_seed(0)
    backbone = TinyCNN(3, width=4).double()
    one, other = CAStream(backbone), CAStream(backbone, start=2)
    assert one.gap() is other.gap() is backbone
    assert len(one.forward_with_attention(images)[1]) == 3
    assert len(other.forward_with_attention(images)[1]) == 1


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_programs_give_the_same_logits(tiny, images, strict):
    net = tiny()
    program = torch.export.export(net, (images,), strict=strict)
    assert_close(program.module()(images + 1), net(images + 1))


def test_a_compiled_model_is_one_graph_and_gives_the_same(tiny, images):
    torch._dynamo.reset()
    net = tiny()
    compiled = torch.compile(net, backend="eager", fullgraph=True)
    for batch in (images, images + 1):
        assert_close(compiled(batch), net(batch))
    net.backbone.train()
    before = copy.deepcopy(net.backbone.state_dict())
    assert_close(compiled(images), net(images))
    assert_close(net.backbone.state_dict(), before, rtol=0, atol=0)
    compiled(images).sum().backward()
    assert net.stream.query.grad.abs().sum() > 0
