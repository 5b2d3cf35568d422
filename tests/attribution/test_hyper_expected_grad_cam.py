"""Hyper Expected Grad-CAM by its formulas, its blocks by hand, and what its options refuse."""

import math
from dataclasses import replace

import pytest
import torch
from support.attributions import BASELINES, ToyCNN, toy, toy_images
from support.expected_methods import expected_methods
from support.networks import pyramid
from support.tally import Tally
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, HyperExpectedGradCAM, normalize
from interpretable_training.attribution.core.map_operations import blur, resize
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.attribution.hyper_expected_grad_cam import _cut, _frequency, _paste, _tiles


@pytest.fixture
def net():
    return pyramid(16)


@pytest.fixture
def x():
    return torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def cam():
    base = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return ExpectedGradCAM(baselines=base, n=3)


def n(S):
    return normalize(S[None])[0]


def map_of_enlarged_square(local, net, block, side):
    """The map of a block (1, 2, h, w) that is filled up to a square and enlarged to 16 pixels, brought back."""
    square = torch.zeros(1, 2, side, side, dtype=block.dtype)
    square[..., : block.shape[2], : block.shape[3]] = block
    S = local(net, nn.functional.interpolate(square, (16, 16), mode="bilinear"), 1)
    return nn.functional.adaptive_avg_pool2d(S, side)[0, : block.shape[2], : block.shape[3]]


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
def test_hyper_expected_grad_cam_stages_from_expected_grad_cam(net, x, cam, neighborhood):
    """All of (1) to (8) from maps of Expected Grad-CAM that were made one input and one layer at a time."""
    hyper = HyperExpectedGradCAM(cam, local_draws=2, neighborhood=neighborhood)
    results = hyper.stages(net, x, 1)
    assert results.layers == ["1", "4", "7"]
    for i in range(2):
        image = x[i : i + 1]
        mu = [n(replace(cam, layer=name, upsample=False)(net, image, 1)[0]) for name in results.layers]
        m = n(resize(replace(cam, upsample=False)(net, image, 1), (16, 16))[0])
        assert_close(results.first[i], m)
        cells = min(max(1, round(float((m >= 0.5).sum() ** 0.5) / 4)), 4)
        sides = [(4 * max(1, round(cells / 2**s)),) * 2 for s in range(min(3, 1 + cells.bit_length() - 1))]
        assert results.blocks[i] == sides
        local, supermaps = replace(cam, n=2), []
        for side, _ in sides:
            M = torch.zeros(16, 16, dtype=torch.float64)
            for top in range(0, 16, side):
                for left in range(0, 16, side):
                    block = (slice(top, top + side), slice(left, left + side))
                    if neighborhood == "zoom":
                        M[block] = map_of_enlarged_square(local, net, image[(..., *block)], side)
                        continue
                    alone = torch.zeros_like(image)
                    alone[(..., *block)] = image[(..., *block)]
                    M[block] = local(net, alone, 1)[0][block]
            supermaps.append(n(M))
        assert_close(results.supermaps[i], torch.stack(supermaps))
        r = mu[2]
        for fine, coarse in ((mu[1], mu[2]), (mu[0], mu[1])):
            down = fine.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).mean((1, 3))
            assert down.shape == coarse.shape
            r = (resize(r[None], fine.shape)[0] + fine - resize(down[None], fine.shape)[0]).clamp(min=0)
        assert_close(results.frequency[i], n(r))
        product = torch.ones(16, 16, dtype=torch.float64)
        for M in supermaps:
            product = product * (0.05 + 0.95 * M)
        P = n(n(sum(supermaps)) * product)
        assert_close(results.accumulated[i], P)
        assert_close(results.saliency[i], n(P * n(r)))
    assert torch.equal(hyper(net, x, 1), results.saliency)


def test_hyper_expected_grad_cam_of_one_block_and_layer(net, x, cam):
    """Then S = n(n(m) ((1 - beta) + beta n(m)) n(m)) with the map m of Expected Grad-CAM."""
    hyper = HyperExpectedGradCAM(cam, local_draws=3, threshold=0.0, most=1, layers=[])
    m = normalize(cam(net, x, 1))
    assert hyper.stages(net, x, 1).blocks == [[(16, 16)]] * 2
    P = normalize(m * (0.05 + 0.95 * m))
    assert_close(hyper(net, x, 1), normalize(P * m))
    plain = replace(hyper, beta=1.0)
    assert_close(plain(net, x, 1), normalize(normalize(m * m) * m))


