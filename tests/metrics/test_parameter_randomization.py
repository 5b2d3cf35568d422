"""Whether maps depend on the network: what must stay, what must change, and what is never touched."""

import copy
import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import FakeCAM, GradCAM, Gradient, InputXGradient, RandomMap
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.metrics import DataRandomization, ParameterRandomization, SanityTable
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.metrics.sanity.parameter_randomization import (
    layers_from_output,
    own_tensors_back,
    randomize,
)

KINDS = ("spearman", "spearman_abs")


def record(module):
    """Everything of a module and of the random generators that could change."""
    tensors = {
        name: (id(t), t._version, t.clone()) for name, t in [*module.named_parameters(), *module.named_buffers()]
    }
    flags = [(m.training, len(m._forward_pre_hooks), len(m._forward_hooks)) for m in module.modules()]
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return tensors, flags, [p.requires_grad for p in module.parameters()], states


def same(a, b):
    assert a[0].keys() == b[0].keys()
    for name in a[0]:
        assert a[0][name][:2] == b[0][name][:2]
        assert torch.equal(a[0][name][2], b[0][name][2])
    assert a[1:] == b[1:]


@pytest.mark.parametrize("mode", ["cascading", "independent"])
@pytest.mark.parametrize("stages", [None, 1, 2, "last"])
def test_the_model_stays_bit_for_bit(network, images, mode, stages):
    network.train()
    network[0].weight.requires_grad_(False)
    before = record(network)
    ParameterRandomization(mode, stages, KINDS)(network, [Gradient(), GradCAM("3")], images)
    same(before, record(network))


def test_also_after_a_method_that_fails(network, images):
    class Fails(Gradient):
        def attribute(self, prepared, images, target):
            if not torch.equal(prepared.module[8].weight, head):
                raise RuntimeError("boom")
            return super().attribute(prepared, images, target)

    head, before = network[8].weight.clone(), record(network)
    with pytest.raises(RuntimeError, match="boom"):
        ParameterRandomization(similarity=KINDS)(network, Fails(), images)
    same(before, record(network))


@pytest.mark.parametrize("mode", ["cascading", "independent"])
def test_maps_that_know_nothing_of_the_network_stay(network, images, mode):
    for check in ParameterRandomization(mode, similarity=KINDS)(network, [FakeCAM(), RandomMap()], images):
        assert check.similarity == pytest.approx(dict.fromkeys(KINDS, 1.0))
        assert [curve == pytest.approx([1.0] * 4) for curve in check.curves.values()] == [True, True]
        assert check.passed is False


def test_a_gradient_changes_and_passes(network, images):
    (check,) = ParameterRandomization(similarity=KINDS, threshold=0.99)(network, Gradient(), images)
    assert check.passed is True
    assert check.method == "gradient"
    assert max(check.curves["spearman"]) < 1
    assert check.steps == ["8", "3", "1", "0"]


def test_by_hand_each_step_randomizes_the_layers_behind(network, images):
    """An own cascade on a copy, with the same random numbers."""
    (check,) = ParameterRandomization(similarity=("spearman",), seed=3)(network, Gradient(), images)
    from interpretable_training.metrics.core.similarity import spearman

    target = network(images).argmax(1)
    before, twin = Gradient()(network, images, target), copy.deepcopy(network)
    torch.manual_seed(3)
    for step, layer in enumerate([8, 3, 1, 0]):
        twin[layer].reset_parameters()
        after = Gradient()(twin, images, target)
        assert check.curves["spearman"][step] == pytest.approx(float(spearman(before, after).mean()))


def test_independent_steps_change_one_layer_each(network, images):
    check = ParameterRandomization("independent", similarity=("spearman",))(network, Gradient(), images)[0]
    cascade = ParameterRandomization(similarity=("spearman",))(network, Gradient(), images)[0]
    assert check.curves["spearman"][0] == cascade.curves["spearman"][0]
    assert check.curves["spearman"][2] > cascade.curves["spearman"][2]  # batch norm alone changes little
    assert check.similarity["spearman"] == pytest.approx(sum(check.curves["spearman"]) / 4)


