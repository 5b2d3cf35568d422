"""Blocks of Hyper Expected Grad-CAM by hand, also where sides do not divide the image, and what its options refuse."""

import math
from dataclasses import replace

import pytest
import torch
from support.attributions import BASELINES, ToyCNN, toy, toy_images
from support.tally import Tally
from test_expected_baselines import family
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, HyperExpectedGradCAM, normalize
from interpretable_training.attribution.core.prepared_model import prepare_model


def net_of(axes, channels=2):
    """Features of a half and a quarter of the image, in double precision."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ToyCNN(channels, axes).double().eval()


def setting(size, channels=2, **options):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(1, channels, *size, generator=generator, dtype=torch.float64)
    base = torch.randn(4, channels, *size, generator=generator, dtype=torch.float64)
    cam = ExpectedGradCAM("block", baselines=base, n=3, relu=False)
    return net_of(len(size), channels), x, HyperExpectedGradCAM(cam, local_draws=2, layers=[], **options)


def interpolate(v, m):
    """A line of numbers at m places, half pixels at the ends, by hand."""
    out = []
    for j in range(m):
        at = min(max((j + 0.5) * len(v) / m - 0.5, 0), len(v) - 1)
        low = min(int(at), len(v) - 2) if len(v) > 1 else 0
        out.append(v[low] + (at - low) * (v[min(low + 1, len(v) - 1)] - v[low]))
    return torch.stack(out)


def along(volume, axis, function):
    """`function` of each line of a volume along an axis."""
    lines = volume.movedim(axis, -1)
    found = torch.stack([function(line) for line in lines.reshape(-1, lines.shape[-1])])
    return found.reshape(*lines.shape[:-1], -1).movedim(-1, axis)


def average(v, m):
    """Means of a line over m parts, which overlap where m does not divide it."""
    n = len(v)
    return torch.stack([v[i * n // m : -(-(i + 1) * n // m)].mean() for i in range(m)])


def blocks_of(size, sides):
    corners = torch.cartesian_prod(*[torch.arange(0, S, K) for S, K in zip(size, sides)]).reshape(-1, len(size))
    return [tuple(slice(int(c), int(c) + K) for c, K in zip(corner, sides)) for corner in corners]


def seen_large(local, net, piece, sides, size):
    """The map of a piece (C, ...): filled up to a block, enlarged until one side is the image's, and brought back."""
    block = torch.zeros(len(piece), *sides, dtype=piece.dtype)
    block[(slice(None), *(slice(s) for s in piece.shape[1:]))] = piece
    factor = min(S / K for S, K in zip(size, sides))
    large = [math.floor(K * factor + 1e-9) for K in sides]
    for axis, L in enumerate(large):
        block = along(block, 1 + axis, lambda v, L=L: interpolate(v, L))
    seen = torch.zeros(1, len(piece), *size, dtype=piece.dtype)
    place = tuple(slice(L) for L in large)
    seen[(0, slice(None), *place)] = block
    S = local(net, seen, 1)[0][place]
    for axis, K in enumerate(sides):
        S = along(S, axis, lambda v, K=K: average(v, K))
    return S[tuple(slice(s) for s in piece.shape[1:])]


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
@pytest.mark.parametrize("size", [(12,), (21,), (12, 20), (20, 12), (10, 15), (9, 13), (8, 8, 12), (6, 9, 7)])
def test_each_block_by_hand(size, neighborhood):
    net, x, hyper = setting(size, neighborhood=neighborhood, threshold=0.3)
    found = hyper.stages(net, x, 1)
    local = replace(hyper.cam, n=2)
    assert len(found.blocks[0]) == len(found.supermaps[0])
    for sides, supermap in zip(found.blocks[0], found.supermaps[0]):
        M = torch.full(size, float("nan"), dtype=torch.float64)
        for block in blocks_of(size, sides):
            if neighborhood == "zoom":
                M[block] = seen_large(local, net, x[(0, slice(None), *block)], sides, size)
                continue
            alone = torch.zeros_like(x)
            alone[(..., *block)] = x[(..., *block)]
            M[block] = local(net, alone, 1)[0][block]
        assert_close(supermap, normalize(M[None])[0])


@pytest.mark.parametrize("size", [(16, 32), (32, 16)])
def test_a_block_is_not_squeezed_into_another_form(size):
    """A square stays one: what the network sees of it has the same side in both directions, the rest is zero."""
    net, x, hyper = setting(size, neighborhood="zoom")
    seen = Tally()
    net.register_forward_pre_hook(lambda module, args: seen.append(args[0]))
    hyper = replace(hyper, cam=replace(hyper.cam, draws=[0], alpha="linspace"))
    with prepare_model(net) as prepared:
        hyper._supermap(prepared, x.abs() + 1, torch.tensor([1]), "block", (8, 8))
    whole = next(images for images in seen if len(images) == 8)  # the blocks themselves, before their draws
    assert (whole[..., :16, :16] > 0).all()
    assert not whole[..., 16:, :].any()
    assert not whole[..., 16:].any()