def test_hyper_expected_grad_cam_has_sides_of_the_thesis(cam):
    """224 pixels, a layer of 7 cells and about 128^2 strong pixels: sides of 128, 64 and 32."""
    m = torch.zeros(224, 224)
    m[:128, 20:148] = 0.8
    assert HyperExpectedGradCAM(cam)._blocks(m, [32, 32]) == [(128, 128), (64, 64), (32, 32)]
    assert HyperExpectedGradCAM(cam)._blocks(0 * m, [32, 32]) == [(32, 32)]
    assert HyperExpectedGradCAM(cam)._blocks(m + 1, [32, 32]) == [(224, 224), (128, 128), (64, 64)]


def test_hyper_tiles_cover_each_pixel_once():
    inside = _tiles(torch.zeros(1, 3, 10, 7), (4, 3))
    assert inside.shape == (9, 10, 7)
    assert (inside.sum(0) == 1).all()
    assert inside[0, :4, :3].all()
    assert inside.sum((1, 2)).tolist() == [12, 12, 4, 12, 12, 4, 6, 6, 2]


@pytest.mark.parametrize(("size", "sides"), [((10, 7), (4, 3)), ((8, 8), (8, 8)), ((9,), (2,)), ((5, 6, 7), (2, 3, 4))])
def test_hyper_blocks_are_cut_and_pasted(size, sides):
    image = torch.randn(1, 3, *size)
    blocks = _cut(image, sides)
    inside = _tiles(image, sides)
    assert blocks.shape == (len(inside), 3, *sides)
    assert torch.equal(_paste(blocks[:, 1], size), image[0, 1])
    for block, own in zip(blocks, inside):
        assert_close(block.sum(), image[0][:, own].sum())


def test_hyper_frequency_of_smooth_map_has_no_details():
    mu = [torch.ones(1, 8, 8), torch.ones(1, 4, 4), torch.rand(1, 2, 2)]
    details, R = _frequency(mu, (8, 8))
    assert not details[0].any()
    assert_close(R, normalize(resize(resize(mu[2], (4, 4)), (8, 8))))


def test_hyper_expected_grad_cam_of_constant_model_is_zero(function, x, cam):
    conv = nn.Conv2d(2, 4, 3, 2, 1).double()
    net = function(lambda x, conv: 0 * conv(x).sum((2, 3)), conv=conv)
    assert not HyperExpectedGradCAM(replace(cam, layer="conv"))(net, x, 1).any()


def test_hyper_expected_grad_cam_fill_blur_changes_the_map(net, x, cam):
    zero, blurred = (HyperExpectedGradCAM(cam, fill=fill).stages(net, x, 1) for fill in ("zero", "blur"))
    assert torch.equal(zero.frequency, blurred.frequency)
    assert not torch.allclose(zero.saliency, blurred.saliency)
    assert not torch.allclose(blur(x), x)


def test_hyper_expected_grad_cam_of_signals():
    net = nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(32, 3))
    cam = ExpectedGradCAM(baselines=torch.randn(3, 2, 32), n=2)
    assert HyperExpectedGradCAM(cam, local_draws=1)(net, torch.randn(2, 2, 32)).shape == (2, 32)


def test_hyper_expected_grad_cam_refuses_cam_of_several_layers(net, x, cam):
    with pytest.raises(ValueError, match="a cam of one layer"):
        HyperExpectedGradCAM(replace(cam, layer=["1", "4"]))(net, x, 1)


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
    values = torch.stack([function(line) for line in lines.reshape(-1, lines.shape[-1])])
    return values.reshape(*lines.shape[:-1], -1).movedim(-1, axis)


