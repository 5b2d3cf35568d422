"""Localization metrics against slow loops over pixels, on maps with ties and several boxes that may overlap."""

import numpy as np
import pytest
import torch
from torch.testing import assert_close

from interpretable_training.metrics import (
    BoxAccuracy,
    EnergyLocalizationError,
    EnergyPointingGame,
    LocalizationError,
    OfficialMetric,
    PixelF1,
    PointingGame,
)

ndimage = pytest.importorskip("scipy.ndimage")
H, W = 11, 17


def maps(n, levels=None, seed=0):
    """Smooth noise in [0, 1], in steps where `levels` are given."""
    S = torch.rand(n, 1, 4, 5, generator=torch.Generator().manual_seed(seed)).double()
    S = torch.nn.functional.interpolate(S, (H, W), mode="bilinear")[:, 0]
    S = (S - S.amin((1, 2), keepdim=True)) / (S.amax((1, 2), keepdim=True) - S.amin((1, 2), keepdim=True))
    return S if levels is None else (S * levels).round() / levels


def some_boxes(n, seed=1):
    """One to three boxes per image, with corners that may lie outside; the last image's are all outside."""
    draw = np.random.default_rng(seed)
    results = []
    for _ in range(n - 1):
        x, y = draw.integers(-4, W - 2, (draw.integers(1, 4), 2)), draw.integers(-3, H + 3, (3, 2))
        rows = [[min(a), min(b), max(a) + 3, max(b) + 3] for a, b in zip(x.tolist(), y.tolist())]
        results.append(torch.tensor([*rows[1:], [cut(rows[0])[0] - 1, 2, cut(rows[0])[0] + 5, 8]]))
    return [*results, torch.tensor([[-5, -5, 0, 4], [W, 2, W + 3, 6]])]


def cut(box):
    x1, y1, x2, y2 = box
    return [max(x1, 0), max(y1, 0), min(x2, W), min(y2, H)]


def drawn(box):
    U = np.zeros((H, W), bool)
    x1, y1, x2, y2 = cut(box)
    U[y1:y2, x1:x2] = True
    return U


def box_of(mask, corners=False):
    """Around the largest component, or None."""
    labels, count = ndimage.label(mask, np.ones((3, 3)) if corners else None)
    if not count:
        return None
    best = max(range(1, count + 1), key=lambda k: ((labels == k).sum(), -k))
    y, x = np.nonzero(labels == best)
    return [x.min(), y.min(), x.max() + 1, y.max() + 1]


def overlap(a, b):
    common = (drawn(a) & drawn(b)).sum()
    return common / (drawn(a).sum() + drawn(b).sum() - common)


S, ROUGH, BOXES = maps(24), maps(24, levels=6, seed=2), some_boxes(24)
SEEN = [[box for box in rows.tolist() if drawn(box).any()] for rows in BOXES]


def check(metric, saliency, expected, **more):
    """Also batch by batch and one by one; the last image has no box."""
    given = {"saliency": saliency, "boxes": BOXES, **more}
    results = metric.measure(**given)
    assert_close(results, torch.tensor([100 * value for value in expected] + [torch.nan]).double(), equal_nan=True)
    alone = [metric.measure(**{name: value[i : i + 1] for name, value in given.items()}) for i in range(24)]
    assert_close(torch.cat(alone), results, equal_nan=True)


@pytest.mark.parametrize("saliency", [S, ROUGH], ids=["smooth", "steps"])
@pytest.mark.parametrize("corners", [False, True])
@pytest.mark.parametrize("threshold", [None, 0.3, 0.5, 0.7])
def test_the_box_of_the_largest_component(saliency, corners, threshold):
    options = {"iou": threshold is None, "threshold": threshold or 0.5, "connectivity": 8 if corners else 4}
    best = []
    for s, rows in zip(saliency.numpy(), SEEN[:-1]):
        results = box_of(s > s.mean(), corners)
        best.append(max(overlap(results, box) for box in rows))
    v = [value if threshold is None else float(value > threshold) for value in best]
    check(LocalizationError(**options), saliency, [1 - value for value in v])
    correct = torch.arange(24) % 3 > 0
    wrong = [1 - value * bool(right) for value, right in zip(v, correct)]
    check(OfficialMetric(**options), saliency, wrong, correct=correct)


def test_published_boxes_and_areas():
    """The box ends one row and column early; the objects' areas are those before clipping."""
    best = []
    for s, rows in zip(S.numpy(), SEEN[:-1]):
        x1, y1, x2, y2 = box_of(s > s.mean())
        short = np.zeros((H, W), bool)
        short[y1 : y2 - 1, x1 : x2 - 1] = True
        common = [(short & drawn(box)).sum() for box in rows]
        areas = [(x2 - x1) * (y2 - y1) for x1, y1, x2, y2 in rows]
        best.append(max(c / (short.sum() + a - c) for c, a in zip(common, areas)))
    check(LocalizationError("casme", iou=True), S, [1 - value for value in best])


@pytest.mark.parametrize("energy", [0.5, 0.95])
@pytest.mark.parametrize("saliency", [S, ROUGH], ids=["smooth", "steps"])
def test_the_box_of_the_energy(saliency, energy):
    best = []
    for s, rows in zip(saliency.numpy(), SEEN[:-1]):
        level = max(v for v in np.unique(s) if s[s >= v].sum() >= energy * s.sum() * (1 - 1e-12))
        y, x = np.nonzero(s >= level)
        results = [x.min(), y.min(), x.max() + 1, y.max() + 1]
        best.append(max(overlap(results, box) for box in rows))
    check(EnergyLocalizationError(energy, iou=True), saliency, [1 - value for value in best])


