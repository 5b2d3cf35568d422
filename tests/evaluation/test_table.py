"""What is told of numbers per image, and how it is written."""

import csv
import io
import json
import math
import re
import sys
from types import SimpleNamespace

import pytest
import torch
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, GradCAM, HiResCAM, LayerCAM, normalize
from interpretable_training.evaluation import bootstrap
from interpretable_training.evaluation.bootstrap import BootstrapDraws, interval, p_value
from interpretable_training.evaluation.table_formats import left_out
from interpretable_training.metrics import (
    ADCC,
    AverageDrop,
    Complexity,
    Deletion,
    Insertion,
    Table,
    evaluate,
    join,
)

NAN = math.nan


def table_of(values, metrics=None, reference=None, images=None, **options):
    """A table of numbers (n,) or (n, columns) by method and metric."""
    values = {
        method: {key: torch.as_tensor(results, dtype=torch.float64) for key, results in columns.items()}
        for method, columns in values.items()
    }
    values = {m: {k: v[:, None] if v.ndim == 1 else v for k, v in columns.items()} for m, columns in values.items()}
    first = next(iter(values.values()))
    n = len(next(iter(first.values())))
    facts = {"target": "label"}
    degenerate = {name: torch.zeros(n, dtype=torch.bool) for name in values}
    metrics = metrics or {key: AverageDrop() for key in first}
    images = torch.arange(n) if images is None else torch.tensor(images)
    reference = reference or next(iter(values))
    return Table(images, torch.zeros(n).long(), values, degenerate, metrics, facts, {}, reference, **options)


def test_a_cell_by_hand():
    table = table_of({"a": {"ad": [1.0, 2, NAN, 6]}, "b": {"ad": [3.0, NAN, 1, 5]}})
    a, b = table["a", "ad"], table["b", "ad"]
    assert (a.mean, a.n, a.n_invalid) == (3, 3, 1)
    assert (b.mean, b.n, b.n_invalid) == (3, 3, 1)
    assert b.difference == (2 - 1) / 2  # on the images 0 and 3, which have both
    assert (a.difference, math.isnan(a.p)) == (0, True)
    assert a.low <= a.mean <= a.high
    assert b.difference_low == -1
    assert b.difference_high == 2


def test_columns_are_averaged_before_they_are_aggregated():
    """coherency, complexity, drop of two images: the harmonic mean of 0.75, 1 - 0.5, 1 - 0.5."""
    numbers = [[0.5, 0.25, 0.5], [1.0, 0.75, 0.5]]
    table = table_of({"a": {"adcc": numbers}}, {"adcc": ADCC(average="dataset")})
    expected = 3 / (1 / 0.75 + 1 / 0.5 + 1 / 0.5)
    assert table["a", "adcc"].mean == pytest.approx(expected)
    each = [3 / (1 / 0.5 + 1 / 0.75 + 1 / 0.5), 3 / (1 / 1 + 1 / 0.25 + 1 / 0.5)]
    assert_close(table.per_image("a", "adcc"), torch.tensor(each, dtype=torch.float64))
    assert min(each) == pytest.approx(table["a", "adcc"].low)
    assert max(each) == pytest.approx(table["a", "adcc"].high)


