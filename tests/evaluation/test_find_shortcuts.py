"""`find_shortcuts`, from the squares of a map to the verdict."""

import math

import pytest
import torch
from lightning import Trainer, seed_everything
from sklearn.metrics import adjusted_mutual_info_score
from torch import nn
from torch.testing import assert_close

from interpretable_training.attribution import GradCAM
from interpretable_training.attribution.core.prepared_model import prepare_model
from interpretable_training.data import ShapesDataModule
from interpretable_training.evaluation import Shortcuts, find_shortcuts
from interpretable_training.evaluation.clusters import Clustering
from interpretable_training.evaluation.cues import Cues, find_cues, limits, nearest_squares
from interpretable_training.evaluation.image_clusters import claims, measure_cluster
from interpretable_training.evaluation.salient_squares import Lattice, drops, fill_squares, highest_squares, side_of
from interpretable_training.models import TinyCNN
from interpretable_training.modules import Classifier

COLORS = torch.tensor([[3.0, 0, 0], [0, 3.0, 0], [0, 0, 3.0]])


def by_color():
    """A network whose logit of a class is the amount of its color."""
    network = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 3))
    with torch.no_grad():
        network[0].weight.copy_(torch.eye(3)[:, :, None, None])
        network[0].bias.fill_(-1.0)
        network[4].weight.copy_(100 * torch.eye(3))
        network[4].bias.zero_()
    return network.eval()


def marked(share=0.7, n=90, seed=0, size=32):
    """Noise in which a share of the images has a square in the color of the class; whether each has one."""
    generator = torch.Generator().manual_seed(seed)
    images, target = 0.3 * torch.randn(n, 3, size, size, generator=generator), torch.arange(n) % 3
    has = torch.rand(n, generator=generator) < share
    corners = torch.randint(size - 4, (n, 2), generator=generator)
    for i in has.nonzero()[:, 0].tolist():
        y, x = corners[i].tolist()
        images[i, :, y : y + 4, x : x + 4] = COLORS[target[i], :, None, None]
    return images, target, has


# By hand


def test_highest_squares_lie_apart_and_ignore_negative_values():
    S = torch.full((1, 8, 8), -1.0)
    S[0, 1:3, 1:3], S[0, 5:7, 4:6], S[0, 1, 3] = 4.0, 3.0, 3.5
    corners, means = highest_squares(S, side=2, count=2)
    assert corners.tolist() == [[[1, 1], [5, 4]]]
    assert means.tolist() == [[4.0, 3.0]]


def test_filled_squares_have_the_color_of_their_ring():
    image = torch.zeros(1, 1, 6, 6)
    image[0, 0, 2:4, 2:4] = 9.0
    image[0, 0, 1, 1:5] = 3.0  # 4 of the 12 pixels around
    filled = fill_squares(image, torch.tensor([[2, 2]]), side=2)
    assert filled[0, 0, 2:4, 2:4].tolist() == [[1.0, 1.0], [1.0, 1.0]]
    assert torch.equal(filled[0, 0, 1], image[0, 0, 1])
    corner = fill_squares(image, torch.tensor([[0, 0]]), side=2)  # the ring is cut off by the border
    assert float(corner[0, 0, 0, 0]) == pytest.approx((3.0 + 9.0) / 5)


def test_contents_are_means_and_deviations_without_places():
    lattice = Lattice((4, 4), 2)
    image = torch.zeros(1, 1, 4, 4)
    image[0, 0, :2, :2] = image[0, 0, 2:, 2:] = torch.tensor([[1.0, 3.0], [1.0, 3.0]])
    c = lattice.contents([image])
    assert lattice.shape == (3, 3)
    assert c[0, 0].tolist() == c[0, 8].tolist() == [2.0, 1.0]
    assert c[0, 2].tolist() == [0.0, 0.0]
    assert lattice.corner(torch.tensor([5])).tolist() == [[1, 2]]
    assert lattice.cell(torch.tensor([[1, 2]])).tolist() == [5]
    assert [side_of(size) for size in ((64, 96), (8, 8), (2, 9))] == [8, 3, 2]


def test_limit_of_a_cue_by_hand():
    distance = torch.tensor([[0.1, 0.2, 0.3, 0.5, 0.7], [0.3, 0.2, 0.1, 0.4, 0.5]])
    hits = torch.tensor([[True, True, False, True, True]] * 2)
    t, count = limits(distance, hits, weight=2.0)
    assert t.tolist() == pytest.approx([0.25, 0.5])  # gains 1 2 0 1 2 and -2 -1 0 1 2
    assert count.tolist() == [2.0, 4.0]


