"""What the stream costs in operations, and the page that lists where it attaches."""

import importlib.util
from pathlib import Path

import pytest

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
    _, stream, head = script.flops(name)
    steps = zip(sides, channels, channels[1:])
    assert stream == sum(4 * side**2 * d + 2 * d * d_next for side, d, d_next in steps)
    assert head == 2 * channels[-1] * 1000
    gap, ca = script.THESIS[name]
    assert stream / 1e9 == pytest.approx(ca - gap, rel=0.2, abs=0.001 if name == "resnet18" else 0)


def test_the_page_has_thirty_networks(script):
    assert len(script.MODELS.split()) >= 30
    for name in script.MODELS.split():
        assert f"| {name} |" in script.FILE.read_text()


@pytest.mark.slow
def test_the_page_says_what_the_networks_do(script):
    assert script.table().splitlines() == script.FILE.read_text().splitlines()