def test_equal_columns_get_no_star_and_a_shift_gets_one():
    x = torch.randn(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    table = table_of({"a": {"ad": x}, "same": {"ad": x.clone()}, "more": {"ad": x + 1}}, resamples=400)
    assert (table["same", "ad"].difference, table["same", "ad"].p) == (0, 1)
    assert table["more", "ad"].difference == pytest.approx(1)
    assert table["more", "ad"].p == 2 / 401
    lines = {line.split()[0]: line for line in table.to_text().splitlines() if line[:1].isalpha()}
    assert "*" not in lines["a"] + lines["same"]
    assert "*" in next(line for line in table.to_text().splitlines() if line.startswith("more"))


def test_rounding_is_no_difference():
    x = torch.rand(30, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = 1e-7 * torch.rand(30, generator=torch.Generator().manual_seed(1), dtype=torch.float64)  # always above 0
    table = table_of({"a": {"ad": x}, "noisy": {"ad": x + noise}, "more": {"ad": x + 1e-3 + noise}}, resamples=400)
    assert (table["noisy", "ad"].difference, table["noisy", "ad"].p) == (0, 1)
    assert table["more", "ad"].difference == pytest.approx(1e-3, rel=1e-3)
    assert table["more", "ad"].p == 2 / 401


def test_methods_that_are_equal_on_paper_get_no_star(network, images, target):
    """With features that are averaged and classified by one layer, Grad-CAM and HiRes-CAM are one method.

    In float64: in float32 two pixels may change their order by rounding, which insertion shows.
    """
    methods, metrics = {"gradcam": GradCAM("4"), "hirescam": HiResCAM("4")}, [Insertion(steps=6), AverageDrop()]
    table = evaluate(network, methods, metrics, (images, target), progress=False, resamples=200)
    for metric in table.metrics:
        assert (table["hirescam", metric].difference, table["hirescam", metric].p) == (0, 1)


def test_intervals_are_over_images_not_rows():
    """Ten rows of each image say no more than one."""
    x = torch.randn(12, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    once = table_of({"a": {"ad": x}}, resamples=100)["a", "ad"]
    often = table_of({"a": {"ad": x.repeat(10)}}, images=list(range(12)) * 10, resamples=100)["a", "ad"]
    assert often.n == 120
    assert (often.low, often.high) == pytest.approx((once.low, once.high))


def test_several_labels_make_several_rows_and_the_sigmoid_scores_them(network, images):
    labels = torch.tensor([[1, 0, 1, 0], [0, 0, 0, 0], [0, 1, 0, 0], [1, 1, 1, 1], [0, 0, 0, 1]])
    for batch in (5, 1, 2):  # of which some hold no label at all
        data = list(zip(images.split(batch), labels.split(batch)))
        table = evaluate(network, GradCAM("3"), AverageDrop(), data, multilabel=True, resamples=9, progress=False)
        assert table.images.tolist() == [0, 0, 2, 3, 3, 3, 3, 4]
        assert table.classes.tolist() == [0, 2, 1, 0, 1, 2, 3, 3]
        assert "4 images (8 pairs of image and class)" in table.to_text()
        assert table.passports["average_drop"]["score"] == "sigmoid"
    x = images[table.images]
    masked = x * table_maps(network, x, table.classes)[:, None]
    p, o = (network(z).sigmoid()[range(8), table.classes] for z in (x, masked))
    assert_close(table.per_image("gradcam", "average_drop"), 100 * ((p - o).relu() / p).detach())


def table_maps(network, images, target):
    return normalize(GradCAM("3")(network, images, target))


@pytest.fixture
def table(network, images, target):
    methods = {"grad_cam": GradCAM("3"), "layer_cam": LayerCAM("0"), "x|y & 100% {$#^~\\": LayerCAM("3")}
    metrics = {f"deletion_in_{n}": Deletion(steps=n) for n in (2, 3, 4, 5, 6)}
    metrics |= {"complexity": Complexity(), "insertion": Insertion(steps=2), "ad*": AverageDrop()}
    images[1, 0, 0, 0] = NAN  # counted, not averaged away
    return evaluate(network, methods, metrics, (images, target), resamples=40, progress=False)


def test_text_fits_a_terminal_and_tells_what_it_leaves_out(table):
    text = table.to_text()
    assert max(map(len, text.splitlines())) <= 120
    assert repr(table) == text
    assert all(name in text for name in (*table.values, *table.metrics))
    assert "fakecam (control)" in text
    assert "all methods, deletion_in_2, deletion_in_3, deletion_in_4" in text.replace("\n", " ")
    assert "grad_cam: 2 of 5 maps are constant or not numbers." in text.replace("\n", " ")
    assert "5 images, class: label." in text
    assert all(number(table[key].mean) in text for key in table.cells)


def number(value):
    return f"{value:.2f}" if abs(value) >= 10 or value == 0 else f"{value:.3g}"


def test_markdown_has_as_many_cells_in_each_line(table):
    blocks = table.to_markdown().split("\n\n")
    assert len(blocks) == 3
    for block in blocks[:2]:
        rows = [re.split(r"(?<!\\)\|", line) for line in block.splitlines()]
        assert {len(row) for row in rows} == {len(table.metrics) + 3}  # one empty at each side, and the names
        assert all(cell.strip(" -:") == "" for cell in rows[1])
    assert [line.split("|")[1].strip() for line in blocks[0].splitlines()][2:4] == ["grad_cam", "layer_cam"]


def test_a_name_of_two_lines_stays_in_its_line_of_latex():
    table = table_of({"first\n\\input{theirs}": {"ad": [1.0, 2]}, "b": {"ad": [NAN, 1]}})
    assert all(line.startswith(("%", "\\begin", "\\end", "\\hline", " & ", "first ", "b ")) for line in latex(table))


def latex(table):
    return table.to_latex().splitlines()


def test_latex_is_escaped_and_balanced(table):
    lines = [line for line in table.to_latex().splitlines() if not line.startswith("%")]
    assert lines[0] == r"\begin{tabular}{lrrrrrrrr}"
    assert lines[-1] == r"\end{tabular}"
    rows = [line for line in lines if line.endswith(r"\\")]
    assert len(rows) == 1 + len(table.values)
    for row in rows:
        assert len(re.findall(r"(?<!\\)&", row)) == len(table.metrics)
        bare = re.sub(r"\\[_%&#${}]", "", row)
        assert bare.count("{") == bare.count("}")
        assert bare.count("$") % 2 == 0
        assert not re.search(r"[_%#~*|]", re.sub(r"\$\^\*\$|\|", "", bare))
    assert r"x|y \& 100\% \{\$\#\textasciicircum{}\textasciitilde{}\textbackslash{}" in "\n".join(rows)


def test_csv_parses_back(table):
    rows = list(csv.DictReader(io.StringIO(table.to_csv())))
    assert len(rows) == len(table.values) * len(table.metrics)
    for row in rows:
        cell = table[row["method"], row["metric"]]
        for name in ("mean", "low", "high", "difference", "difference_low", "difference_high", "p"):
            assert float(row[name]) == getattr(cell, name) or math.isnan(float(row[name]))
        assert (int(row["n"]), int(row["n_invalid"])) == (cell.n, cell.n_invalid)
        assert row["reference"] == "grad_cam"
        assert row["direction"] == table.passports[row["metric"]]["direction"]


def test_everything_is_saved(table, tmp_path):
    files = table.save(tmp_path / "new" / "folder")
    names = ["table.txt", "table.md", "table.tex", "table.csv", "values.csv", "passports.json"]
    assert [file.name for file in files] == names
    assert all(file.read_text(encoding="utf-8").endswith("\n") for file in files)
    rows = list(csv.DictReader(files[4].open()))
    assert len(rows) == len(table) * len(table.values)
    for row in rows:
        results = table.per_image(row["method"], "insertion")[int(row["image"])].item()
        assert float(row["insertion"]) == results or math.isnan(results)
        assert int(row["class"]) == table.classes[int(row["image"])]
        assert bool(int(row["degenerate"])) == bool(table.degenerate[row["method"]][int(row["image"])])
    printed = json.loads(files[5].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert printed["metrics"] == table.passports
    assert printed["evaluation"]["target"] == "label"


def test_pandas_gets_a_row_for_each_cell(table, monkeypatch):
    pandas = pytest.importorskip("pandas")
    frame = table.to_pandas().set_index(["method", "metric"])
    assert frame["mean"].to_dict() == pytest.approx({key: cell.mean for key, cell in table.cells.items()}, nan_ok=True)
    assert isinstance(frame, pandas.DataFrame)
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match=r"expected the package pandas .* pip install pandas"):
        table.to_pandas()


def test_html_has_as_many_cells_in_each_row_and_escapes_names():
    table = table_of({"<b>a": {"ad": [1.0, 2.0]}, "b": {"ad": [2.0, 3.0]}})
    text = table._repr_html_()
    assert "<b>a" not in text
    assert "&lt;b&gt;a" in text
    rows = re.findall(r"<tr>(.*?)</tr>", text)
    assert len(rows) == 3 + 2  # means with a heading, then differences
    assert {row.count("<td>") + row.count("<th>") for row in rows} == {2}


def test_wandb_gets_a_row_for_each_cell(table, monkeypatch):
    monkeypatch.setenv("WANDB_MODE", "disabled")
    results = table.to_wandb()
    assert results.columns[:3] == ["method", "metric", "mean"]
    assert {"p", "low", "high", "n", "n_invalid", "n_degenerate", "reference", "unit"} < set(results.columns)
    assert [tuple(row[:2]) for row in results.data] == list(table.cells)


def test_a_cell_that_does_not_exist_is_a_sentence(table):
    with pytest.raises(KeyError, match=r"expected .method, metric. of .*grad_cam.*got .'grad_cam', 'drop'"):
        table["grad_cam", "drop"]


@pytest.mark.parametrize("key", [("c", "ad"), ("a", "zz")])
def test_numbers_of_a_cell_that_does_not_exist_are_refused(key):
    with pytest.raises(KeyError, match=r"expected \(method, metric\) of \['a'\] and \['ad'\], got"):
        table_of({"a": {"ad": [1.0]}}).per_image(*key)


@pytest.mark.parametrize("tables", [None, 3, [1], {"a": "b"}])
def test_what_are_no_tables_do_not_join(tables):
    with pytest.raises(TypeError, match="expected tables as a dict name -> Table, got"):
        join(tables)


def test_without_a_number_nothing_is_made_up():
    table = table_of({"a": {"ad": [1.0, 2]}, "b": {"ad": [NAN, NAN]}}, resamples=20)
    cell = table["b", "ad"]
    assert (cell.n, cell.n_invalid) == (0, 2)
    assert all(math.isnan(value) for value in (cell.mean, cell.low, cell.high, cell.difference, cell.p))
    assert table.to_text().splitlines()[2].split() == ["b", "-", "[-,", "-]"]


def test_joined_tables_compare_models(network, images, target):
    """The second model is the first one: each of its methods equals its twin."""
    options = {"resamples": 40, "progress": False}
    one = evaluate(network, GradCAM("3"), [AverageDrop(), Insertion(steps=3)], (images, target), **options)
    both = join({"before": one, "after": one})
    assert list(both.values) == [f"{a}/{b}" for a in ("before", "after") for b in ("gradcam", "fakecam", "random")]
    assert both.reference == "before/gradcam"
    assert both.controls == ["before/fakecam", "before/random", "after/fakecam", "after/random"]
    assert both["after/gradcam", "insertion"].mean == pytest.approx(one["gradcam", "insertion"].mean)
    assert (both["after/gradcam", "insertion"].difference, both["after/gradcam", "insertion"].p) == (0, 1)
    assert both["after/fakecam", "insertion"].p == one["fakecam", "insertion"].p
    assert "class: label" in both.to_text()
    assert both.facts["after/weights"] == one.facts["weights"]
    assert join({"a": one, "b": one}, "b/fakecam")["a/fakecam", "average_drop"].difference == 0


def test_tables_of_other_passports_or_images_do_not_join(network, images, target):
    def table(metric=None, n=5, explained="label"):
        data = [(images[:n], target[:n])]
        return evaluate(network, FakeCAM(), metric or AverageDrop(), data, explained, resamples=5, progress=False)

    one = table()
    for other, message in (
        (table(AverageDrop(topk=50)), "same passport, got mask: 'map' and 'highest 50 percent"),
        (table(Complexity()), r"expected the metrics \['average_drop'\] in each table, got \['complexity'\]"),
        (table(n=4), "expected the same images and classes in each table, got others in 'b'"),
        (table(explained="least"), "expected the same images and classes"),
    ):
        with pytest.raises(ValueError, match=message):
            join({"a": one, "b": other})
    with pytest.raises(ValueError, match=r"expected a reference among \['a/fakecam', 'a/random'\], got 'fakecam'"):
        join({"a": one}, "fakecam")
    with pytest.raises(ValueError, match="expected at least one table"):
        join({})


def test_what_is_left_out_is_said_once():
    """By methods and metrics that lack equally many rows."""

    def cell(method, metric, n):
        return SimpleNamespace(method=method, metric=metric, n_invalid=n)

    counts = {("a", "x"): 2, ("b", "x"): 2, ("a", "y"): 2, ("b", "y"): 2, ("b", "z"): 1, ("a", "z"): 0}
    printed = SimpleNamespace(
        cells={key: cell(*key, n) for key, n in counts.items()},
        metrics=dict.fromkeys("xyz", SimpleNamespace(why_no_number="are not numbers and")),
        curves={"a": {}, "b": {}},
    )
    assert left_out(printed) == [
        "all methods, x, y: 2 rows are not numbers and left out.",
        "b, z: 1 rows are not numbers and left out.",
    ]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def slow_means(images, values, resamples, seed):
    """(1) with lists: draw images, put their rows together, average what is a number."""
    ids = sorted(set(images.tolist()))
    drawn = torch.randint(len(ids), (resamples, len(ids)), generator=torch.Generator().manual_seed(seed))
    out = []
    for row in drawn.tolist():
        picked = [values[images == ids[i]] for i in row]
        out.append(torch.cat(picked).nanmean(0))
    return torch.stack(out)


@pytest.mark.parametrize(
    "images",
    [torch.arange(7), torch.tensor([5, 5, 2, 9, 9, 9, 2]), torch.tensor([4] * 7)],
    ids=["one row each", "several rows", "one image"],
)
def test_means_are_those_of_a_slow_loop(images):
    values = normal(7, 3)
    values[1, 0] = values[4, 1] = math.nan
    assert_close(BootstrapDraws(images, 20, seed=3).means(values), slow_means(images, values, 20, 3))


def test_means_do_not_depend_on_how_many_are_drawn_at_once(monkeypatch):
    values = normal(6, 2)
    whole = BootstrapDraws(torch.arange(6), 11).means(values)
    for at_once in (1, 13, 30):
        monkeypatch.setattr(bootstrap, "AT_ONCE", at_once)
        assert_close(BootstrapDraws(torch.arange(6), 11).means(values), whole, rtol=0, atol=0)


def test_seeds_decide_the_draws_and_no_other_generator_is_touched():
    values, state = normal(9, 1), torch.get_rng_state()
    first = BootstrapDraws(torch.arange(9), 30, seed=1).means(values)
    assert_close(BootstrapDraws(torch.arange(9), 30, seed=1).means(values), first, rtol=0, atol=0)
    assert not torch.equal(BootstrapDraws(torch.arange(9), 30, seed=2).means(values), first)
    assert torch.equal(torch.get_rng_state(), state)


def test_columns_are_drawn_alike():
    """Else the difference of a column and itself plus 1 would vary."""
    a = normal(8, 1)
    m = BootstrapDraws(torch.arange(8), 40).means(torch.cat([a, a + 1], 1))
    assert_close(m[:, 1] - m[:, 0], torch.ones(40, dtype=torch.float64))


def test_the_interval_of_normal_data_is_known():
    """mean +- 1.96 s / sqrt(n), up to the noise of 4000 draws."""
    n, x = 400, 5 + 2 * normal(400, 1)
    low, high = interval(BootstrapDraws(torch.arange(n), 4000).means(x)[:, 0])
    half = 1.96 * float(x.std(correction=0)) / math.sqrt(n)
    assert abs(low - (float(x.mean()) - half)) < 0.08 * half
    assert abs(high - (float(x.mean()) + half)) < 0.08 * half


def test_the_interval_holds_the_true_mean_about_as_often_as_it_says():
    x = normal(40, 300)  # 300 data sets of 40 images with the true mean 0
    m = BootstrapDraws(torch.arange(40), 500).means(x)
    held = sum(low <= 0 <= high for low, high in map(interval, m.unbind(1))) / 300
    assert 0.89 <= held <= 0.98


def test_rows_of_one_image_do_not_make_the_interval_narrower():
    """Each image ten times is no more evidence than once."""
    x, ten = normal(30, 1), torch.arange(30).repeat(10)
    once = interval(BootstrapDraws(torch.arange(30), 200).means(x)[:, 0])
    assert interval(BootstrapDraws(ten, 200).means(x.repeat(10, 1))[:, 0]) == pytest.approx(once)


def test_the_interval_by_hand():
    """Of the draws 0..100, in whatever order, percentiles are the numbers themselves."""
    m = torch.arange(101.0, dtype=torch.float64).flip(0)
    assert interval(m) == (2.5, 97.5)
    assert interval(torch.cat([m, torch.tensor([math.nan])])) == (2.5, 97.5)
    assert interval(torch.full((9,), 3.0)) == (3.0, 3.0)
    assert all(map(math.isnan, interval(torch.tensor([math.nan]))))


def test_p_values_by_hand():
    d = torch.tensor([1.0, 2, 3, -1, 0, 4, 5, 6, 7])
    assert p_value(d) == 2 * (1 + 2) / 10  # -1 and 0 are not above 0
    assert p_value(-d) == p_value(d)
    assert p_value(d, rounding=1.5) == 2 * (1 + 3) / 10  # 1 counts as 0 too
    assert p_value(torch.ones(999)) == 2 / 1000  # the least that 999 draws can say
    assert p_value(torch.zeros(999)) == 1
    assert p_value(torch.full((999,), 1e-9), rounding=1e-8) == 1
    assert math.isnan(p_value(torch.tensor([math.nan])))


def test_equal_columns_have_a_p_of_one_and_a_shift_the_least():
    x = normal(50, 1)
    m = BootstrapDraws(torch.arange(50), 500).means(torch.cat([x, x, x + 0.5, x + normal(50, 1, seed=9) * 3], 1))
    d = m - m[:, :1]
    assert p_value(d[:, 1]) == 1
    assert p_value(d[:, 2]) == 2 / 501  # paired: x itself cancels, however much it varies
    assert p_value(d[:, 3]) > 0.05


def test_pairing_finds_what_an_unpaired_comparison_does_not():
    x = 10 * normal(40, 1)
    y = x + 0.5 + 0.1 * normal(40, 1, seed=1)
    draws = BootstrapDraws(torch.arange(40), 500)
    m = draws.means(torch.cat([x, y], 1))
    unpaired = draws.means(y)[:, 0] - BootstrapDraws(torch.arange(40), 500, seed=7).means(x)[:, 0]
    assert p_value(m[:, 1] - m[:, 0]) == 2 / 501
    assert p_value(unpaired) > 0.2


def test_p_values_of_no_difference_are_spread_evenly():
    """Under the null hypothesis a tenth of them lies below 0.1."""
    d = BootstrapDraws(torch.arange(60), 400).means(normal(60, 400))
    below = sum(p_value(column) < 0.1 for column in d.unbind(1)) / 400
    assert 0.06 < below < 0.16


def test_draws_without_a_number_are_left_out():
    """One of two images has no number: a draw that holds only that one says nothing."""
    m = BootstrapDraws(torch.arange(2), 200).means(torch.tensor([[math.nan], [3.0]], dtype=torch.float64))[:, 0]
    assert 0.15 < float(m.isnan().double().mean()) < 0.35
    assert interval(m) == (3.0, 3.0)
