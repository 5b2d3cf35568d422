"""Retraining of the last layer, where both the core feature and the cue are among its inputs."""

import copy
import warnings
from collections import OrderedDict

import pytest
import torch
from support.trainers import quiet_trainer
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader

from interpretable_training.data import ShapesDataModule
from interpretable_training.modules import Classifier, retrain_last_layer
from interpretable_training.modules.last_layer import balanced_draw, halves

NAMES = {"head.weight", "head.bias"}


def planted(n=400, share=0.9, seed=0):
    """Images (n, 2, 1, 1) of two pixels: the first names the class, the second does in a share of the images."""
    generator = torch.Generator().manual_seed(seed)
    y = torch.arange(n) % 2
    agrees = torch.rand(n, generator=generator) < share
    cue = torch.where(agrees, y, 1 - y)
    x = 2.0 * torch.stack([y, cue], 1) - 1 + 0.2 * torch.randn(n, 2, generator=generator)
    return x[:, :, None, None], y, 2 * y + agrees.long()


def cheating(bias=True):
    """A network whose last layer reads the cue alone."""
    body = nn.Sequential(nn.BatchNorm2d(2), nn.Flatten(), nn.Dropout(0.5))
    net = nn.Sequential(OrderedDict(body=body, head=nn.Linear(2, 2, bias=bias)))
    net.head.weight.data = torch.tensor([[0.0, -3.0], [0.0, 3.0]])
    if bias:
        net.head.bias.data.zero_()
    return net


def batches(x, y, g, size=100):
    return [
        {"image": x[i : i + size], "target": y[i : i + size], "group": g[i : i + size]} for i in range(0, len(x), size)
    ]


def worst_group(net, x, y, g):
    with torch.no_grad():
        hits = (net.eval()(x).argmax(1) == y).float()
    return min(float(hits[g == group].mean()) for group in g.unique())


@pytest.mark.parametrize("bias", [True, False])
def test_balanced_groups_turn_the_layer_to_the_core_feature(bias):
    net, fresh = cheating(bias), planted(seed=1)
    assert worst_group(net, *fresh) == 0
    results = retrain_last_layer(net, batches(*planted()), draws=3)
    assert worst_group(net, *fresh) == 1
    assert (results.name, results.before, results.held_out[results.strength]) == ("head", 0.0, 1.0)
    assert results.group_sizes == {g: int((planted()[2] == g).sum()) for g in range(4)}
    assert "worst-group accuracy of the held-out half 1.000" in str(results)
    assert (net.head.weight[:, 0].abs() > 2 * net.head.weight[:, 1].abs()).all()


def test_draws_hold_as_many_images_of_each_group_as_the_smallest_has():
    group, rows = torch.tensor([0] * 5 + [1] * 3 + [2] * 9), torch.arange(1, 16)
    generator = torch.Generator().manual_seed(0)
    drawn = [balanced_draw(group, rows, generator) for _ in range(20)]
    assert all(group[draw].bincount().tolist() == [3, 3, 3] and len(draw.unique()) == 9 for draw in drawn)
    assert torch.cat(drawn).unique().tolist() == rows.tolist()


def test_halves_hold_half_of_each_group():
    group = torch.tensor([0] * 5 + [1] * 2)
    first, second = halves(group, torch.Generator().manual_seed(0))
    assert (group[first].bincount().tolist(), group[second].bincount().tolist()) == ([3, 1], [2, 1])
    assert torch.cat([first, second]).sort().values.tolist() == list(range(7))


def test_nothing_else_changes():
    net = cheating().train()
    net.body[0].weight.requires_grad_(False)
    before, state = copy.deepcopy(net), torch.get_rng_state()
    retrain_last_layer(net, batches(*planted()), draws=2)
    assert torch.equal(torch.get_rng_state(), state)
    changed = {name for name, t in net.state_dict().items() if not torch.equal(t, before.state_dict()[name])}
    assert changed == NAMES
    assert all(a.training == b.training for a, b in zip(net.modules(), before.modules()))
    assert all(a.requires_grad == b.requires_grad for a, b in zip(net.parameters(), before.parameters()))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_the_seed_decides_and_batches_do_not():
    nets = [cheating() for _ in range(3)]
    for net, (seed, size) in zip(nets, [(0, 100), (0, 33), (1, 100)]):
        retrain_last_layer(net, batches(*planted(), size=size), draws=2, seed=seed, strengths=[0.01])
    assert_close(nets[0].head.weight, nets[1].head.weight, rtol=0, atol=1e-6)
    assert not torch.equal(nets[0].head.weight, nets[2].head.weight)


