"""K-means, principal components and means of groups, against plain loops."""

import faiss
import numpy as np
import pytest
import torch

from troth.clustering import KMeans, group_means, pca
from troth.errors import UserError


def heaps(count: int = 600, groups: int = 6, dims: int = 8, spread: float = 0.05) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    centres = torch.randn(groups, dims, generator=draw)
    label = torch.arange(count) % groups
    return centres[label] + spread * torch.randn(count, dims, generator=draw), label


def nearest(points: torch.Tensor, centroids: torch.Tensor) -> torch.Tensor:
    return torch.tensor([int(((centroids.double() - p.double()) ** 2).sum(1).argmin()) for p in points])


def test_k_means_finds_planted_heaps_and_labels_by_the_nearest_centroid() -> None:
    points, planted = heaps()
    found = KMeans(restarts=5).fit(points, 6, seed=0)
    assert found.labels.dtype == torch.int64
    assert found.centroids.dtype == torch.float32
    assert found.centroids.shape == (6, 8)
    assert torch.equal(found.labels, nearest(points, found.centroids))
    # One cluster a heap, whatever their numbers.
    assert len(set(zip(found.labels.tolist(), planted.tolist(), strict=True))) == 6
    torch.testing.assert_close(found.centroids, group_means(points, found.labels, 6), rtol=0, atol=1e-5)


def test_centroids_of_unit_points_are_shorter_unless_spherical() -> None:
    points = torch.nn.functional.normalize(heaps(spread=1.0)[0], dim=1)
    plain = KMeans().fit(points, 6, seed=0)
    assert (plain.centroids.norm(dim=1) < 0.95).all()
    round_ = KMeans(spherical=True).fit(points, 6, seed=0)
    torch.testing.assert_close(round_.centroids.norm(dim=1), torch.ones(6))
    assert torch.equal(round_.labels, nearest(points, round_.centroids))
    assert torch.equal(round_.labels, (points @ round_.centroids.T).argmax(1))


@pytest.mark.parametrize("seed", [0, -1, 2**63 - 1])
def test_a_seed_gives_the_same_clusters_and_another_seed_others(seed: int) -> None:
    points = torch.randn(500, 6, generator=torch.Generator().manual_seed(0))
    one, two, other = (KMeans().fit(points, 20, s) for s in (seed, seed, seed + 1))
    assert torch.equal(one.labels, two.labels)
    assert torch.equal(one.centroids, two.centroids)
    assert not torch.equal(one.labels, other.labels)


def test_the_number_of_threads_does_not_matter() -> None:
    points = torch.randn(3000, 64, generator=torch.Generator().manual_seed(0))
    before = faiss.omp_get_max_threads()
    found = []
    try:
        for threads in (1, 2):
            faiss.omp_set_num_threads(threads)
            found.append(KMeans().fit(points, 300, seed=0))
    finally:
        faiss.omp_set_num_threads(before)
    assert torch.equal(found[0].labels, found[1].labels)
    assert torch.equal(found[0].centroids, found[1].centroids)


def test_few_points_a_cluster_are_meant_and_leave_no_word(capfd: pytest.CaptureFixture[str]) -> None:
    points = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    KMeans().fit(points, 10, seed=0)
    KMeans().fit(points, 100, seed=0)
    out, err = capfd.readouterr()
    assert (out, err) == ("", "")


def test_of_equal_points_the_first_centroid_has_all() -> None:
    found = KMeans().fit(torch.ones(30, 3), 3, seed=0)
    assert torch.isfinite(found.centroids).all()
    assert torch.equal(found.labels, nearest(torch.ones(30, 3), found.centroids))


def test_nan_counts_as_zero_and_infinity_is_refused() -> None:
    points, _ = heaps()
    holes = points.clone()
    holes[3] = torch.nan
    points[3] = 0
    assert torch.equal(KMeans().fit(holes, 6, 0).centroids, KMeans().fit(points, 6, 0).centroids)
    holes[5, 1] = torch.inf
    with pytest.raises(UserError, match="infinite"):
        KMeans().fit(holes, 6, 0)
    with pytest.raises(UserError, match="infinite"):
        pca(holes, 2)


def test_a_sample_is_clustered_and_all_points_are_labelled() -> None:
    points, _ = heaps()
    found = KMeans(max_points_per_centroid=10).fit(points, 6, seed=0)
    assert torch.equal(found.labels, nearest(points, found.centroids))
    assert not torch.equal(found.centroids, KMeans().fit(points, 6, seed=0).centroids)


@pytest.mark.parametrize("clusters", [0, 11])
def test_more_clusters_than_points_are_refused(clusters: int) -> None:
    with pytest.raises(UserError, match="10 points"):
        KMeans().fit(torch.randn(10, 2), clusters, seed=0)


@pytest.mark.parametrize("count", [300, 20])
def test_principal_components_are_those_of_the_singular_vectors(count: int) -> None:
    draw = torch.Generator().manual_seed(0)
    points = torch.randn(count, 32, generator=draw) * 0.8 ** torch.arange(32) + 50
    found = pca(points, 7)
    assert found.shape == (count, 7)
    assert found.dtype == torch.float32
    centred = points.double() - points.double().mean(0)
    expected = centred @ torch.linalg.svd(centred, full_matrices=False)[2][:7].T
    signs = torch.sign((expected * found).sum(0))
    torch.testing.assert_close(found.double() * signs, expected, rtol=0, atol=1e-4)


def test_no_component_left_out_is_the_centred_points() -> None:
    points = torch.randn(50, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    for dims in (6, 64):
        found = pca(points, dims)
        torch.testing.assert_close(found, (points - points.mean(0)).float())
    with pytest.raises(UserError, match="at most 4"):
        pca(points[:4], 5)
    with pytest.raises(UserError, match="at least one"):
        pca(points, 0)


def test_group_means_are_those_of_a_loop() -> None:
    draw = np.random.default_rng(0)
    features = torch.from_numpy(draw.normal(size=(40, 5)))
    labels = torch.from_numpy(draw.integers(0, 7, 40))
    labels[labels == 3] = 2
    expected = torch.zeros(8, 5, dtype=torch.float64)
    for group in range(8):
        members = [features[i] for i in range(40) if labels[i] == group]
        if members:
            expected[group] = sum(members) / len(members)
    found = group_means(features, labels, 8)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)
    assert (found[[3, 7]] == 0).all()


def test_group_means_do_not_lose_small_values_beside_large_ones() -> None:
    features = torch.tensor([[2.0**25], [1.0], [1.0], [-(2.0**25)]])
    assert group_means(features, torch.zeros(4, dtype=torch.int64), 1).item() == 0.5


def test_labels_out_of_range_are_refused() -> None:
    for wrong in (torch.tensor([0, 2]), torch.tensor([-1, 0]), torch.tensor([0])):
        with pytest.raises(UserError, match="labels"):
            group_means(torch.zeros(2, 3), wrong, 2)
