"""Distances between maps, and the step after which they stay close, on numbers worked out by hand."""

import pytest
import torch

from interpretable_training.report.film import EmbeddedPictures, Film
from interpretable_training.report.journal import Journal, read_journal
from interpretable_training.report.map_distance import map_distance, mean_distance, read_maps, stabilization_point
from interpretable_training.report.parts import Axis


def test_distance_is_the_share_of_mass_that_moves():
    S = torch.tensor([[4.0, 0.0], [0.0, 4.0]])
    half = torch.tensor([[0.0, 1.0], [0.0, -1.0]])  # magnitudes: one of two halves lies elsewhere
    assert map_distance(S, 7 * S) == 0
    assert map_distance(S, half) == pytest.approx(0.5)
    assert map_distance(S, torch.tensor([[0.0, 1.0], [1.0, 0.0]])) == 1
    assert map_distance(S, torch.zeros(2, 2)) != map_distance(S, torch.zeros(2, 2))  # NaN


def test_distance_is_symmetric_and_obeys_the_triangle_inequality():
    a, b, c = torch.rand(3, 5, 4, generator=torch.Generator().manual_seed(0))
    assert map_distance(a, b) == pytest.approx(map_distance(b, a))
    assert map_distance(a, c) <= map_distance(a, b) + map_distance(b, c)


def test_distance_of_another_grid_scales_the_smaller_map():
    flat = torch.ones(2, 2)
    assert map_distance(flat, torch.ones(4, 4)) == pytest.approx(0, abs=1e-6)
    assert map_distance(torch.tensor([[1.0, 0.0], [0.0, 0.0]]), torch.ones(4, 4)) > 0.3


def test_mean_distance_uses_images_of_both_steps():
    S, moved = torch.tensor([[1.0, 0.0]]), torch.tensor([[0.0, 1.0]])
    assert mean_distance({"a": S, "b": S, "c": S}, {"a": S, "b": moved}) == 0.5
    assert mean_distance({"a": S}, {"b": S}) is None


@pytest.mark.parametrize(
    ("drift", "expected"),
    [
        ([0.5, 0.05, 0.3, 0.1, 0.01], 3),  # the calm step before 0.3 does not count
        ([0.01, 0.01], 0),
        ([0.01, 0.2], None),
        ([0.2, None], None),
        ([], None),
    ],
)
def test_stabilization_point_is_where_all_later_drift_is_small(drift, expected):
    assert stabilization_point(drift) == expected


def test_film_states_the_epoch_from_which_maps_stay(tmp_path):
    """A bright column that walks for three epochs and rests for two."""
    journal = Journal(tmp_path)
    for epoch, column in enumerate((0, 2, 4, 4, 4)):
        S = torch.zeros(1, 6, 6)
        S[0, :, column] = 2.0
        file, ends = journal.save_maps(f"m{epoch}", S)
        rows = [{"id": "7", "lo": ends[0][0], "hi": ends[0][1]}]
        facts = {"group": "panel", "method": "m", "view": "pred", "file": file, "h": 6, "w": 6, "rows": rows}
        journal.write("maps", epoch=10 + epoch, step=epoch, **facts)
    run = read_journal(tmp_path)
    film = Film(run, "panel", Axis(run), EmbeddedPictures(run))
    assert film.part()["stable"] == {0: 12.0}
    (line, *_), S = run.of("maps"), torch.zeros(6, 6).double()
    S[:, 0] = 2
    torch.testing.assert_close(read_maps(line)["7"], S)
