"""What the stream costs in operations, and the page that lists where it attaches."""

import importlib.util
from pathlib import Path

import pytest
import torch
import torchvision
from torch.utils.flop_counter import FlopCounterMode

from interpretable_training.models import CAStream

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
        ("convnext_small", (56, 28, 14, 7), (96, 192, 384, 768, 768)),
        ("convnext_base", (56, 28, 14, 7), (128, 256, 512, 1024, 1024)),
    ],
)
def test_operations_are_those_of_the_formula_and_near_the_printed_ones(script, name, sides, channels):
    """Scores and pooling take 2 p d each, the projection 2 d d'. What the thesis prints is rounded to 0.001."""
    _, stream = script.flops(name)
    steps = zip(sides, channels, channels[1:])
    assert stream == sum(4 * side**2 * d + 2 * d * d_next for side, d, d_next in steps)
    gap, ca = script.THESIS[name]
    assert stream / 1e9 == pytest.approx(ca - gap, rel=0.2, abs=0.001 if name == "resnet18" else 0)


@pytest.mark.parametrize(
    ("name", "added"), [("resnet18", 3.2), ("resnet50", 20.7), ("convnext_tiny", 4.2), ("convnext_base", 6.4)]
)
def test_logits_cost_what_the_stream_adds(name, added):
    """In million operations: the plain network's classifier is not run beside the stream's."""
    with torch.device("meta"):
        net, images = CAStream(torchvision.models.get_model(name)), torch.empty(1, 3, 224, 224)
    plain, stream, attention, both = (
        operations(run, images) for run in (net.gap(), net, net.forward_with_attention, net.look)
    )
    assert (stream - plain) / 1e6 == pytest.approx(added, abs=0.1)
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
def test_the_classifier_runs_once_for_logits(tiny, images, arguments, target, runs):
    net, calls = tiny(**arguments), []
    net.backbone.head.register_forward_hook(lambda *_: calls.append(1))
    logits, attention = net.forward_with_attention(images, target)
    assert len(calls) == runs
    whole = net.look(images, target)
    torch.testing.assert_close((logits, *attention), (whole.logits, *whole.attention), rtol=0, atol=0)


def test_a_last_stage_that_runs_twice_is_seen_the_last_time():
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


def test_the_page_has_thirty_networks(script):
    assert len(script.MODELS.split()) >= 30
    for name in script.MODELS.split():
        assert f"| {name} |" in script.FILE.read_text()


@pytest.mark.slow
def test_the_page_says_what_the_networks_do(script):
    assert script.table().splitlines() == script.FILE.read_text().splitlines()
