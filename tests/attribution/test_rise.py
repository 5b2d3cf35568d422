import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch.testing import assert_close

from interpretable_training.attribution import RISE, mask_images


def masks(images, **options):
    """The masks by another way: grids upsampled as a whole, then cut at their offsets."""
    method = RISE(borders="replicate", **options)
    drawn = method._masks(images)
    size = images.shape[2:]
    sides = [math.ceil(side / method.cells) for side in size]
    up = F.interpolate(
        drawn.grid[:, None], [(method.cells + 1) * side for side in sides], mode=["linear", "bilinear"][len(size) - 1]
    )[:, 0]
    rows = []
    for i in range(method.n):
        cut = tuple(slice(int(o[i]), int(o[i]) + side) for o, side in zip(drawn.offsets, size))
        rows.append(up[i][cut])
    return torch.stack(rows), drawn


@pytest.mark.parametrize("size", [(8, 8), (9, 14), (23,)])
def test_rise_masks_are_upsampled_grids_with_offset(size):
    M, drawn = masks(torch.zeros(1, 2, *size), n=30, cells=4)
    assert_close(drawn.at(torch.arange(30)), M)
    assert_close(drawn.at(torch.tensor([7, 2])), M[[7, 2]])
    assert set(drawn.grid.unique().tolist()) == {0.0, 1.0}
    for offset, side in zip(drawn.offsets, size):
        assert 0 <= int(offset.min()) < int(offset.max()) < math.ceil(side / 4)


@pytest.mark.parametrize(("size", "cells"), [((8, 8), 4), ((9, 14), 3), ((23,), 5), ((12, 12), 1), ((12, 9), 2)])
def test_rise_masks_mirror_borders_as_published(size, cells):
    """The grid is continued by its mirror image about the outer cells; between cells masks are linear."""
    drawn = RISE(n=25, cells=cells)._masks(torch.zeros(1, 2, *size))
    M = drawn.at(torch.arange(25)).numpy()
    for i in range(25):
        expected = drawn.grid[i].numpy()
        for axis, (offset, n) in enumerate(zip(drawn.offsets, size)):
            scale = cells / ((cells + 1) * math.ceil(n / cells))
            at = (int(offset[i]) + np.arange(n) + 0.5) * scale - 0.5
            mode = "reflect" if cells > 1 else "edge"  # a single cell has nothing to mirror
            lines = [
                np.interp(at, np.arange(-1, cells + 1), np.pad(line, 1, mode=mode))
                for line in np.moveaxis(expected, axis, -1).reshape(-1, cells)
            ]
            shape = np.moveaxis(expected, axis, -1).shape[:-1]
            expected = np.moveaxis(np.array(lines).reshape(*shape, n), -1, axis)
        np.testing.assert_allclose(M[i], expected, atol=1e-6)


@pytest.mark.parametrize("normalizer", ["expected", "empirical"])
@pytest.mark.parametrize("std", [None, [0.5, 2.0]])
def test_rise_equals_printed_mean(normalizer, std, network, images):
    M, _ = masks(images, n=13, cells=3, p1=0.3)
    mean = None if std is None else [0.4, 0.1]
    total = torch.zeros(2, 8, 8, dtype=torch.float64)
    for m in M:
        p = network(mask_images(images, m.expand(2, 8, 8), mean, std)).softmax(1)[:, 1].detach()
        total += p[:, None, None] * m
    expected = total / (13 * 0.3 if normalizer == "expected" else M.sum(0).clamp(min=1e-300))
    for chunk_size in (1, 3, 100):
        method = RISE(
            borders="replicate", n=13, cells=3, p1=0.3, normalizer=normalizer, mean=mean, std=std, chunk_size=chunk_size
        )
        assert_close(method(network, images, 1), expected)


def test_rise_of_constant_model_is_mean_mask(function, images):
    logits = torch.tensor([0.3, 1.0, -2.0], dtype=torch.float64)
    M, _ = masks(images, n=40)
    S = RISE(n=40, borders="replicate")(function(lambda x: logits.expand(len(x), 3)), images, 0)
    assert_close(S, (logits.softmax(0)[0] * M.mean(0) / 0.5).expand(2, 8, 8))


def test_rise_of_full_masks_is_the_probability(network, images):
    p = network(images).softmax(1)[:, 2].detach()
    assert_close(RISE(n=3, p1=1.0)(network, images, 2), p[:, None, None].expand(2, 8, 8))


def test_rise_is_largest_around_decisive_pixel(function):
    """p = sigmoid of one pixel's light: the map is largest around it."""
    net = function(lambda x: 8 * x[:, 0, 5, 10] - 4)
    S = RISE(n=400, cells=4)(net, torch.ones(1, 1, 16, 16), 1)
    assert (S[0] == S.max()).nonzero().sub(torch.tensor([5, 10])).abs().max() <= 2


def test_rise_masks_follow_the_seed(network, images):
    one, again, other = (RISE(n=10, seed=s)(network, images, 1) for s in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.allclose(one, other)


@pytest.mark.parametrize("wrong", [{"n": 0}, {"cells": 0}, {"p1": 0.0}, {"p1": 1.1}])
def test_rise_refuses_wrong_options(wrong, network, images):
    with pytest.raises(ValueError, match=r"expected (n|cells|p1) "):
        RISE(**wrong)(network, images)


def test_rise_defaults():
    assert (RISE().n, RISE().cells, RISE().p1, RISE().score) == (8000, 7, 0.5, "prob")