def test_the_step_that_decides_leaves_half_of_the_layers(network, images):
    make = {None: ["8", "3", "1", "0"], 2: ["8+3", "1+0"], 3: ["8", "3", "1+0"], 1: ["8+3+1+0"], "last": ["8"]}
    where = {None: 1, 2: 0, 3: 1, 1: 0, "last": 0}
    for stages, steps in make.items():
        check = ParameterRandomization(stages=stages, similarity=KINDS)(network, Gradient(), images)[0]
        assert check.steps == steps
        assert check.similarity["spearman"] == check.curves["spearman"][where[stages]]
    assert "with the 1 of 4 layers nearest to the output random" in check.rule


def test_the_same_seed_gives_the_same_numbers(network, images):
    one, two, other = (ParameterRandomization(similarity=KINDS, seed=s)(network, Gradient(), images) for s in (0, 0, 1))
    assert one == two
    assert one != other


class Odd(nn.Module):
    """Parameters of its own, a layer that runs first but not in its place, a shared weight, one that never runs."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.position = nn.Parameter(torch.randn(16))
        self.head = nn.Linear(16, 16)
        self.attention = nn.MultiheadAttention(16, 2, batch_first=True)
        nn.init.normal_(self.attention.in_proj_bias)
        nn.init.normal_(self.attention.out_proj.bias)
        self.stem = nn.Linear(16, 16)
        self.tied = nn.Linear(16, 16)
        self.tied.weight = self.stem.weight

    def forward(self, x):
        x = self.stem(x.flatten(2).transpose(1, 2)) + self.position
        x = x + self.attention(x, x, x, need_weights=False)[0]
        return self.head(self.tied(x).mean(1)) * self.scale


@pytest.fixture
def odd():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Odd().eval()


def test_layers_are_ordered_as_they_run(odd):
    with prepare_model(odd) as prepared:
        results = layers_from_output(prepared, torch.randn(2, 16, 2, 2))
    assert list(results) == ["head", "tied", "attention", "stem", ""]
    assert results["attention"] == ["attention", "attention.out_proj"]


def test_every_parameter_becomes_random_and_shared_ones_stay_shared(odd):
    before = {name: p.clone() for name, p in odd.named_parameters()}
    with own_tensors_back(odd):
        randomize(odd, ["head", "tied", "attention", "attention.out_proj", "stem", ""])
        for name, p in odd.named_parameters():
            assert not torch.equal(p, before[name]), name
        assert odd.tied.weight is odd.stem.weight
        assert float(odd.position.detach().std()) == pytest.approx(float(before["position"].detach().std()), rel=0.6)
    for name, p in odd.named_parameters():
        assert torch.equal(p, before[name])


def test_reset_that_reaches_children_changes_only_the_module():
    class Block(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.inner = nn.Parameter(torch.ones(3)), nn.Linear(3, 3)

        def reset_parameters(self):
            nn.init.normal_(self.weight)
            nn.init.zeros_(self.inner.weight)

    block = Block()
    inner = block.inner.weight.clone()
    with own_tensors_back(block):
        randomize(block, [""])
        assert torch.equal(block.inner.weight, inner)
        assert not torch.equal(block.weight, torch.ones(3))
    assert torch.equal(block.weight, torch.ones(3))


@pytest.mark.parametrize("keep", [False, True])
def test_running_statistics_start_anew_or_stay(network, keep):
    mean = network[1].running_mean.clone()
    with own_tensors_back(network):
        randomize(network, ["1"], keep)
        assert torch.equal(network[1].running_mean, mean) == keep
        assert torch.equal(network[1].weight, torch.ones(6).double())
    assert torch.equal(network[1].running_mean, mean)


def test_computed_weights_are_randomized_by_what_they_are_computed_of(images):
    conv = nn.utils.parametrizations.weight_norm(nn.Conv2d(3, 4, 3))
    net = nn.Sequential(conv, nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    before, weight = record(net), conv.weight.clone()
    (check,) = ParameterRandomization(similarity=KINDS)(net, Gradient(), images.float())
    assert max(check.curves["spearman"]) < 1
    same(before, record(net))
    assert_close(conv.weight, weight)


def test_small_maps_leave_ssim_out_and_the_verdict_open(network, images):
    (check,) = ParameterRandomization()(network, Gradient(), images[:, :, :9])
    assert set(check.similarity) == {"spearman", "spearman_abs", "hog"}
    assert check.passed is None


def test_constant_maps_are_left_out_and_counted(network, images):
    network[8].weight.data[:] = 0
    (check,) = ParameterRandomization(similarity=KINDS)(network, GradCAM("3"), images)
    assert check.n_undefined == 20
    assert check.passed is None


def test_under_inference_mode_and_for_outputs_in_dicts(network, images, function):
    with torch.inference_mode():
        inside = ParameterRandomization(stages=2, similarity=KINDS)(network, Gradient(), images)
    assert inside == ParameterRandomization(stages=2, similarity=KINDS)(network, Gradient(), images)

    class Named(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = network

        def forward(self, x):
            return {"scores": self.inner(x)}

    results = ParameterRandomization(stages=2, similarity=KINDS)(Named(), Gradient(), images, output="scores")
    assert results[0].curves == inside[0].curves


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mode": "both"}, r"expected ParameterRandomization\.mode to be one of"),
        ({"stages": 0}, "expected stages as a whole number of at least 1 .* for ParameterRandomization, got 0"),
        ({"stages": "first"}, r"expected ParameterRandomization\.stages to be one of \('last',\), got 'first'"),
        ({"similarity": ("rank",)}, r"expected ParameterRandomization\.similarity to be one of"),
        ({"similarity": ("hog",), "decided_by": "ssim"}, "expected decided_by to be one of"),
    ],
)
def test_options_of_the_test_that_do_not_exist(options, message):
    with pytest.raises(ValueError, match=message):
        ParameterRandomization(**options)


def test_more_stages_than_layers_and_no_layers_at_all(network, images):
    with pytest.raises(ValueError, match="at most as many stages as layers with parameters, 4, got 5"):
        ParameterRandomization(stages=5)(network, Gradient(), images)
    with pytest.raises(ValueError, match="expected a model with parameters to randomize, got Flatten"):
        ParameterRandomization()(nn.Flatten(), Gradient(), images)


SSIM_TOO = ("spearman", "ssim")


@pytest.fixture
def square():
    """Four layers of the same size, and images that are wide enough for SSIM."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(3, 3, 3, padding=1) for _ in range(4)]
        net = nn.Sequential(*[m for layer in layers for m in (layer, nn.ReLU())], nn.AdaptiveAvgPool2d(1), nn.Flatten())
    return net.double().eval()