def test_groups_from_batches_a_tensor_and_a_function_are_the_same():
    x, y, g = planted()
    nets = [cheating() for _ in range(3)]
    retrain_last_layer(nets[0], batches(x, y, g), draws=2)
    retrain_last_layer(nets[1], (x, y), groups=g, draws=2)
    retrain_last_layer(nets[2], batches(x, y, g + 5), groups=lambda batch: batch["group"] - 5, draws=2)
    assert all(torch.equal(net.head.weight, nets[0].head.weight) for net in nets)


def test_the_strength_with_the_best_worst_group_is_chosen():
    """A penalty of 9 keeps all weights at 0, so that one class has no hit."""
    found = retrain_last_layer(cheating(), batches(*planted()), strengths=[9.0, 0.01], draws=1)
    assert (found.strength, found.held_out) == (0.01, {9.0: 0.0, 0.01: 1.0})


def test_images_of_unknown_group_are_left_out():
    x, y, g = planted()
    wrong = torch.cat([1 - y[:50], y]), torch.cat([torch.full((50,), -1), g])
    nets = [cheating(), cheating()]
    retrain_last_layer(nets[0], (x, y), groups=g, draws=2)
    retrain_last_layer(nets[1], (torch.cat([x[:50] + 9, x]), wrong[0]), groups=wrong[1], draws=2)
    assert torch.equal(nets[0].head.weight, nets[1].head.weight)


def test_one_draw_of_balanced_data_is_the_optimum_of_scikit_learn():
    linear_model = pytest.importorskip("sklearn.linear_model")
    x, y, g = planted()
    rows = torch.cat([(g == group).nonzero()[:15, 0] for group in range(4)])
    x, y, g = x[rows], y[rows], g[rows]
    net = cheating()
    with torch.no_grad():
        z = net.eval().body(x).double()
    retrain_last_layer(net, (x, y), groups=g, draws=1, strengths=[0.05])
    scaled = ((z - z.mean(0)) / z.std(0, correction=0)).numpy()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        options = {"penalty": "l1", "C": 1 / (60 * 0.05), "solver": "saga", "tol": 1e-10, "max_iter": 100_000}
        theirs = linear_model.LogisticRegression(**options).fit(scaled, y.numpy()).predict_proba(scaled)
    with torch.no_grad():
        assert_close(net(x).softmax(1).double(), torch.as_tensor(theirs), rtol=0, atol=1e-3)


