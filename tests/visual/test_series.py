"""Pictures of series and of the maps that explain them."""

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


def test_series_strip_background_and_bar_follow_map_and_answer(series, tmp_path):
    S = torch.zeros(1, 20)
    S[:, 15:] = 1.0
    for name, map_, known in (("late", S, S > 0), ("early", S.flip(1), S.flip(1) > 0)):
        draw_series(series[:1], map_, tmp_path / f"{name}.png", known=known)
    late, early = (read(tmp_path / f"{name}.png") for name in ("late", "early"))
    for color in ((0.988, 1.0, 0.645), (1.0, 0.72, 0.36), (0.173, 0.627, 0.173)):  # of the map's top, background, bar
        a, b = (spread(like(picture, color)[:, 150:]) for picture in (late, early))  # without the name of the bar
        assert a[0] > 0.7
        assert b[1] < 0.5


def test_series_of_constant_map_is_dark(series, tmp_path):
    draw_series(series[:1], torch.ones(1, 20), tmp_path / "a.png")
    picture = read(tmp_path / "a.png")
    assert not like(picture, (1.0, 0.72, 0.36)).any()
    assert not like(picture, (0.988, 1.0, 0.645)).any()


def test_series_has_row_per_map_and_channel(series, tmp_path):
    maps = torch.rand(2, 20, generator=torch.Generator().manual_seed(1))
    draw_series(series, maps, tmp_path / "a.png")
    draw_series(series[:1], maps[:1], tmp_path / "narrow.png")
    draw_series(series, {"a": maps, "b": maps}, tmp_path / "maps.png")
    draw_series(series, maps, tmp_path / "few.png", order=[2, 0], names=["x", "y", "z"], titles=["one", "two"])
    sizes = {path.stem: read(path).shape[:2] for path in tmp_path.glob("*.png")}
    assert sizes["maps"][0] > sizes["a"][0] > sizes["few"][0]
    assert sizes["a"][1] > sizes["narrow"][1]


def test_stretches_of_marked_steps():
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
def test_series_refuses_wrong_shapes(x, maps, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        draw_series(x, maps, tmp_path / "a.png")


GENERATOR = torch.Generator().manual_seed(0)
X, S = torch.randn(2, 3, 20, generator=GENERATOR), torch.rand(2, 20, generator=GENERATOR)
TOP, GREEN = (0.988, 1.0, 0.645), (0.173, 0.627, 0.173)


def drawn(path, series=X, maps=S, **options):
    draw_series(series, maps, path, **options)
    return torch.from_numpy(matplotlib.image.imread(path))[..., :3]


def columns(picture, color):
    """Columns of a picture with such pixels."""
    results = (picture - torch.tensor(color)).abs().amax(2) < 0.02
    return results.any(0).nonzero()[:, 0]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"names": ["a"]}, r"expected 3 names, got 1: \['a'\]"),
        ({"titles": ["a", "b", "c"]}, "expected 2 titles, got 3"),
        ({"order": [0, 3]}, r"channels from 0 to 2 in order, got \[0, 3\]"),
        ({"order": [-1]}, r"channels from 0 to 2 in order, got \[-1\]"),
        ({"known": torch.zeros(2, 7).bool()}, r"expected known time steps \(2, 20\), got \(2, 7\)"),
        ({"known": torch.zeros(20).bool()}, r"expected known time steps \(2, 20\), got \(20,\)"),
        ({"series": X[:0], "maps": S[:0]}, r"at least one series, got \(0, 3, 20\)"),
    ],
)
def test_series_refuses_wrong_options_and_leaves_no_file(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())


def test_series_accepts_half_precision_and_gradients(tmp_path):
    whole = drawn(tmp_path / "a.png", X.bfloat16().float(), S.bfloat16().float())
    half = drawn(tmp_path / "b.png", X.bfloat16().requires_grad_(), S.bfloat16().requires_grad_())
    assert torch.equal(whole, half)


def test_series_scales_each_map_separately(tmp_path):
    """Each map has its own scale; powers of two, so that nothing is rounded."""
    plain = drawn(tmp_path / "a.png")
    assert torch.equal(plain, drawn(tmp_path / "b.png", maps=8 * S))
    other = torch.stack([S[0], 64 * S[1]])  # nor what the other series has
    assert torch.equal(plain, drawn(tmp_path / "c.png", maps=other))


def test_series_draws_maps_with_nan(tmp_path):
    maps = torch.zeros(1, 20)
    maps[0, 12:15] = 1.0
    whole = columns(drawn(tmp_path / "a.png", X[:1], maps), TOP)
    maps[0, 2] = torch.nan
    assert torch.equal(columns(drawn(tmp_path / "b.png", X[:1], maps), TOP), whole)
    assert len(whole) > 10
    drawn(tmp_path / "c.png", torch.full_like(X, torch.nan), torch.full_like(S, torch.nan))


@pytest.mark.parametrize("step", [0, 7, 19])
def test_series_strip_and_bar_have_the_same_time_step(tmp_path, step):
    """The bright cell of the map and the green bar of one time step begin and end together, within a pixel or two."""
    maps = torch.zeros(1, 20)
    maps[0, step] = 1.0
    picture = drawn(tmp_path / "a.png", X[:1], maps, known=maps > 0, known_name="")
    strip, bar = columns(picture, TOP), columns(picture, GREEN)
    assert abs(int(strip.min()) - int(bar.min())) <= 2
    assert abs(int(strip.max()) - int(bar.max())) <= 2
    width = int(strip.max() - strip.min()) + 1
    assert 5 < width < picture.shape[1] / 15


def test_series_draws_one_time_step_and_no_channels(tmp_path):
    assert drawn(tmp_path / "a.png", X[:, :, :1], S[:, :1]).shape[1] > 100
    assert drawn(tmp_path / "b.png", order=[]).shape[0] < drawn(tmp_path / "c.png").shape[0]


def test_series_column_has_lines_of_its_series(tmp_path):
    """The second is the first read backwards, so that both have the same limits."""
    pair, twice = (torch.stack([X[0], other]) for other in (X[0].flip(1), X[0]))
    constant = torch.zeros(2, 20)
    changed = (drawn(tmp_path / "a.png", pair, constant) != drawn(tmp_path / "b.png", twice, constant)).any(2).any(0)
    where = changed.nonzero()[:, 0] / len(changed)
    assert len(where) > 50
    assert where.min() > 0.5


def test_series_column_has_background_of_its_map(tmp_path):
    """The first map is bright at the end of the first column, the second at the beginning of the second column."""
    maps = torch.zeros(2, 20)
    maps[0, 18:] = maps[1, :2] = 1.0
    picture = drawn(tmp_path / "a.png", maps=maps)
    for color in (TOP, (1.0, 0.72, 0.36)):
        where = columns(picture, color) / picture.shape[1]
        assert 0.4 < where.min() < where.max() < 0.7