def test_a_block_that_is_the_image_is_seen_as_it_is():
    net, x, mask = setting((12, 20), threshold=0.0, most=1)
    m = mask.stages(net, x, 1)
    sides = m.blocks[0][0]
    assert sides == (12, 16)  # 240 pixels are a square of 15, no more than the image
    net, x, mask = setting((16, 16), threshold=0.0, most=1)
    zoom = replace(mask, neighborhood="zoom")
    assert mask.stages(net, x, 1).blocks == [[(16, 16)]]
    assert_close(zoom(net, x, 1), mask(net, x, 1))


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
@pytest.mark.parametrize("channels", [1, 3, 5])
@pytest.mark.parametrize("size", [(13,), (9, 17), (5, 6, 7)])
def test_any_size_and_number_of_channels(size, channels, neighborhood):
    x, base = toy_images(2, channels, size), toy_images(3, channels, size)
    net = net_of(len(size), channels).float()
    hyper = HyperExpectedGradCAM(ExpectedGradCAM(baselines=base, n=2), local_draws=1, neighborhood=neighborhood)
    together = hyper(net, x, [0, 1])
    assert together.shape == (2, *size)
    assert together.isfinite().all()
    for i in range(2):
        assert_close(hyper(net, x[i : i + 1], i)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
def test_an_image_without_numbers_spoils_no_other(neighborhood):
    hyper = family(BASELINES)[neighborhood]
    images = toy_images(2)
    expected = hyper(toy(), images[:1], 1)
    images[1, 0, 3, 3] = float("nan")
    found = hyper(toy(), images, 1)
    assert_close(found[:1], expected)
    assert found[1].isnan().any()


def test_a_ratio_that_is_not_whole_is_rounded_and_sides_stay_in_the_image():
    """33 pixels and 5 cells: IR is 7, so that at most 4 of them fit."""
    hyper = HyperExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES))
    assert hyper._blocks(torch.ones(33, 33), [7, 7]) == [(28, 28), (14, 14), (7, 7)]
    assert hyper._blocks(torch.ones(64), [8]) == [(64,), (32,), (16,)]
    assert replace(hyper, most=9)._blocks(torch.ones(64), [8]) == [(64,), (32,), (16,), (8,)]
    half = torch.zeros(64, 64)
    half[:20, :20] = 0.5  # a square of 20 pixels is 2.5 cells, rounded to the even number
    assert hyper._blocks(half, [8, 8]) == [(16, 16), (8, 8)]
    assert replace(hyper, threshold=0.51)._blocks(half, [8, 8]) == [(8, 8)]


def test_plus_plus_of_the_image_of_blocks_and_of_scales():
    net, x, hyper = setting((12, 12))
    plus = family(hyper.cam.baselines, layer="block")["plusplus"]
    hyper = HyperExpectedGradCAM(plus, local_draws=3, threshold=0.0, most=1)
    found = hyper.stages(net, x, 1)
    assert found.layers == ["stem", "block"]
    assert_close(found.supermaps[0][0], normalize(plus(net, x, 1))[0])
    assert_close(found.details[-1], normalize(replace(plus, upsample=False)(net, x, 1)))
    literal = replace(hyper, cam=replace(plus, form="literal"))
    assert not torch.allclose(literal(net, x, 1), found.saliency)


@pytest.mark.parametrize(
    ("wrong", "match"),
    [
        ({"most": 0}, "most as a whole number of at least 1 and .* got 0"),
        ({"most": 1.5}, "most as a whole number of at least 1 and .* got 1.5"),
        ({"local_draws": 0}, "local_draws as a whole number of at least 1"),
        ({"threshold": 1.5}, "threshold as a number of at least 0 and up to 1 .* got 1.5"),
        ({"threshold": float("nan")}, "threshold as a number of at least 0 and up to 1"),
        ({"beta": -0.1}, "beta as a number of at least 0 and up to 1"),
        ({"neighborhood": "crop"}, r"neighborhood to be one of \('mask', 'zoom'\)"),
        ({"fill": "black"}, "fill to be one of"),
    ],
)
def test_wrong_numbers_are_refused_where_they_are_given(wrong, match):
    with pytest.raises(ValueError, match=match):
        HyperExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES), **wrong)


def test_layers_go_from_fine_to_coarse():
    cam = ExpectedGradCAM("stem", baselines=BASELINES, n=2)
    with pytest.raises(ValueError, match=r"fine to coarse, 'stem' of cam last, got \['block', 'stem'\] of \[\(4, 6\)"):
        HyperExpectedGradCAM(cam, layers="block")(toy(), toy_images(1), 1)
    both = ["stem.1", "stem.2"]  # a layer and the ReLU behind it have one size: there is no detail between them
    found = HyperExpectedGradCAM(replace(cam, layer="block"), local_draws=1, layers=both).stages(
        toy(), toy_images(1), 1
    )
    assert found.layers == [*both, "block"]
    assert not found.details[0].any()
    assert found.details[1].any()


def test_blurred_surroundings_matter_to_masks_alone():
    net, x, hyper = setting((12, 12), most=2)
    for neighborhood, same in (("zoom", True), ("mask", False)):
        one, other = (replace(hyper, neighborhood=neighborhood, fill=fill)(net, x, 1) for fill in ("zero", "blur"))
        assert torch.equal(one, other) == same


def test_signals_go_through_a_recurrent_network():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(2, 6, 3, 2, 1), nn.LSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 1)

        def forward(self, x):
            return self.head(self.lstm(self.conv(x).relu().transpose(1, 2))[0][:, -1])

    torch.manual_seed(0)
    x, base = toy_images(2, 2, (30,)), toy_images(4, 2, (30,)).flip(0)
    for name, method in family(base, layer="conv", relu=False).items():
        assert method(Recurrent(), x).shape == (2, 30), name
