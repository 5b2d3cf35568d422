"""k-means, the adjusted Rand index and the number of clusters, against scikit-learn and by hand."""

import pytest
import torch
from sklearn.cluster import KMeans
from sklearn.datasets import make_blobs
from sklearn.metrics import adjusted_rand_score

from interpretable_training.evaluation.clusters import (
    adjusted_rand,
    choose_clustering,
    contingency,
    k_means,
    nearest,
    stability_of,
)


def blobs(centers=4, spread=0.4):
    points, labels = make_blobs(120, n_features=3, centers=centers, cluster_std=spread, random_state=0)
    return torch.from_numpy(points), torch.from_numpy(labels)


def test_k_means_finds_blobs_as_scikit_learn_does():
    points, labels = blobs()
    ours, theirs = k_means(points, 4), KMeans(4, n_init=8, random_state=0).fit(points.numpy())
    assert adjusted_rand_score(labels, ours.labels) == 1
    assert ours.inertia == pytest.approx(theirs.inertia_, rel=1e-6)
    assert ours.labels.bincount().tolist() == sorted(ours.labels.bincount().tolist(), reverse=True)


def test_k_means_is_as_good_as_scikit_learn_on_mixed_points():
    points = torch.randn(90, 2, generator=torch.Generator().manual_seed(0)).double()
    theirs = KMeans(5, n_init=20, random_state=0).fit(points.numpy())
    assert k_means(points, 5, restarts=20).inertia <= 1.02 * theirs.inertia_


def test_k_means_by_hand():
    found = k_means(torch.tensor([[0.0], [1.0], [10.0], [12.0], [14.0]]), 2)
    assert found.labels.tolist() == [1, 1, 0, 0, 0]
    assert found.centers.tolist() == [[12.0], [0.5]]
    assert found.inertia == 8.5  # 2 * 0.5^2 + 2^2 + 0 + 2^2
    square, label = nearest(torch.tensor([[5.0]]).double(), found.centers)
    assert (float(square), int(label)) == (20.25, 1)


def test_the_seed_decides_everything():
    points, _ = blobs(spread=3.0)
    assert torch.equal(k_means(points, 5, seed=1).labels, k_means(points, 5, seed=1).labels)
    state = torch.get_rng_state()
    choose_clustering(points, [2, 3], resamples=2)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("seed", range(4))
def test_adjusted_rand_equals_that_of_scikit_learn(seed):
    generator = torch.Generator().manual_seed(seed)
    a, b = (torch.randint(k, (50,), generator=generator) for k in (3, 5))
    b = torch.where(torch.rand(50, generator=generator) < 0.5, a, b)
    assert adjusted_rand(a, b) == pytest.approx(adjusted_rand_score(a, b), abs=1e-12)


def test_adjusted_rand_by_hand():
    a, b = torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1])
    assert contingency(a, b).tolist() == [[1, 1], [1, 1]]
    # No pair is in one cluster of both; 2 * 2 / 6 are expected, 2 is the most.
    assert adjusted_rand(a, b) == pytest.approx((0 - 2 / 3) / (2 - 2 / 3))
    assert adjusted_rand(torch.zeros(3), torch.ones(3)) == 1


@pytest.mark.parametrize("centers", [2, 3, 5])
def test_the_number_of_blobs_is_the_most_stable_count(centers):
    points, labels = blobs(centers)
    found = choose_clustering(points, range(2, 8), slack=0.02)
    assert found.count == centers
    assert adjusted_rand(found.labels, labels) == 1
    assert stability_of(points, k_means(points, centers)) == pytest.approx(1.0)


def test_more_clusters_are_chosen_among_equally_stable_ones():
    points = torch.tensor([[0.0], [0.1], [5.0], [5.1], [100.0], [100.1], [105.0], [105.1]]).repeat(4, 1)
    assert choose_clustering(points, [2, 4]).count == 4


def test_bad_points_and_counts_are_refused():
    with pytest.raises(ValueError, match=r"expected finite points \(n, d\), got \(2, 1\)"):
        k_means(torch.tensor([[1.0], [float("nan")]]), 1)
    with pytest.raises(ValueError, match="expected 1 to 2 clusters, as many as points differ, and a restart, got 3"):
        k_means(torch.tensor([[1.0], [1.0], [2.0]]), 3)
    with pytest.raises(ValueError, match=r"expected a count from 1 to 1, as many as points differ, got \[2, 3\]"):
        choose_clustering(torch.ones(4, 2), [2, 3])