def test_a_module_and_logits_in_a_dict():
    x, y, g = planted()

    class Wrapped(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = cheating()

        def forward(self, images):
            return {"aux": 2 * images.flatten(1), "scores": self.network(images)}

    net = Wrapped()
    results = retrain_last_layer(net, (x, y), groups=g, draws=2, output="scores", head="network.head")
    assert results.name == "network.head"
    assert worst_group(net.network, *planted(seed=1)) == 1


def test_a_classifier_on_generated_shapes():
    data = ShapesDataModule(image_size=16, n_train=1, n_val=96, n_test=1, batch_size=32, annotations=True, shortcut=0.5)
    module = Classifier("tiny_cnn", 6, network_kwargs={"width": 4})
    before = copy.deepcopy(module.state_dict())

    def class_and_cue(batch):
        return 2 * batch["target"] + batch["shortcut_mask"].flatten(1).any(1)

    results = retrain_last_layer(module, data, class_and_cue, draws=2, strengths=[0.1, 0.03])
    assert results.name == "network.head"
    assert len(results.group_sizes) == 12
    changed = {name for name, t in module.state_dict().items() if not torch.equal(t, before[name])}
    assert changed == {"network.head.weight", "network.head.bias"}


class Scaled(nn.Sequential):
    def forward(self, x):
        return 2 * super().forward(x)


@pytest.mark.parametrize(
    ("net", "options", "message"),
    [
        (Scaled(nn.Flatten(), nn.Linear(2, 2)), {}, "expected a linear layer whose output are the logits"),
        (nn.Sequential(nn.Conv2d(2, 2, 1), nn.Flatten()), {}, r"expected a linear layer .* got none among \[\]"),
        (
            cheating(),
            {"head": "body"},
            r"expected head as the name of a linear layer, got 'body'; those are \['head'\]",
        ),
        (cheating(), {"groups": "place"}, r"expected 'place' in the batches, got \['image', 'target', 'group'\]"),
        (cheating(), {"groups": torch.zeros(9)}, r"expected groups \(n,\), one for each image, got \(9,\)"),
        (cheating(), {"groups": lambda b: b["target"] / 2}, r"expected groups \(100,\) of whole numbers"),
        (cheating(), {"groups": lambda b: 0 * b["target"]}, "expected at least two groups of at least two"),
        (cheating(), {"groups": lambda b: -1 - b["target"]}, r"each of the 2 classes .* difference in \[0, 1\]"),
        (nn.Sequential(nn.Flatten(), nn.Linear(2, 3)), {}, r"each of the 3 classes .* a difference in \[2\]"),
        (cheating(), {"strengths": [0.0]}, "expected strengths above 0"),
        (cheating(), {"strengths": []}, "expected strengths above 0"),
        (cheating(), {"draws": 0}, "expected draws as a whole number"),
    ],
)
def test_what_cannot_be_retrained_is_refused(net, options, message):
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(ValueError, match=message):
        retrain_last_layer(net, batches(*planted()), **{"draws": 1, **options})
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_groups_of_one_image_are_named():
    x, y, g = planted()
    g[0] = 7
    with pytest.raises(ValueError, match=r"at least two images each, got 5 groups, too small: {7: 1}"):
        retrain_last_layer(cheating(), (x, y), groups=g)


def test_one_class_is_refused():
    x, y, g = planted()
    with pytest.raises(ValueError, match=r"each of the 2 classes .* difference in \[1\]"):
        retrain_last_layer(cheating(), (x, 0 * y), groups=g)


def test_regressions_and_empty_data_are_refused():
    x, y, g = planted()
    with pytest.raises(ValueError, match="expected a class for each image, got"):
        retrain_last_layer(cheating(), (x, y.float()), groups=g)
    with pytest.raises(ValueError, match="expected at least one image, got none"):
        retrain_last_layer(cheating(), [], groups=g)


def test_a_layer_that_shares_its_weights_is_refused_and_restored():
    net = nn.Sequential(OrderedDict(body=nn.Flatten(), first=nn.Linear(2, 2), head=nn.Linear(2, 2)))
    net.first.weight = net.head.weight
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match=r"changes nothing else, but 'first\.weight' changed"):
        retrain_last_layer(net, batches(*planted()), draws=1)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())


def test_a_layer_with_two_names_is_retrained():
    net = cheating()
    net.alias = nn.ModuleList([net.head])

    def forward(x):
        return net.head(net.body(x))

    net.forward = forward
    assert retrain_last_layer(net, batches(*planted()), draws=1).name == "head"


def test_worst_group_is_logged_where_batches_carry_groups(tmp_path):
    x, y, g = planted(40)
    items = [{"image": a, "target": b, "group": c} for a, b, c in zip(x, y, g)]
    module = Classifier(cheating(), 2)
    for run, split in ((quiet_trainer(tmp_path).validate, "val"), (quiet_trainer(tmp_path).test, "test")):
        logged = run(module, DataLoader(items, batch_size=16), verbose=False)[0]
        assert logged[f"{split}/worst_group"] == pytest.approx(worst_group(cheating(), x, y, g))
        pairs = [(a, b) for a, b in zip(x, y)]
        assert f"{split}/worst_group" not in run(module, DataLoader(pairs, batch_size=16), verbose=False)[0]
