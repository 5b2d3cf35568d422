"""CA-Stream: outputs, parameters, frozen backbone, state dicts and cost."""

import copy
import importlib.util
import pickle
from pathlib import Path

import pytest
import torch
import torchvision
from support.families import few
from torch import nn
from torch.testing import assert_close
from torch.utils.flop_counter import FlopCounterMode

from interpretable_training.attribution.core.checksum import checksums, fingerprint
from interpretable_training.models import CAStream, TinyCNN


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.parametrize(
    ("name", "total"),
    [("resnet18", 12129320), ("resnet50", 32526184), ("convnext_small", 51202792), ("convnext_base", 90331112)],
)
def test_parameters_of_the_whole_network(name, total):
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


def test_uniform_attention_equals_average_pooling(tiny, averaging, images):
    """q = 0, W = 1, b = 0 at the last stage: a = 1 / p, so that the query of the head is the average."""
    net = averaging(tiny(start=2))
    logits, attention = net.forward_with_attention(images)
    assert_close(logits, net.backbone(images))
    assert_close(attention.maps[0], torch.full((2, 4, 4), 1 / 16, dtype=torch.float64))


def test_uniform_attention_of_resnet_equals_average_pooling(averaging):
    net = averaging(CAStream(torchvision.models.resnet18(num_classes=5), start=4))
    images = torch.randn(2, 3, 64, 96)
    assert_close(net(images), net.backbone.eval()(images))


def test_scores_are_grids_and_attention_sums_to_one(tiny, images):
    logits, attention = tiny().forward_with_attention(images)
    assert [tuple(s.shape) for s in attention] == [(2, 16, 16), (2, 8, 8), (2, 4, 4)]
    assert tiny(heads=2).forward_with_attention(images)[1][0].shape == (2, 2, 16, 16)
    for s, a in zip(attention, attention.maps):
        assert_close(a.sum((1, 2)), torch.ones(2, dtype=torch.float64))
        assert_close(a.log() - a.log().mean((1, 2), keepdim=True), s - s.mean((1, 2), keepdim=True))
    assert_close(logits, tiny()(images))


def test_forward_with_gap_returns_both_logits(tiny, images):
    net, count = tiny(), []
    plain = copy.deepcopy(net.backbone)(images)
    handle = net.backbone.stem.register_forward_hook(lambda *_: count.append(1))
    seen = net.forward_with_gap(images)
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


def test_class_queries_follow_label_or_prediction(tiny, images):
    net = tiny(class_specific=True)
    predicted = net.backbone(images).argmax(1)
    other = (predicted + 1) % 3
    assert_close(net(images), net(images, predicted))
    assert (net(images) - net(images, other)).abs().amax(1).gt(1e-6).all()
    assert_close(net(images, other)[1:], net(images[1:], other[1:]))


def test_equal_class_queries_equal_one_query(tiny, images):
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
def test_logits_equal_plain_loops(name, parts):
    torch.manual_seed(0)
    net = CAStream(torchvision.models.get_model(name, num_classes=7).double())
    images = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    with torch.no_grad():
        assert_close(net(images), slow_logits(net, *parts(net.backbone), images), rtol=0, atol=1e-6)


@pytest.mark.parametrize("size", [(32, 32), (17, 40), (64, 24)])
def test_any_size_batch_and_memory_format_is_accepted(tiny, size):
    net, images = tiny(), torch.randn(3, 3, *size, dtype=torch.float64)
    logits = net(images)
    assert_close(net(images[:1]), logits[:1])
    assert_close(net(images.to(memory_format=torch.channels_last)), logits)
    last = copy.deepcopy(net).to(memory_format=torch.channels_last)
    assert_close(last(images.to(memory_format=torch.channels_last)), logits)


def test_images_of_one_channel_are_accepted(tiny):
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
def test_copies_are_independent(tiny, images, twin):
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
    assert one.backbone is other.backbone is backbone
    assert len(one.forward_with_attention(images)[1]) == 3
    assert len(other.forward_with_attention(images)[1]) == 1


