import matplotlib.image
import pytest
import torch

from interpretable_training.visual import draw_series
from interpretable_training.visual.series import stretches


@pytest.fixture
def series():
    return torch.randn(2, 3, 20, generator=torch.Generator().manual_seed(0))


def spread(pixels):
    """The columns of a picture with such pixels, first and last, as shares of its width."""
    columns = pixels.any(0).nonzero()[:, 0]
    return columns.min().item() / pixels.shape[1], columns.max().item() / pixels.shape[1]


def read(path):
    return torch.from_numpy(matplotlib.image.imread(path))[..., :3].double()


def like(picture, color):
    return (picture - torch.tensor(color, dtype=torch.float64)).abs().amax(2) < 0.02


def test_bright_strips_orange_backgrounds_and_the_bar_are_where_the_map_and_the_answer_are(series, tmp_path):
    S = torch.zeros(1, 20)
    S[:, 15:] = 1.0
    for name, map_, known in (("late", S, S > 0), ("early", S.flip(1), S.flip(1) > 0)):
        draw_series(series[:1], map_, tmp_path / f"{name}.png", known=known)
    late, early = (read(tmp_path / f"{name}.png") for name in ("late", "early"))
    for color in ((0.988, 1.0, 0.645), (1.0, 0.72, 0.36), (0.173, 0.627, 0.173)):  # of the map's top, background, bar
        a, b = (spread(like(picture, color)[:, 150:]) for picture in (late, early))  # without the name of the bar
        assert a[0] > 0.7
        assert b[1] < 0.5


def test_a_constant_map_is_dark_and_colors_no_background(series, tmp_path):
    draw_series(series[:1], torch.ones(1, 20), tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert not like(picture, (1.0, 0.72, 0.36)).any()
    assert not like(picture, (0.988, 1.0, 0.645)).any()


def test_a_row_for_each_map_and_channel_and_a_column_for_each_series(series, tmp_path):
    maps = torch.rand(2, 20, generator=torch.Generator().manual_seed(1))
    draw_series(series, maps, tmp_path / "a.png")
    draw_series(series[:1], maps[:1], tmp_path / "narrow.png")
    draw_series(series, {"a": maps, "b": maps}, tmp_path / "maps.png")
    draw_series(series, maps, tmp_path / "few.png", order=[2, 0], names=["x", "y", "z"], titles=["one", "two"])
    sizes = {path.stem: read(path).shape[:2] for path in tmp_path.glob("*.png")}
    assert sizes["maps"][0] > sizes["a"][0] > sizes["few"][0]
    assert sizes["a"][1] > sizes["narrow"][1]


def test_stretches_that_are_marked():
    assert stretches(torch.tensor([1, 0, 1, 1, 0, 1]).bool()) == [(0, 1), (2, 4), (5, 6)]
    assert stretches(torch.zeros(3).bool()) == []


@pytest.mark.parametrize(
    ("x", "maps", "message"),
    [
        (
            torch.zeros(2, 3, 8, 8),
            torch.zeros(2, 8),
            r"expected series \(B, C, T\), got \(2, 3, 8, 8\); draw images with",
        ),
        (torch.zeros(2, 3, 8), torch.zeros(2, 3, 8), r"expected a map \(2, 8\) of 'map', got \(2, 3, 8\)"),
        (torch.zeros(2, 3, 8), {}, "at least one map"),
    ],
)
def test_what_cannot_be_drawn_is_refused(x, maps, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_series(x, maps, tmp_path / "a.png")