@pytest.mark.parametrize("upstream", [False, True])
def test_precision_recall_and_their_mean(upstream):
    energy, f1, best = [], [], []
    for s, rows in zip(S.numpy(), SEEN[:-1]):
        U = np.any([drawn(box) for box in rows], 0)
        P, R = s[U].sum() / s.sum(), s[U].sum() / U.sum()
        energy, f1 = [*energy, P], [*f1, 2 * P * R / (P + R)]
        each = []
        for box in rows:
            x1, y1, x2, y2 = box if upstream else cut(box)
            P, R = s[drawn(box)].sum() / s.sum(), s[drawn(box)].sum() / ((x2 - x1) * (y2 - y1))
            each.append(2 * P * R / (P + R + 1e-6))
        best.append(max(each))
    check(EnergyPointingGame(), S, energy)
    check(PixelF1(), S, f1)
    results = PixelF1(per_box=True, upstream=upstream).measure(saliency=S, boxes=BOXES)[:-1]
    assert_close(results / 100, torch.tensor(best).double(), atol=2e-6, rtol=0)


@pytest.mark.parametrize("ties", ["first", "any", "fraction"])
def test_the_highest_pixels(ties):
    top = ROUGH.clamp(max=0.6)  # several
    hits = []
    for s, rows in zip(top.numpy(), SEEN[:-1]):
        U = np.any([drawn(box) for box in rows], 0)
        on = [bool(U[place]) for place in zip(*np.nonzero(s == s.max()))]  # row by row
        hits.append({"first": float(on[0]), "any": float(any(on)), "fraction": sum(on) / len(on)}[ties])
    check(PointingGame(ties=ties), top, hits)


@pytest.mark.parametrize("tolerance", [1, 2, 2.5, 5, 15])
def test_torchrays_tolerance_does_not_hold_its_border(tolerance):
    """Accepted is what lies closer than the tolerance, from the highest pixel to any of the object's."""
    y, x = np.mgrid[:H, :W]
    small = [torch.tensor([[3.0, 4, 5, 6]])] * 24
    hits = []
    for s in S.numpy():
        top_y, top_x = np.unravel_index(s.argmax(), s.shape)
        near = (y - top_y) ** 2 + (x - top_x) ** 2 < tolerance**2
        hits.append(100.0 * bool((near & drawn([3, 4, 5, 6])).any()))
    results = PointingGame(tolerance=tolerance).measure(saliency=S, boxes=small)
    assert results.tolist() == hits
    if tolerance == 15:
        assert PointingGame("torchray").measure(saliency=S, boxes=small).tolist() == hits


def test_a_miss_by_exactly_the_tolerance_is_a_miss():
    """(9, 12) is 15 pixels away, as (0, 15) is."""
    for dy, dx, expected in ((9, 12, 0), (0, 15, 0), (15, 0, 0), (9, 11, 100), (0, 14, 100)):
        saliency = torch.zeros(1, 32, 32)
        saliency[0, 4 + dy, 4 + dx] = 1
        mask = torch.zeros(1, 32, 32)
        mask[0, 4, 4] = 1
        assert PointingGame("torchray").measure(saliency=saliency, mask=mask).item() == expected


@pytest.mark.parametrize("components", ["largest", "all"])
def test_the_best_threshold_of_all_images(components):
    deltas, steps = (0.3, 0.5, 0.7), 20
    hits = np.zeros((len(deltas), steps))
    for s, rows in zip(S.numpy(), SEEN[:-1]):
        for t in range(steps):
            mask = s > np.float64(np.float32(t / steps))
            labels, count = ndimage.label(mask)
            results = [box_of(labels == k) for k in range(1, count + 1)]
            if components == "largest":
                results = [box_of(mask)] if count else []
            best = max((overlap(a, b) for a in results for b in rows), default=0)
            hits[:, t] += [best >= d for d in deltas]
    metric = BoxAccuracy(steps=steps, components=components)
    for part in range(0, 24, 7):
        metric.update(saliency=S[part : part + 7], boxes=BOXES[part : part + 7])
    assert metric.count == 23
    with pytest.warns(UserWarning, match="leaves out 1 of 24 images"):
        assert metric.compute().item() == pytest.approx(100 * (hits / 23).max(1).mean(), abs=1e-4)


def test_published_boxes_end_at_the_last_pixel():
    """A map of ones has the box 0, 0, W - 1, H - 1, whose sides count one pixel more: all of the object's."""
    whole = torch.tensor([[[0.0, 0, W - 1, H - 1]]])
    for preset in ("maxboxacc", "maxboxaccv2"):
        assert BoxAccuracy(preset, deltas=(1.0,)).measure(saliency=torch.ones(1, H, W), boxes=whole).item() == 100


def test_published_maps_are_cut_off_to_bytes():
    """100.7 and 100.2 of 255 are the same byte, so that no threshold tells the object from what is around it."""
    saliency = torch.full((1, 12, 20), 100.2 / 255)
    saliency[:, :, :10] = 100.7 / 255
    half = torch.tensor([[[0.0, 0, 10, 12]]])
    for preset in ("maxboxacc", "maxboxaccv2"):
        assert BoxAccuracy(preset, deltas=(0.7,)).measure(saliency=saliency, boxes=half).item() == 0
    assert BoxAccuracy(deltas=(0.7,), steps=1000).measure(saliency=saliency, boxes=half).item() == 100