@pytest.mark.parametrize("strict", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_exported_program_gives_the_same_logits(tiny, images, strict):
    net = tiny()
    program = torch.export.export(net, (images,), strict=strict)
    assert_close(program.module()(images + 1), net(images + 1))


def test_compiled_model_is_one_graph_with_the_same_logits(tiny, images):
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


UNSEAL = {
    "train": lambda net: net.train(),
    "train of the backbone": lambda net: net.backbone.train(),
    "one flag": lambda net: setattr(net.backbone.stem[1], "training", True),
    "requires_grad_": lambda net: net.requires_grad_(True),
    "requires_grad_ of the backbone": lambda net: net.backbone.requires_grad_(True),
    "one parameter": lambda net: net.backbone.head.weight.requires_grad_(True),
    "a parent": lambda net: nn.Sequential(net).train().requires_grad_(True),
}


@pytest.mark.parametrize("unseal", UNSEAL.values(), ids=UNSEAL)
def test_backbone_is_bit_equal_after_training_steps(tiny, images, unseal):
    net = tiny()
    before, calls = copy.deepcopy(net.backbone.state_dict()), []
    net.backbone.stage1.register_forward_hook(lambda module, args, output: calls.append(output.requires_grad))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-2)
    query = net.stream.query.detach().clone()
    for _ in range(2):
        unseal(net)
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(images), torch.tensor([0, 1])).backward()
        optimizer.step()
    assert_close(net.backbone.state_dict(), before, rtol=0, atol=0)
    assert all(parameter.grad is None for parameter in net.backbone.parameters())
    assert not any(module.training for module in net.backbone.modules())
    assert calls == [False, False]  # no graph
    assert not torch.equal(net.stream.query, query)


def test_inference_updates_no_statistics_in_train_mode(tiny, images):
    net = tiny()
    before = net.checksums()
    net.backbone.train()
    with torch.no_grad():
        net(images)
    assert net.checksums() == before


def test_backward_saves_only_stages_and_head_of_the_backbone(tiny, images):
    """The stream saves views of its stages; a graph of the backbone would save the maps of its stem, among others."""
    net, saved, outputs = tiny(start=1), set(), {}
    for name, module in net.backbone.named_modules():
        # Kept, so that no later tensor gets the memory of an earlier one.
        module.register_forward_hook(lambda module, args, output, name=name: outputs.update({name: output}))

    def pack(tensor):
        saved.add(tensor.untyped_storage().data_ptr())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        net.train()(images)
    made = {name: output.untyped_storage().data_ptr() for name, output in outputs.items()}
    assert made["stage2"] in saved
    assert made["stage3"] in saved
    assert not {made["stem.0"], made["stem"], made["stage1"], made["stage2.0.0"], made["stage2.0"]} & saved


@pytest.mark.parametrize(("option", "learned"), [("train_head", "head"), ("train_backbone", "stage3.0.0")])
def test_train_head_and_train_backbone_learn_their_part(tiny, images, option, learned):
    net = tiny(**{option: True}).train()
    net(images).sum().backward()
    assert net.backbone.get_submodule(learned).weight.grad.abs().sum() > 0
    other = "stage3.0.0" if option == "train_head" else "head"
    assert net.backbone.get_submodule(other).weight.grad is None
    assert net.backbone.get_submodule(learned).training
    assert not net.backbone.get_submodule(other).training
    assert f"backbone.{learned}.weight" in net.state_dict()
    assert f"backbone.{other}.weight" not in net.state_dict()


def test_state_dict_has_stream_and_fingerprint(tiny, images):
    net, other = tiny(), tiny()
    other.stream.initialize(False)
    state = net.state_dict()
    assert {name.split(".")[0] for name in state} == {"stream", "_extra_state"}
    assert sum(tensor.numel() for name, tensor in state.items() if name.startswith("stream")) == sum(
        parameter.numel() for parameter in net.stream.parameters()
    )
    assert not torch.allclose(other(images), net(images))
    other.load_state_dict(state)
    assert_close(other(images), net(images), rtol=0, atol=0)


def test_state_dict_loads_inside_another_module(tiny, images):
    net, other = tiny(), tiny()
    other.stream.initialize(False)
    nn.ModuleDict({"a": other}).load_state_dict(nn.ModuleDict({"a": net}).state_dict())
    assert_close(other(images), net(images), rtol=0, atol=0)


@pytest.mark.parametrize("how", ["weight", "statistics", "architecture"])
def test_loading_refuses_another_backbone(tiny, how):
    net, other = tiny(), tiny()
    if how == "weight":
        other.backbone.head.bias.data[0] += 0.1
    elif how == "statistics":
        other.backbone.stem[1].running_mean[2] += 1
    else:
        other.backbone.__class__ = type("OtherCNN", (TinyCNN,), {})
    before = copy.deepcopy(other.state_dict())
    words = "a TinyCNN whose weights have the fingerprint .* got a " + ("OtherCNN" if how == "architecture" else "")
    with pytest.raises(RuntimeError, match=f"expected the backbone with which .* {words}.*build CAStream on that"):
        other.load_state_dict(net.state_dict())
    assert_close(other.state_dict(), before, rtol=0, atol=0)


def test_fingerprint_is_equal_in_half_precision():
    torch.manual_seed(0)
    net = CAStream(TinyCNN(3, width=4))
    half = copy.deepcopy(net).bfloat16()
    net.load_state_dict(half.state_dict())
    assert_close(net.stream.query, half.stream.query.float())