@pytest.fixture
def photos():
    return torch.randn(4, 3, 14, 17, generator=torch.Generator().manual_seed(1)).double()


class Spy(Gradient):
    """Remembers what it was asked."""

    seen: list = []

    def attribute(self, prepared, images, target):
        layers = [m for m in prepared.module.modules() if isinstance(m, nn.Conv2d)]
        self.seen.append((target.tolist(), [m.weight.detach().clone() for m in layers]))
        return super().attribute(prepared, images, target)


@pytest.fixture
def asked(square, photos):
    def ask(**options):
        Spy.seen.clear()
        ParameterRandomization(similarity=SSIM_TOO, **options)(square, Spy(), photos)
        return list(Spy.seen)

    return ask


def test_network_and_each_step_are_explained_once(asked, square, photos):
    for options, steps in (({}, 4), ({"mode": "independent"}, 4), ({"stages": 2}, 2), ({"stages": "last"}, 1)):
        seen = asked(**options)
        assert len(seen) == 1 + steps
        assert {tuple(target) for target, _ in seen} == {tuple(square(photos).argmax(1).tolist())}


def test_cascading_keeps_what_is_random_and_independent_puts_it_back(asked, square):
    own = [layer.weight for layer in square if isinstance(layer, nn.Conv2d)]
    for step, (_, weights) in enumerate(asked()):
        assert [torch.equal(a, b) for a, b in zip(weights, own)] == [True] * (4 - step) + [False] * step
    cascade = [weights for _, weights in asked()]
    for step in (2, 3, 4):
        assert torch.equal(cascade[step][-1], cascade[1][-1])  # drawn once
    for step, (_, weights) in enumerate(asked(mode="independent")[1:], 1):
        assert [i for i, (a, b) in enumerate(zip(weights, own)) if not torch.equal(a, b)] == [4 - step]


