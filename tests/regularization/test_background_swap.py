import pytest
import torch
from torch.testing import assert_close

from interpretable_training.regularization import SwapBackgrounds
from interpretable_training.regularization.background_swap import generator_of_step, widened, without_objects

ALL = SwapBackgrounds(share=1.0, widen=1)
OBJECT = 1e6  # value of the objects' pixels, which no background has


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def scene(B=12, size=10, seed=0):
    """Images with normal backgrounds and one object of 2 x 3 pixels each, at any place."""
    generator = seeded(seed)
    images, objects = torch.randn(B, 3, size, size, generator=generator), torch.zeros(B, size, size, dtype=torch.bool)
    for i, (y, x) in enumerate(torch.randint(0, size - 2, (B, 2), generator=generator).tolist()):
        objects[i, y : y + 2, x : x + 3] = True
    return images.where(~objects[:, None], OBJECT), objects


def test_two_images_of_four_by_four_pixels_by_hand():
    """The first has 1 and 3 in turns (mean 2, deviation 1) around its object of 100, the second 5 around one of 200."""
    first = torch.tensor([[100.0, 3, 1, 3], [3, 1, 3, 1], [1, 3, 1, 3], [3, 1, 3, 1]])
    second = torch.full((4, 4), 5.0)
    second[3, 3] = 200
    images, objects = torch.stack([first, second])[:, None], torch.stack([first, second]) >= 100
    W = widened(objects, 1)
    assert W[0].nonzero().tolist() == [[0, 0], [0, 1], [1, 0], [1, 1]]
    assert W[1].nonzero().tolist() == [[2, 2], [2, 3], [3, 2], [3, 3]]
    b = without_objects(images, W, torch.ones(2, 1, 4, 4))  # with noise of 1 everywhere: mean + deviation
    assert b[0, 0].tolist() == [[3, 3, 1, 3], [3, 3, 3, 1], [1, 3, 1, 3], [3, 1, 3, 1]]
    assert b[1, 0].tolist() == [[5] * 4] * 4
    swapped = ALL(images, objects, seeded())[:, 0]
    assert swapped[0].tolist() == [[100, 3, 5, 5], [3, 1, 5, 5], [5, 5, 5, 5], [5, 5, 5, 5]]
    assert swapped[1, 2:, 2:].tolist() == [[5, 5], [5, 200]]
    assert swapped[1, 2:, :2].tolist() == [[1, 3], [3, 1]]
    assert swapped[1, :2, 2:].tolist() == [[1, 3], [3, 1]]
    assert (swapped[1, :2, :2] - 2).abs().max() < 5  # its mean, with noise of deviation 1
    assert swapped[1, :2, :2].unique().numel() == 4


@pytest.mark.parametrize("widen", [0, 1, 3])
def test_object_and_margin_stay_and_no_other_object_appears(widen):
    images, objects = scene()
    W = widened(objects, widen)
    for seed in range(5):
        swapped = SwapBackgrounds(share=1.0, widen=widen)(images, objects, seeded(seed))
        assert torch.equal(swapped.where(W[:, None], 0), images.where(W[:, None], 0))
        assert swapped.where(~W[:, None], 0).abs().max() < 10  # normal numbers, also where a donor's object was


def test_each_background_is_that_of_one_other_image():
    images, objects = scene(size=12)
    W, used = widened(objects, 1), set()
    for seed in range(20):
        swapped = ALL(images, objects, seeded(seed))
        for i, image in enumerate(swapped):
            outside = ~(W[i] | W)  # (B, H, W): neither around this object nor around a donor's
            same = [j for j in range(len(images)) if torch.equal(image[:, outside[j]], images[j, :, outside[j]])]
            assert len(same) == 1
            assert same != [i]
            used.add((i, *same))
    assert len(used) > 90  # of 132 pairs, each drawn 1.8 times on average: all are possible


