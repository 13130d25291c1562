import pytest
import torch
from sklearn.cluster import AgglomerativeClustering
from sklearn.metrics import adjusted_rand_score

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from fscl.errors import FsclError
from fscl.federated import groups_of


def directions(groups, spread):
    """The cosines of vectors that lie around one direction for each group."""
    numbers = torch.Generator().manual_seed(0)
    centres = torch.randn(max(groups) + 1, 40, generator=numbers)
    vectors = centres[groups] + spread * torch.randn(len(groups), 40, generator=numbers)
    vectors = torch.nn.functional.normalize(vectors, dim=1)
    return vectors @ vectors.T


@pytest.mark.parametrize("groups", [[0, 1] * 4, [0, 0, 1, 2, 1, 2, 0, 2, 1], [0, 1, 1, 1, 1, 1, 1]])
def test_clear_groups_are_found_without_their_number(groups):
    # both number groups by their first client
    assert groups_of(directions(groups, 0.3)) == groups


def test_clients_without_groups_are_one_group():
    assert groups_of(directions([0] * 10, 3.0)) == [0] * 10
    assert groups_of(torch.ones(5, 5)) == [0] * 5


@pytest.mark.parametrize("number", [1, 2, 3, 5, 12])
@pytest.mark.parametrize("linkage", ["average", "complete"])
def test_groups_are_those_of_scikit_learn(number, linkage):
    similarity = directions([0, 1, 2] * 4, 1.0)
    oracle = AgglomerativeClustering(number, metric="precomputed", linkage=linkage).fit(1 - similarity.numpy())
    found = groups_of(similarity, number, linkage)
    assert adjusted_rand_score(found, oracle.labels_) == 1
    assert len(set(found)) == number


def test_the_order_of_clients_does_not_matter():
    similarity, order = directions([0, 1, 2, 2, 1, 0, 1], 0.5), torch.tensor([4, 2, 6, 0, 1, 3, 5])
    first, permuted = groups_of(similarity, 3), groups_of(similarity[order][:, order], 3)
    assert adjusted_rand_score([first[i] for i in order], permuted) == 1


def test_the_number_of_groups_stays_unless_another_is_clearly_better():
    three = [0, 1, 2] * 3
    clear, flat = directions(three, 0.3), directions([0] * 9, 3.0)
    for before in range(1, 9):
        assert groups_of(clear, before=before) == three  # far better than any other
    assert groups_of(flat) == [0] * 9
    assert {before: len(set(groups_of(flat, before=before))) for before in (1, 12)} == {1: 1, 12: 1}
    # four groups, two of which are near each other: no number is clearly better than the other
    similarity = torch.eye(8)
    for first in range(0, 8, 2):
        similarity[first, first + 1] = similarity[first + 1, first] = 0.6
    similarity[4:6, 6:] = similarity[6:, 4:6] = 0.29
    fresh = groups_of(similarity)
    assert len(set(fresh)) == 4
    assert groups_of(similarity, before=4) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert groups_of(similarity, before=3) == [0, 0, 1, 1, 2, 2, 2, 2]
    similarity[4:6, 6:] = similarity[6:, 4:6] = 0
    assert groups_of(similarity, before=3) == fresh


def test_few_clients_have_groups_too():
    assert groups_of(torch.ones(0, 0)) == []
    assert groups_of(torch.ones(1, 1), 3) == [0]
    assert groups_of(torch.eye(2)) == [0, 0]
    assert groups_of(torch.eye(2), 2) == groups_of(torch.eye(2), 9) == [0, 1]
    with pytest.raises(FsclError, match="number of groups is 0; it must be at least 1"):
        groups_of(torch.eye(3), 0)