def test_checksum_detects_one_bit_and_fingerprint_does_not():
    one, other = {"w": torch.ones(3), "n": torch.tensor(4)}, {"w": torch.ones(3), "n": torch.tensor(4)}
    assert checksums(one) == checksums(other)
    other["w"][1] = torch.nextafter(torch.tensor(1.0), torch.tensor(2.0))
    assert [name for name in one if checksums(one)[name] != checksums(other)[name]] == ["w"]
    assert fingerprint(one) == fingerprint(other)
    other["w"][1] = 1.01
    assert fingerprint(one) != fingerprint(other)
    assert fingerprint(one) != fingerprint({"v": one["w"], "n": one["n"]})


SCRIPT = Path(__file__).parents[2] / "docs" / "make_ca_stream_table.py"


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("make_ca_stream_table", SCRIPT)
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


@pytest.mark.parametrize(
    ("name", "sides", "channels"),
    [
        ("resnet18", (56, 56, 28, 14, 7), (64, 64, 128, 256, 512, 512)),
        ("resnet50", (56, 56, 28, 14, 7), (64, 256, 512, 1024, 2048, 2048)),
        pytest.param("convnext_small", (56, 28, 14, 7), (96, 192, 384, 768, 768), marks=pytest.mark.slow),
        pytest.param("convnext_base", (56, 28, 14, 7), (128, 256, 512, 1024, 1024), marks=pytest.mark.slow),
    ],
)
def test_stream_operations_equal_the_formula(script, name, sides, channels):
    """Scores and pooling take 2 p d each, the projection 2 d d'. What the thesis prints is rounded to 0.001."""
    _, stream = script.flops(name)
    steps = zip(sides, channels, channels[1:])
    assert stream == sum(4 * side**2 * d + 2 * d * d_next for side, d, d_next in steps)
    gap, ca = script.THESIS[name]
    assert stream / 1e9 == pytest.approx(ca - gap, rel=0.2, abs=0.001 if name == "resnet18" else 0)


@pytest.mark.parametrize("name", few(["resnet18", "resnet50", "convnext_tiny", "convnext_base"], "resnet18"))
def test_logits_cost_only_what_the_stream_adds(name):
    """In million operations: the plain network's classifier is not run beside the stream's."""
    with torch.device("meta"):
        net, images = CAStream(torchvision.models.get_model(name)), torch.empty(1, 3, 224, 224)
    plain, stream, attention, both = (
        operations(run, images) for run in (net.backbone, net, net.forward_with_attention, net.forward_with_gap)
    )
    added = {"resnet18": 3.2, "resnet50": 20.7, "convnext_tiny": 4.2, "convnext_base": 6.4}
    assert (stream - plain) / 1e6 == pytest.approx(added[name], abs=0.1)
    assert attention == stream
    assert both == stream + 2 * net.stream.blocks[-1].out.out_features * 1000


def operations(run, images):
    with FlopCounterMode(display=False) as counter:
        run(images)
    return counter.get_total_flops()


@pytest.mark.parametrize(
    ("arguments", "target", "runs"),
    [
        ({}, None, 1),
        ({"train_head": True}, None, 1),
        ({"class_specific": True}, torch.tensor([0, 2]), 1),
        ({"class_specific": True}, None, 2),  # average pooling predicts the class
    ],
)
def test_classifier_runs_once_for_logits(tiny, images, arguments, target, runs):
    net, calls = tiny(**arguments), []
    net.backbone.head.register_forward_hook(lambda *_: calls.append(1))
    logits, attention = net.forward_with_attention(images, target)
    assert len(calls) == runs
    whole = net.forward_with_gap(images, target)
    torch.testing.assert_close((logits, *attention), (whole.logits, *whole.attention), rtol=0, atol=0)


def test_last_stage_that_runs_twice_is_read_the_last_time():
    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.stage, self.head = torch.nn.Conv2d(3, 3, 3, padding=1), torch.nn.Linear(3, 5)

        def forward(self, x):
            return self.head(self.stage(self.stage(x).relu()).mean((2, 3)))

    net = CAStream(Twice(), stages=["stage"], image_size=8)
    images = torch.randn(2, 3, 8, 8)
    _, scores = net.forward_with_attention(images)
    maps = net.backbone.stage(net.backbone.stage(images).relu())
    expected = torch.einsum("bkij,k->bij", maps, net.stream.query[0]) / 3**0.5
    torch.testing.assert_close(scores[0], expected)


def test_docs_page_lists_thirty_networks(script):
    assert len(script.MODELS.split()) >= 30
    for name in script.MODELS.split():
        assert f"| {name} |" in script.FILE.read_text()


@pytest.mark.slow
def test_docs_page_equals_the_networks(script):
    assert script.table().splitlines() == script.FILE.read_text().splitlines()
