"""The figure of curves: its lines are the means, its bands their standard errors."""

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image

from interpretable_training.metrics import ROAD, AverageDrop, Deletion, Insertion, InsertionDeletion, Table
from interpretable_training.visual import draw_faithfulness

CURVES = {"a": [[0.0, 0.5, 1.0], [0.2, 0.7, 1.0], [0.4, 0.9, 1.0]], "b": [[0.1, 0.1, 0.1]] * 3}


def table_of(metrics, curves=CURVES, controls=()):
    sums = {}
    for name, lines in curves.items():
        s = torch.tensor(lines, dtype=torch.float64)
        sums[name] = torch.stack([torch.full_like(s[0], len(s)), s.sum(0), (s**2).sum(0)])
    kinds = {
        "insertion": ["insertion"],
        "both": ["insertion", "deletion"],
        "deletion": ["deletion"],
        "road": ["most salient removed", "least salient removed"],
    }
    n = len(next(iter(curves.values())))
    results = {m: {key: dict.fromkeys(kinds[key], sums[m]) for key in metrics if key in kinds} for m in curves}
    values = {m: {key: torch.full((n, 1), 33.3) for key in metrics} for m in curves}
    flags = {m: torch.zeros(n, dtype=torch.bool) for m in curves}
    images, classes = torch.arange(n), torch.zeros(n).long()
    return Table(images, classes, values, flags, metrics, {"target": "label"}, results, next(iter(curves)), controls)


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Draws a table and returns the axes of the figure."""
    figures = []
    save = matplotlib.figure.Figure.savefig
    monkeypatch.setattr(matplotlib.figure.Figure, "savefig", lambda f, *a, **k: (figures.append(f), save(f, *a, **k)))

    def draw(table):
        draw_faithfulness(table, tmp_path / "curves.png")
        assert np.asarray(Image.open(tmp_path / "curves.png").convert("RGB")).std() > 5
        return figures[-1].axes

    return draw


def test_faithfulness_lines_are_means_with_error_bands(drawn):
    (axes,) = drawn(table_of({"insertion": Insertion()}))
    line = axes.lines[0]
    assert line.get_xdata().tolist() == [0, 50, 100]
    assert np.allclose(line.get_ydata(), [0.2, 0.7, 1.0])
    band = axes.collections[0].get_paths()[0].vertices
    error = np.std([0.0, 0.2, 0.4], ddof=1) / 3**0.5
    at_zero = band[np.isclose(band[:, 0], 0), 1]
    assert np.isclose(at_zero.min(), 0.2 - 1.96 * error)
    assert np.isclose(at_zero.max(), 0.2 + 1.96 * error)
    flat = axes.collections[1].get_paths()[0].vertices
    assert np.allclose(flat[:, 1], 0.1)  # equal curves have no band


def test_faithfulness_has_panel_per_curve_and_line_per_method(drawn):
    axes = drawn(table_of({"insertion": Insertion(), "drop": AverageDrop(), "both": InsertionDeletion()}))
    assert [one.get_title() for one in axes] == ["insertion", "insertion (both)", "deletion (both)"]
    for one in axes:
        assert [line.get_label().split()[0] for line in one.lines] == ["a", "b"]
        assert one.get_xlabel() == "% of the pixels"
        assert one.get_ylabel() == "prob of the class"
    assert "33.3" in axes[0].lines[0].get_label()


def test_faithfulness_controls_are_gray_and_dashed(drawn):
    (axes,) = drawn(table_of({"deletion": Deletion(score="logit")}, controls=("b",)))
    assert [line.get_linestyle() for line in axes.lines] == ["-", "--"]
    assert axes.lines[1].get_color() == "0.5"
    assert axes.get_ylabel() == "logit of the class"
    assert axes.get_legend().get_title().get_text() == "lower is better"


@pytest.mark.parametrize("percentages", [(10, 30, 90), (40,)])
def test_faithfulness_uses_the_percentages_of_the_passport(drawn, percentages):
    curves = {name: [line[: len(percentages)] for line in lines] for name, lines in CURVES.items()}
    axes = drawn(table_of({"road": ROAD(percentages)}, curves))
    assert [one.get_title() for one in axes] == ["most salient removed (road)", "least salient removed (road)"]
    assert axes[0].lines[0].get_xdata().tolist() == list(percentages)


def test_faithfulness_of_one_or_no_image_has_no_band(drawn):
    (axes,) = drawn(table_of({"insertion": Insertion()}, {"a": [[0.1, 0.2, 0.4]]}))
    assert np.allclose(axes.lines[0].get_ydata(), [0.1, 0.2, 0.4])
    none = table_of({"insertion": Insertion()}, {"a": [[0.1, 0.2, 0.4]]})
    none.curves["a"]["insertion"]["insertion"] = torch.zeros(3, 3)
    (axes,) = drawn(none)
    assert np.isnan(axes.lines[0].get_ydata()).all()


def test_faithfulness_refuses_a_table_without_curves(tmp_path):
    with pytest.raises(ValueError, match=r"expected a table with curves, got one of \['drop'\]; add Insertion"):
        draw_faithfulness(table_of({"drop": AverageDrop()}), tmp_path / "curves.png")
