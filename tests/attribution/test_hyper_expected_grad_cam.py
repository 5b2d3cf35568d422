from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import ExpectedGradCAM, HyperExpectedGradCAM, normalize
from interpretable_training.attribution.core.map_operations import blur, resize
from interpretable_training.attribution.hyper_expected_grad_cam import _cut, _frequency, _paste, _tiles


@pytest.fixture
def net():
    """Features of 16, 8 and 4 cells a side."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = [nn.Conv2d(2, 3, 3, 1, 1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(3, 4, 3, 1, 1), nn.ReLU()]
        layers += [nn.MaxPool2d(2), nn.Conv2d(4, 5, 3, 1, 1), nn.ReLU(), nn.Flatten(), nn.Linear(80, 3)]
        return nn.Sequential(*layers).double()


@pytest.fixture
def x():
    return torch.randn(2, 2, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)


@pytest.fixture
def cam():
    base = torch.randn(4, 2, 16, 16, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    return ExpectedGradCAM(baselines=base, n=3)


def n(S):
    return normalize(S[None])[0]


def seen_large(local, net, block, side):
    """The map of a block (1, 2, h, w) that is filled up to a square and enlarged to 16 pixels, brought back."""
    square = torch.zeros(1, 2, side, side, dtype=block.dtype)
    square[..., : block.shape[2], : block.shape[3]] = block
    S = local(net, nn.functional.interpolate(square, (16, 16), mode="bilinear"), 1)
    return nn.functional.adaptive_avg_pool2d(S, side)[0, : block.shape[2], : block.shape[3]]


@pytest.mark.parametrize("neighborhood", ["mask", "zoom"])
def test_every_stage_follows_from_expected_grad_cam(net, x, cam, neighborhood):
    """All of (1) to (8) from maps of Expected Grad-CAM that were made one input and one layer at a time."""
    hyper = HyperExpectedGradCAM(cam, local_draws=2, neighborhood=neighborhood)
    found = hyper.stages(net, x, 1)
    assert found.layers == ["1", "4", "7"]
    for i in range(2):
        image = x[i : i + 1]
        mu = [n(replace(cam, layer=name, upsample=False)(net, image, 1)[0]) for name in found.layers]
        m = n(resize(replace(cam, upsample=False)(net, image, 1), (16, 16))[0])
        assert_close(found.first[i], m)
        cells = min(max(1, round(float((m >= 0.5).sum() ** 0.5) / 4)), 4)
        sides = [(4 * max(1, round(cells / 2**s)),) * 2 for s in range(min(3, 1 + cells.bit_length() - 1))]
        assert found.blocks[i] == sides
        local, supermaps = replace(cam, n=2), []
        for side, _ in sides:
            M = torch.zeros(16, 16, dtype=torch.float64)
            for top in range(0, 16, side):
                for left in range(0, 16, side):
                    block = (slice(top, top + side), slice(left, left + side))
                    if neighborhood == "zoom":
                        M[block] = seen_large(local, net, image[(..., *block)], side)
                        continue
                    alone = torch.zeros_like(image)
                    alone[(..., *block)] = image[(..., *block)]
                    M[block] = local(net, alone, 1)[0][block]
            supermaps.append(n(M))
        assert_close(found.supermaps[i], torch.stack(supermaps))
        r = mu[2]
        for fine, coarse in ((mu[1], mu[2]), (mu[0], mu[1])):
            down = fine.unflatten(0, (-1, 2)).unflatten(2, (-1, 2)).mean((1, 3))
            assert down.shape == coarse.shape
            r = (resize(r[None], fine.shape)[0] + fine - resize(down[None], fine.shape)[0]).clamp(min=0)
        assert_close(found.frequency[i], n(r))
        product = torch.ones(16, 16, dtype=torch.float64)
        for M in supermaps:
            product = product * (0.05 + 0.95 * M)
        P = n(n(sum(supermaps)) * product)
        assert_close(found.accumulated[i], P)
        assert_close(found.saliency[i], n(P * n(r)))
    assert torch.equal(hyper(net, x, 1), found.saliency)


def test_one_block_and_one_layer(net, x, cam):
    """Then S = n(n(m) ((1 - beta) + beta n(m)) n(m)) with the map m of Expected Grad-CAM."""
    hyper = HyperExpectedGradCAM(cam, local_draws=3, threshold=0.0, most=1, layers=[])
    m = normalize(cam(net, x, 1))
    assert hyper.stages(net, x, 1).blocks == [[(16, 16)]] * 2
    P = normalize(m * (0.05 + 0.95 * m))
    assert_close(hyper(net, x, 1), normalize(P * m))
    plain = replace(hyper, beta=1.0)
    assert_close(plain(net, x, 1), normalize(normalize(m * m) * m))


def test_blocks_of_the_thesis(cam):
    """224 pixels, a layer of 7 cells and about 128^2 strong pixels: sides of 128, 64 and 32."""
    m = torch.zeros(224, 224)
    m[:128, 20:148] = 0.8
    assert HyperExpectedGradCAM(cam)._blocks(m, [32, 32]) == [(128, 128), (64, 64), (32, 32)]
    assert HyperExpectedGradCAM(cam)._blocks(0 * m, [32, 32]) == [(32, 32)]
    assert HyperExpectedGradCAM(cam)._blocks(m + 1, [32, 32]) == [(224, 224), (128, 128), (64, 64)]


def test_tiles_cover_each_pixel_once():
    inside = _tiles(torch.zeros(1, 3, 10, 7), (4, 3))
    assert inside.shape == (9, 10, 7)
    assert (inside.sum(0) == 1).all()
    assert inside[0, :4, :3].all()
    assert inside.sum((1, 2)).tolist() == [12, 12, 4, 12, 12, 4, 6, 6, 2]


@pytest.mark.parametrize(("size", "sides"), [((10, 7), (4, 3)), ((8, 8), (8, 8)), ((9,), (2,)), ((5, 6, 7), (2, 3, 4))])
def test_blocks_are_cut_and_pasted(size, sides):
    image = torch.randn(1, 3, *size)
    blocks = _cut(image, sides)
    inside = _tiles(image, sides)
    assert blocks.shape == (len(inside), 3, *sides)
    assert torch.equal(_paste(blocks[:, 1], size), image[0, 1])
    for block, own in zip(blocks, inside):
        assert_close(block.sum(), image[0][:, own].sum())


def test_a_smooth_map_has_no_details():
    mu = [torch.ones(1, 8, 8), torch.ones(1, 4, 4), torch.rand(1, 2, 2)]
    details, R = _frequency(mu, (8, 8))
    assert not details[0].any()
    assert_close(R, normalize(resize(resize(mu[2], (4, 4)), (8, 8))))


def test_a_constant_model_gives_zero(function, x, cam):
    conv = nn.Conv2d(2, 4, 3, 2, 1).double()
    net = function(lambda x, conv: 0 * conv(x).sum((2, 3)), conv=conv)
    assert not HyperExpectedGradCAM(replace(cam, layer="conv"))(net, x, 1).any()


def test_outside_of_a_block_the_image_can_be_blurred(net, x, cam):
    zero, blurred = (HyperExpectedGradCAM(cam, fill=fill).stages(net, x, 1) for fill in ("zero", "blur"))
    assert torch.equal(zero.frequency, blurred.frequency)
    assert not torch.allclose(zero.saliency, blurred.saliency)
    assert not torch.allclose(blur(x), x)


def test_signals():
    net = nn.Sequential(nn.Conv1d(2, 4, 3, 2, 1), nn.ReLU(), nn.Conv1d(4, 4, 3, 2, 1), nn.ReLU(), nn.Flatten())
    net = nn.Sequential(net, nn.Linear(32, 3))
    cam = ExpectedGradCAM(baselines=torch.randn(3, 2, 32), n=2)
    assert HyperExpectedGradCAM(cam, local_draws=1)(net, torch.randn(2, 2, 32)).shape == (2, 32)


def test_a_cam_of_several_layers_is_refused(net, x, cam):
    with pytest.raises(ValueError, match="a cam of one layer"):
        HyperExpectedGradCAM(replace(cam, layer=["1", "4"]))(net, x, 1)
