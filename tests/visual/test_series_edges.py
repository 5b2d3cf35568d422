"""Pictures of series at their edges: what cannot be drawn is refused in words, what can be is drawn as it is."""

import matplotlib.image
import pytest
import torch

from interpretable_training.visual import draw_series

GENERATOR = torch.Generator().manual_seed(0)
X, S = torch.randn(2, 3, 20, generator=GENERATOR), torch.rand(2, 20, generator=GENERATOR)
TOP, GREEN = (0.988, 1.0, 0.645), (0.173, 0.627, 0.173)


def drawn(path, series=X, maps=S, **options):
    draw_series(series, maps, path, **options)
    return torch.from_numpy(matplotlib.image.imread(path))[..., :3]


def columns(picture, color):
    """Columns of a picture with such pixels."""
    found = (picture - torch.tensor(color)).abs().amax(2) < 0.02
    return found.any(0).nonzero()[:, 0]


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
def test_what_does_not_fit_is_refused_and_no_file_is_left(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        drawn(tmp_path / "a.png", **options)
    assert not list(tmp_path.iterdir())


def test_precision_and_gradients_are_all_the_same(tmp_path):
    whole = drawn(tmp_path / "a.png", X.bfloat16().float(), S.bfloat16().float())
    half = drawn(tmp_path / "b.png", X.bfloat16().requires_grad_(), S.bfloat16().requires_grad_())
    assert torch.equal(whole, half)


def test_a_scale_and_a_shift_of_a_map_change_nothing(tmp_path):
    """Each map has its own scale; powers of two, so that nothing is rounded."""
    plain = drawn(tmp_path / "a.png")
    assert torch.equal(plain, drawn(tmp_path / "b.png", maps=8 * S))
    other = torch.stack([S[0], 64 * S[1]])  # nor what the other series has
    assert torch.equal(plain, drawn(tmp_path / "c.png", maps=other))


def test_numbers_that_are_none_leave_the_rest_of_the_map_to_be_seen(tmp_path):
    maps = torch.zeros(1, 20)
    maps[0, 12:15] = 1.0
    whole = columns(drawn(tmp_path / "a.png", X[:1], maps), TOP)
    maps[0, 2] = torch.nan
    assert torch.equal(columns(drawn(tmp_path / "b.png", X[:1], maps), TOP), whole)
    assert len(whole) > 10
    drawn(tmp_path / "c.png", torch.full_like(X, torch.nan), torch.full_like(S, torch.nan))


@pytest.mark.parametrize("step", [0, 7, 19])
def test_strip_and_bar_are_over_the_same_time_step(tmp_path, step):
    """The bright cell of the map and the green bar of one time step begin and end together, within a pixel or two."""
    maps = torch.zeros(1, 20)
    maps[0, step] = 1.0
    picture = drawn(tmp_path / "a.png", X[:1], maps, known=maps > 0, known_name="")
    strip, bar = columns(picture, TOP), columns(picture, GREEN)
    assert abs(int(strip.min()) - int(bar.min())) <= 2
    assert abs(int(strip.max()) - int(bar.max())) <= 2
    width = int(strip.max() - strip.min()) + 1
    assert 5 < width < picture.shape[1] / 15


def test_a_single_time_step_and_no_channels_are_drawn(tmp_path):
    assert drawn(tmp_path / "a.png", X[:, :, :1], S[:, :1]).shape[1] > 100
    assert drawn(tmp_path / "b.png", order=[]).shape[0] < drawn(tmp_path / "c.png").shape[0]


def test_each_column_has_the_lines_of_its_own_series(tmp_path):
    """The second is the first read backwards, so that both have the same limits."""
    pair, twice = (torch.stack([X[0], other]) for other in (X[0].flip(1), X[0]))
    constant = torch.zeros(2, 20)
    changed = (drawn(tmp_path / "a.png", pair, constant) != drawn(tmp_path / "b.png", twice, constant)).any(2).any(0)
    where = changed.nonzero()[:, 0] / len(changed)
    assert len(where) > 50
    assert where.min() > 0.5


def test_each_column_has_the_background_of_its_own_map(tmp_path):
    """The first map is bright at the end of the first column, the second at the beginning of the second column."""
    maps = torch.zeros(2, 20)
    maps[0, 18:] = maps[1, :2] = 1.0
    picture = drawn(tmp_path / "a.png", maps=maps)
    for color in (TOP, (1.0, 0.72, 0.36)):
        where = columns(picture, color) / picture.shape[1]
        assert 0.4 < where.min() < where.max() < 0.7