def test_nearest_squares_equal_a_slow_version():
    generator = torch.Generator().manual_seed(0)
    z, contents = torch.randn(3, 5, generator=generator), torch.randn(20, 7, 5, generator=generator)
    slow = (contents[None] - z[:, None, None]).square().sum(3).sqrt()
    distance, cell = nearest_squares(z, contents)
    assert_close(distance, slow.amin(2))
    assert torch.equal(cell, slow.argmin(2))


def test_activation_is_a_half_at_the_limit():
    cues = Cues(torch.tensor([0]), torch.tensor([[0.0, 2.0, 4.0]]), torch.zeros(1, 3).long(), torch.tensor([2.0]))
    assert_close(cues.activation[:, 0], torch.tensor([1 / (1 + math.exp(-8)), 0.5, 1 / (1 + math.exp(8))]))
    assert cues.present.tolist() == [[True], [False], [False]]


def clusters(lost=0.2, stability=0.9):
    labels = torch.tensor([0] * 5 + [1] * 5)
    target = torch.tensor([0, 0, 0, 0, 1, 0, 1, 1, 1, 1])
    A = nn.functional.one_hot(labels, 2).double()
    numbers = {"correct": torch.ones(10), "loss": torch.arange(10.0), "lost": torch.full((10,), lost)}
    found = Clustering(labels, A[[0, 5]], 0.0, stability)
    return [measure_cluster(found, number, A, target, numbers, torch.ones(10, 2, 2)) for number in (0, 1)]


def test_numbers_of_a_cluster_by_hand():
    first, second = clusters(lost=0.05)
    assert (first.label, first.purity, first.coverage) == (0, 0.8, 0.8)
    assert first.informedness == pytest.approx(0.8 - 0.2)
    assert first.score == pytest.approx(0.9 * 0.8 * 0.6 * 0.5)
    assert (first.accuracy, first.loss, second.loss) == (1.0, 2.0, 7.0)
    assert first.shares.tolist() == [0.8, 0.2]
    assert first.facts()["members"] == 5


def changed(cluster, **facts):
    return type(cluster)(**{**vars(cluster), **facts})


def test_claims_follow_their_rule():
    cluster = clusters()[0]
    pure = [changed(cluster, number=i, purity=0.95, coverage=c, score=c) for i, c in enumerate((0.2, 0.5, 0.1))]
    assert [(c.number, c.claimed) for c in claims(pure)] == [(1, True), (0, True), (2, False)]
    assert not any(c.claimed for c in claims([pure[0], pure[2]]))  # none of them could be the first
    assert not any(c.claimed for c in claims([changed(pure[1], purity=0.89)]))
    assert not any(c.claimed for c in claims([changed(pure[1], reliance=0.03)]))
    assert not any(c.claimed for c in claims([changed(pure[1], rows=cluster.rows[:4])]))


# From a network and images to the verdict


def test_drops_are_those_of_the_probability():
    network, (images, target, _) = by_color(), marked(1.0, n=3)
    S = GradCAM(layer="1")(network, images, target)
    corners = highest_squares(S, 4, 1)[0][:, 0]
    with prepare_model(network) as prepared, torch.no_grad():
        p = network(images).softmax(1).gather(1, target[:, None])[:, 0]
        lost = drops(prepared, images, target, corners, 4, p)
        q = network(fill_squares(images, corners, 4)).softmax(1).gather(1, target[:, None])[:, 0]
    assert_close(lost, p - q)
    assert bool((lost > 0.3).all())


def test_a_class_without_salient_squares_has_no_cue():
    contents = torch.randn(12, 4, 5, generator=torch.Generator().manual_seed(0))
    target, cells = torch.arange(12) % 2, torch.zeros(12, 1, dtype=torch.long)
    contents[target == 0, 0] = 5.0  # the same in each image of class 0
    drops_of_squares = torch.ones(12, 1).masked_fill((target == 1)[:, None], torch.nan)
    cues = find_cues(contents, target, cells, drops_of_squares)
    assert cues.label.tolist() == [0]
    assert torch.equal(cues.present[:, 0], target == 0)
    none = find_cues(contents, target, cells, torch.full((12, 1), torch.nan))
    assert none.activation.shape == (12, 0)