def average(v, m):
    """Means of a line over m parts, which overlap where m does not divide it."""
    n = len(v)
    return torch.stack([v[i * n // m : -(-(i + 1) * n // m)].mean() for i in range(m)])


def blocks_of(size, sides):
    corners = torch.cartesian_prod(*[torch.arange(0, S, K) for S, K in zip(size, sides)]).reshape(-1, len(size))
    return [tuple(slice(int(c), int(c) + K) for c, K in zip(corner, sides)) for corner in corners]


def map_of_enlarged_block(local, net, piece, sides, size):
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
def test_hyper_expected_grad_cam_blocks_by_hand(size, neighborhood):
    net, x, hyper = setting(size, neighborhood=neighborhood, threshold=0.3)
    results = hyper.stages(net, x, 1)
    local = replace(hyper.cam, n=2)
    assert len(results.blocks[0]) == len(results.supermaps[0])
    for sides, supermap in zip(results.blocks[0], results.supermaps[0]):
        M = torch.full(size, float("nan"), dtype=torch.float64)
        for block in blocks_of(size, sides):
            if neighborhood == "zoom":
                M[block] = map_of_enlarged_block(local, net, x[(0, slice(None), *block)], sides, size)
                continue
            alone = torch.zeros_like(x)
            alone[(..., *block)] = x[(..., *block)]
            M[block] = local(net, alone, 1)[0][block]
        assert_close(supermap, normalize(M[None])[0])


@pytest.mark.parametrize("size", [(16, 32), (32, 16)])
def test_hyper_expected_grad_cam_zoom_keeps_proportions(size):
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


def test_hyper_expected_grad_cam_zoom_of_whole_image_equals_mask():
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
def test_hyper_expected_grad_cam_of_any_size_and_channels(size, channels, neighborhood):
    x, base = toy_images(2, channels, size), toy_images(3, channels, size)
    net = net_of(len(size), channels).float()
    hyper = HyperExpectedGradCAM(ExpectedGradCAM(baselines=base, n=2), local_draws=1, neighborhood=neighborhood)
    together = hyper(net, x, [0, 1])
    assert together.shape == (2, *size)
    assert together.isfinite().all()
    for i in range(2):
        assert_close(hyper(net, x[i : i + 1], i)[0], together[i], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
def test_hyper_expected_grad_cam_keeps_nan_in_its_image(neighborhood):
    hyper = expected_methods(BASELINES)[neighborhood]
    images = toy_images(2)
    expected = hyper(toy(), images[:1], 1)
    images[1, 0, 3, 3] = float("nan")
    maps = hyper(toy(), images, 1)
    assert_close(maps[:1], expected)
    assert maps[1].isnan().any()


def test_hyper_expected_grad_cam_rounds_sides_within_image():
    """33 pixels and 5 cells: IR is 7, so that at most 4 of them fit."""
    hyper = HyperExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES))
    assert hyper._blocks(torch.ones(33, 33), [7, 7]) == [(28, 28), (14, 14), (7, 7)]
    assert hyper._blocks(torch.ones(64), [8]) == [(64,), (32,), (16,)]
    assert replace(hyper, most=9)._blocks(torch.ones(64), [8]) == [(64,), (32,), (16,), (8,)]
    half = torch.zeros(64, 64)
    half[:20, :20] = 0.5  # a square of 20 pixels is 2.5 cells, rounded to the even number
    assert hyper._blocks(half, [8, 8]) == [(16, 16), (8, 8)]
    assert replace(hyper, threshold=0.51)._blocks(half, [8, 8]) == [(8, 8)]


def test_hyper_expected_grad_cam_with_plusplus():
    net, x, hyper = setting((12, 12))
    plus = expected_methods(hyper.cam.baselines, layer="block")["plusplus"]
    hyper = HyperExpectedGradCAM(plus, local_draws=3, threshold=0.0, most=1)
    results = hyper.stages(net, x, 1)
    assert results.layers == ["stem", "block"]
    assert_close(results.supermaps[0][0], normalize(plus(net, x, 1))[0])
    assert_close(results.details[-1], normalize(replace(plus, upsample=False)(net, x, 1)))
    literal = replace(hyper, cam=replace(plus, form="literal"))
    assert not torch.allclose(literal(net, x, 1), results.saliency)


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
def test_hyper_expected_grad_cam_refuses_wrong_numbers(wrong, match):
    with pytest.raises(ValueError, match=match):
        HyperExpectedGradCAM(ExpectedGradCAM(baselines=BASELINES), **wrong)


def test_hyper_expected_grad_cam_refuses_coarse_before_fine():
    cam = ExpectedGradCAM("stem", baselines=BASELINES, n=2)
    with pytest.raises(ValueError, match=r"fine to coarse, 'stem' of cam last, got \['block', 'stem'\] of \[\(4, 6\)"):
        HyperExpectedGradCAM(cam, layers="block")(toy(), toy_images(1), 1)
    both = ["stem.1", "stem.2"]  # a layer and the ReLU behind it have one size: there is no detail between them
    results = HyperExpectedGradCAM(replace(cam, layer="block"), local_draws=1, layers=both).stages(
        toy(), toy_images(1), 1
    )
    assert results.layers == [*both, "block"]
    assert not results.details[0].any()
    assert results.details[1].any()


def test_hyper_expected_grad_cam_fill_matters_to_mask_only():
    net, x, hyper = setting((12, 12), most=2)
    for neighborhood, same in (("zoom", True), ("mask", False)):
        one, other = (replace(hyper, neighborhood=neighborhood, fill=fill)(net, x, 1) for fill in ("zero", "blur"))
        assert torch.equal(one, other) == same


def test_expected_methods_of_recurrent_network():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.lstm = nn.Conv1d(2, 6, 3, 2, 1), nn.LSTM(6, 5, batch_first=True)
            self.head = nn.Linear(5, 1)

        def forward(self, x):
            return self.head(self.lstm(self.conv(x).relu().transpose(1, 2))[0][:, -1])

    torch.manual_seed(0)
    x, base = toy_images(2, 2, (30,)), toy_images(4, 2, (30,)).flip(0)
    for name, method in expected_methods(base, layer="conv", relu=False).items():
        assert method(Recurrent(), x).shape == (2, 30), name