def test_layers_of_the_same_shape_do_not_get_the_same_numbers(asked):
    """One generator for all: a seed that is set anew before each layer would make twins of them."""
    for mode in ("cascading", "independent"):
        drawn = [weights[-step] for step, (_, weights) in enumerate(asked(mode=mode)) if step]
        assert len({tuple(w.flatten().tolist()) for w in drawn}) == 4


def test_a_batch_is_the_mean_of_its_images(square, photos):
    methods = [Gradient(), GradCAM("4")]
    for mode in ("cascading", "independent"):
        test = ParameterRandomization(mode, similarity=SSIM_TOO)
        alone = [test(square, methods, x[None]) for x in photos]
        for i, whole in enumerate(test(square, methods, photos)):
            for kind in SSIM_TOO:
                for step, value in enumerate(whole.curves[kind]):
                    each = torch.tensor([one[i].curves[kind][step] for one in alone]).double()
                    assert value == pytest.approx(float(each.nanmean()), nan_ok=True)


def test_verdict_is_of_the_step_that_leaves_half_the_layers(square, photos):
    (check,) = ParameterRandomization(similarity=SSIM_TOO)(square, Gradient(), photos)
    assert check.decided_by == "ssim"
    assert check.similarity == {kind: curve[1] for kind, curve in check.curves.items()}
    value = check.similarity["ssim"]
    for threshold, passed in ((value, False), (value + 1e-9, True)):
        (again,) = ParameterRandomization(similarity=SSIM_TOO, threshold=threshold)(square, Gradient(), photos)
        assert again.passed is passed
    (other,) = ParameterRandomization(similarity=SSIM_TOO, decided_by="spearman")(square, Gradient(), photos)
    assert "the spearman similarity" in other.rule
    assert other.decided_by == "spearman"
    (only,) = ParameterRandomization(similarity=("hog", "spearman"))(square, Gradient(), photos)
    assert only.decided_by == "hog"


def test_a_constant_map_leaves_the_mean_of_a_step_to_the_others(square, photos):
    (whole,) = ParameterRandomization(similarity=SSIM_TOO)(
        square, InputXGradient(), torch.cat([photos, 0 * photos[:1]])
    )
    (alone,) = ParameterRandomization(similarity=SSIM_TOO)(square, InputXGradient(), photos)
    assert whole.curves["ssim"] == pytest.approx(alone.curves["ssim"], nan_ok=True)
    assert whole.n_undefined - alone.n_undefined == 4


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_every_precision_inside_autocast_and_out(square, photos, dtype):
    net = square.to(dtype)
    (check,) = ParameterRandomization(stages=2)(net, Gradient(), photos.to(dtype))
    assert check.passed is True
    assert net[0].weight.dtype == dtype
    with torch.autocast("cpu", torch.bfloat16):
        assert ParameterRandomization(stages=2)(square.float(), Gradient(), photos.float())[0].passed is True


