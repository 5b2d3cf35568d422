"""What the maps of a network with random layers are compared with, and by which random numbers layers become random."""

import copy

import pytest
import torch
from torch import nn

from interpretable_training.attribution import FakeCAM, GradCAM, Gradient, InputXGradient
from interpretable_training.metrics import DataRandomization, ParameterRandomization, SanityTable
from interpretable_training.metrics.sanity.checks import Check
from interpretable_training.metrics.sanity.parameter_randomization import own_tensors_back, randomize

KINDS = ("spearman", "ssim")


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
        ParameterRandomization(similarity=KINDS, **options)(square, Spy(), photos)
        return list(Spy.seen)

    return ask


def test_one_explanation_of_the_network_and_one_per_step_all_of_its_own_prediction(asked, square, photos):
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
        test = ParameterRandomization(mode, similarity=KINDS)
        alone = [test(square, methods, x[None]) for x in photos]
        for i, whole in enumerate(test(square, methods, photos)):
            for kind in KINDS:
                for step, value in enumerate(whole.curves[kind]):
                    each = torch.tensor([one[i].curves[kind][step] for one in alone]).double()
                    assert value == pytest.approx(float(each.nanmean()), nan_ok=True)


def test_the_verdict_is_of_the_step_that_leaves_half_and_of_the_similarity_that_decides(square, photos):
    (check,) = ParameterRandomization(similarity=KINDS)(square, Gradient(), photos)
    assert check.decided_by == "ssim"
    assert check.similarity == {kind: curve[1] for kind, curve in check.curves.items()}
    value = check.similarity["ssim"]
    for threshold, passed in ((value, False), (value + 1e-9, True)):
        (again,) = ParameterRandomization(similarity=KINDS, threshold=threshold)(square, Gradient(), photos)
        assert again.passed is passed
    (other,) = ParameterRandomization(similarity=KINDS, decided_by="spearman")(square, Gradient(), photos)
    assert "the spearman similarity" in other.rule
    assert other.decided_by == "spearman"
    (only,) = ParameterRandomization(similarity=("hog", "spearman"))(square, Gradient(), photos)
    assert only.decided_by == "hog"


def test_a_constant_map_leaves_the_mean_of_a_step_to_the_others(square, photos):
    (whole,) = ParameterRandomization(similarity=KINDS)(square, InputXGradient(), torch.cat([photos, 0 * photos[:1]]))
    (alone,) = ParameterRandomization(similarity=KINDS)(square, InputXGradient(), photos)
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


def test_a_frozen_parameter_becomes_random_too_and_a_missing_bias_stays_missing():
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
    DataRandomization(KINDS)(square, twin, Spy(), photos, torch.tensor([0, 2, 1, 0]))
    DataRandomization(KINDS)(square, twin, Spy(), photos)
    predicted = square(photos).argmax(1).tolist()
    assert [target for target, _ in Spy.seen] == [[0, 2, 1, 0]] * 2 + [predicted] * 2
    assert torch.equal(Spy.seen[0][1][0], square[0].weight)
    assert torch.equal(Spy.seen[1][1][0], twin[0].weight)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DataRandomization(("hog",)), "expected decided_by to be one of"),
        (lambda: DataRandomization(("rank",), "rank"), "expected similarity to be one of"),
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
        for check in ParameterRandomization(mode, similarity=KINDS)(square, [Gradient(), FakeCAM()], photos)
    ]
    table = SanityTable(checks)
    assert table.tests == ["parameter randomization", "parameter randomization (independent)"]
    assert len(table.rows["fakecam"]) == 2
    with pytest.raises(ValueError, match=r"expected each check once per method, got .*'gradient'.* twice"):
        SanityTable([*checks, checks[0]])


def test_two_rules_of_a_check_are_told_with_their_methods_and_a_bar_is_no_column():
    one, two = (Check("shift", name, {"d": 0.5}, False, rule, "d") for name, rule in (("a|b", "x"), ("c", "y")))
    table = SanityTable([one, two], {"shift": {"c": "pass"}})
    lines = str(table).splitlines()
    assert "shift, a|b: x; beside the verdict: d." in lines
    assert "shift, c: y; beside the verdict: d." in lines
    assert r"| a\|b | fail (0.5) |" in table.to_markdown()
    undecided = Check("shift", "c", {"d": float("nan")}, None, "y", "d")
    assert SanityTable([undecided], {"shift": {"c": "pass"}}).disagreements() == [undecided]