def test_masks_are_the_squares_of_images_with_a_shortcut():
    rows, kind, corners = torch.arange(2), torch.tensor([0, -1]), torch.tensor([[1, 2], [0, 0]])
    masks = Shortcuts([], rows, rows, kind, kind, corners, side=2, maps=torch.zeros(2, 4, 5)).masks()
    assert masks[0].int().tolist() == [[0, 0, 0, 0, 0], [0, 0, 1, 1, 0], [0, 0, 1, 1, 0], [0, 0, 0, 0, 0]]
    assert not masks[1].any()


def test_marks_are_found_without_annotations():
    network, (images, target, has) = by_color(), marked()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    found = find_shortcuts(network, (images, target), GradCAM(layer="1"), max_images=None)
    assert found.claimed
    assert adjusted_mutual_info_score(torch.where(has, target, -1), found.kind) > 0.9
    assert float((found.groups() == 2 * target + has).double().mean()) > 0.95
    assert found.share == pytest.approx(float(has.double().mean()), abs=0.05)
    assert sorted(c.label for c in found.clusters if c.claimed) == [0, 1, 2]
    assert found.score == found.clusters[0].score > 0.5
    text = found.describe(["red", "green", "blue"])
    assert text.startswith("the network uses a shortcut for ")
    assert all(name in text.partition(":")[0] for name in ("red", "green", "blue"))
    assert all(torch.equal(before[name], value) for name, value in network.state_dict().items())
    again = find_shortcuts(network, (images, target), GradCAM(layer="1"), max_images=None)
    assert torch.equal(found.kind, again.kind)


def test_content_that_does_not_tell_the_class_is_no_shortcut():
    images, target, _ = marked()
    other = target[torch.randperm(len(target), generator=torch.Generator().manual_seed(1))]
    found = find_shortcuts(by_color(), (images, other), GradCAM(layer="1"))
    assert not found.claimed
    assert found.kind.tolist() == [-1] * len(target)
    assert found.describe() == "no shortcut found in 90 images"


def test_content_without_effect_on_the_network_is_no_shortcut():
    network, (images, target, _) = by_color(), marked()
    nn.init.constant_(network[4].weight, 0.01)
    assert not find_shortcuts(network, (images, target), GradCAM(layer="1")).claimed


@pytest.mark.parametrize("n", [1, 2, 3])
def test_few_images_give_no_verdict(n):
    images, target, _ = marked(1.0)
    found = find_shortcuts(by_color(), (images[:n], target[:n]), GradCAM(layer="1"))
    assert not found.claimed
    assert sum(len(cluster.rows) for cluster in found.clusters) == n


def test_bad_input_is_refused():
    network, (images, target, _) = by_color(), marked(n=6)
    with pytest.raises(TypeError, match="expected a method such as"):
        find_shortcuts(network, (images, target), "gradcam")
    with pytest.raises(ValueError, match=r"expected one class per image to find shortcuts, got targets \(6, 3\)"):
        find_shortcuts(network, (images, torch.zeros(6, 3)))
    with pytest.raises(ValueError, match="max_images"):
        find_shortcuts(network, (images, target), max_images=0)
    found = find_shortcuts(network, (images, target), max_images=3)
    assert len(found.indices) == 3
    with pytest.raises(ValueError, match=r"expected a class for each of 3 images, got \(6,\)"):
        found.groups(target)


# On trained networks


def trained(share, seed):
    """Return a tiny network that was trained on shapes, and the data."""
    seed_everything(seed, verbose=False)
    data = ShapesDataModule(64, n_train=6000, n_val=600, batch_size=32, seed=seed, annotations=True, shortcut=share)
    module = Classifier(TinyCNN(6), 6)
    trainer = Trainer(max_epochs=3, logger=False, enable_checkpointing=False, enable_progress_bar=False)
    trainer.fit(module, data)
    return module.network.eval(), data


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.8, 0.95])
def test_marks_on_shapes_are_found(share):
    network, data = trained(share, seed=0)
    found = find_shortcuts(network, data, GradCAM(layer="stage2"), max_images=None)
    tensors = data.splits["val"].tensors
    has, target = tensors["shortcut_mask"].flatten(1).any(1), tensors["target"]
    assert found.claimed
    assert adjusted_mutual_info_score(torch.where(has, target, -1), found.kind) >= 0.7
    told = found.kind >= 0
    assert float((told[has].double().mean() + (~told[~has]).double().mean()) / 2) >= 0.9


@pytest.mark.slow
def test_nothing_is_claimed_on_clean_shapes():
    network, data = trained(0.0, seed=0)
    assert not find_shortcuts(network, data, GradCAM(layer="stage2"), max_images=None).claimed