def test_frozen_parameters_become_random_missing_biases_do_not():
    net = nn.Sequential(nn.Linear(3, 4, bias=False), nn.LayerNorm(4, elementwise_affine=False)).requires_grad_(False)
    weight = net[0].weight
    with own_tensors_back(net):
        randomize(net, ["0", "1"])
        assert not torch.equal(net[0].weight, weight)
        assert net[0].bias is None
        assert not net[0].weight.requires_grad
    assert net[0].weight is weight


def test_what_has_no_reset_keeps_its_spread_and_zero_stays_zero():
    class Free(nn.Module):
        def __init__(self):
            super().__init__()
            self.wide = nn.Parameter(3 + 5 * torch.randn(4000, generator=torch.Generator().manual_seed(0)))
            self.same = nn.Parameter(torch.full((4000,), -0.5))
            self.none = nn.Parameter(torch.zeros(9))
            self.index = nn.Parameter(torch.arange(3), requires_grad=False)

    net = Free()
    with own_tensors_back(net), torch.random.fork_rng():
        torch.manual_seed(0)
        randomize(net, [""])
        assert net.wide.mean().item() == pytest.approx(0, abs=0.4)
        assert net.wide.std().item() == pytest.approx(5, rel=0.05)
        assert net.same.std().item() == pytest.approx(0.5, rel=0.05)
        assert not net.none.any()
        assert net.index.tolist() == [0, 1, 2]


def test_the_labels_check_explains_the_given_class_in_both_networks(square, photos):
    twin = copy.deepcopy(square)
    nn.init.normal_(twin[0].weight, generator=torch.Generator().manual_seed(0))
    Spy.seen.clear()
    DataRandomization(SSIM_TOO)(square, twin, Spy(), photos, torch.tensor([0, 2, 1, 0]))
    DataRandomization(SSIM_TOO)(square, twin, Spy(), photos)
    predicted = square(photos).argmax(1).tolist()
    assert [target for target, _ in Spy.seen] == [[0, 2, 1, 0]] * 2 + [predicted] * 2
    assert torch.equal(Spy.seen[0][1][0], square[0].weight)
    assert torch.equal(Spy.seen[1][1][0], twin[0].weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataRandomization(("hog",)), "expected decided_by to be one of"),
        (lambda: DataRandomization(("rank",), "rank"), r"expected DataRandomization\.similarity to be one of"),
        (lambda: ParameterRandomization(similarity=()), "expected at least one similarity, got none"),
    ],
)
def test_what_could_not_decide_is_refused_where_it_is_said(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_both_modes_and_both_rules_have_their_place_in_one_table(square, photos):
    checks = [
        check
        for mode in ("cascading", "independent")
        for check in ParameterRandomization(mode, similarity=SSIM_TOO)(square, [Gradient(), FakeCAM()], photos)
    ]
    table = SanityTable(checks)
    assert table.tests == ["parameter randomization", "parameter randomization (independent)"]
    assert len(table.rows["fakecam"]) == 2
    with pytest.raises(ValueError, match=r"expected each check once per method, got .*'gradient'.* twice"):
        SanityTable([*checks, checks[0]])


def test_sanity_table_names_the_methods_of_two_rules():
    one, two = (Check("shift", name, {"d": 0.5}, False, rule, "d") for name, rule in (("a|b", "x"), ("c", "y")))
    table = SanityTable([one, two], {"shift": {"c": "pass"}})
    lines = str(table).splitlines()
    assert "shift, a|b: x; beside the verdict: d." in lines
    assert "shift, c: y; beside the verdict: d." in lines
    assert r"| a\|b | fail (0.5) |" in table.to_markdown()
    undecided = Check("shift", "c", {"d": float("nan")}, None, "y", "d")
    assert SanityTable([undecided], {"shift": {"c": "pass"}}).disagreements() == [undecided]