@pytest.mark.parametrize("share", [0.2, 0.5, 1.0])
def test_the_share_of_annotated_images_is_swapped(share):
    images, objects = scene(B=1500, size=6)
    objects[::3] = False
    swapped = SwapBackgrounds(share=share, widen=0)(images, objects, seeded())
    changed = (swapped != images).flatten(1).any(1)
    assert not changed[::3].any()
    assert changed.sum().item() / 1000 == pytest.approx(share, abs=0.05 * (share < 1))


def test_images_without_annotation_neither_change_nor_lend():
    images, objects = scene()
    images[::2], objects[::2] = OBJECT, False
    swapped = ALL(images, objects, seeded())
    assert torch.equal(swapped[::2], images[::2])
    assert (swapped[1::2] != images[1::2]).flatten(1).any(1).all()
    assert torch.equal((swapped == OBJECT)[1::2], objects[1::2, None].expand(-1, 3, -1, -1))


def test_without_a_donor_nothing_changes():
    images, objects = scene(B=3)
    objects[1:] = False
    assert torch.equal(ALL(images, objects, seeded()), images)  # no other object
    objects[1] = True  # an object without any background
    assert torch.equal(ALL(images, objects, seeded()), images)
    assert torch.equal(ALL(images, torch.zeros_like(objects), seeded()), images)


def test_inputs_and_global_random_numbers_stay():
    images, objects = scene()
    copies, state = (images.clone(), objects.clone()), torch.get_rng_state()
    one, two = ALL(images, objects, seeded()), ALL(images, objects.float() * 7, seeded())
    assert torch.equal(one, two)
    assert torch.equal(images, copies[0])
    assert torch.equal(objects, copies[1])
    assert torch.equal(torch.get_rng_state(), state)
    assert not torch.equal(one, ALL(images, objects, seeded(1)))


def test_half_precision_keeps_its_type_and_large_sums():
    images, objects = scene(size=64)
    images = images.where(~objects[:, None], 0) + 500  # a sum of 64 x 64 x 500 is beyond float16
    swapped = ALL(images.half(), objects, seeded())
    assert swapped.dtype == torch.float16
    filled = without_objects(images.half(), widened(objects, 1), torch.zeros(images.shape))
    assert_close(filled.float().mean((1, 2, 3)), torch.full((12,), 500.0), rtol=0, atol=0.5)


def test_generators_differ_by_seed_epoch_batch_and_process():
    cpu = torch.device("cpu")
    keys = [(0, 1, 2, 0), (1, 1, 2, 0), (0, 2, 2, 0), (0, 1, 3, 0), (0, 1, 2, 1), (0, 12, 0, 0)]
    draws = [torch.rand(4, generator=generator_of_step(cpu, *key)).tolist() for key in keys]
    assert len({tuple(draw) for draw in draws}) == len(keys)
    assert torch.rand(4, generator=generator_of_step(cpu, *keys[0])).tolist() == draws[0]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"share": 0.0}, r"expected share in \(0, 1\], got 0.0; leave"),
        ({"share": 1.5}, r"expected share in \(0, 1\], got 1.5; leave"),
        ({"widen": -1}, "expected widen, from_epoch and seed of at least 0, got -1, 1, 0"),
        ({"region": "shortcut"}, "expected region 'auto', 'mask' or 'boxes', got 'shortcut'; pass"),
    ],
)
def test_wrong_options_are_refused(wrong, message):
    with pytest.raises(ValueError, match=message):
        SwapBackgrounds(**wrong)


def test_wrong_images_and_masks_are_refused():
    images, objects = scene(B=2)
    with pytest.raises(ValueError, match=r"expected objects \(2, 10, 10\), .* got \(2, 5, 5\); resize"):
        ALL(images, objects[:, ::2, ::2])
    with pytest.raises(ValueError, match=r"expected floating point images .* got \(2, 3, 10, 10\) of torch.uint8"):
        ALL(images.byte(), objects)
