"""Comparison of checkpoints: groups, verdicts, and similarities checked against the weights."""

import copy
import json
import re

import numpy as np
import pytest
import torch
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform
from torch import nn

from fscl.compare import joint_decompose
from fscl.compare.comparison import SHARED_START, compare, find_groups
from fscl.compare.comparison_text import lines
from fscl.text import decimals


def filter_cosines(models: dict[str, nn.Module]) -> np.ndarray:
    """Mean over convolutions of the cosine of two networks' filters, computed from their weights."""
    found = []
    layers = [n for n, m in next(iter(models.values())).named_modules() if isinstance(m, nn.Conv2d)]
    for layer in layers:
        weights = [m.get_submodule(layer).weight.detach().double().numpy() for m in models.values()]
        flat = np.stack([w.ravel() / np.linalg.norm(w) for w in weights])
        found.append(flat @ flat.T)
    assert len(found) == 4
    return np.mean(found, axis=0)


def starts(models: dict[str, nn.Module]) -> list[tuple[str, ...]]:
    return [tuple(n for n in models if n.startswith(f"start{s}")) for s in range(3)]


def test_fine_tuned_networks_are_grouped_by_their_start(fine_tuned: dict[str, nn.Module]) -> None:
    found = compare(joint_decompose(fine_tuned))
    assert [g.members for g in found.groups] == starts(fine_tuned)
    assert not found.trusted
    assert found.share < 0.75
    assert all(g.share > 0.95 for g in found.groups)
    assert found.joint.num_atoms == 27
    assert found.joint.share > 0.95
    same = np.array([[a[:6] == b[:6] for b in fine_tuned] for a in fine_tuned])
    assert found.related[same].min() > 2 * SHARED_START
    assert abs(found.related[~same]).max() < SHARED_START / 2
    assert found.matrix[same].min() > 0.9
    assert abs(found.matrix[~same]).max() < 0.2
    assert all(found.nearest(name)[0][:6] == name[:6] for name in fine_tuned)
    tree = linkage(squareform(1 - found.matrix, checks=False), "average")  # what is drawn on top of the heatmap
    cut = fcluster(tree, 3, "maxclust")
    assert (np.equal.outer(cut, cut) == same).all()


def test_networks_trained_from_scratch_are_grouped_by_their_random_initialisation(
    from_scratch: dict[str, nn.Module],
) -> None:
    found = compare(joint_decompose(from_scratch))
    assert [g.members for g in found.groups] == starts(from_scratch)
    same = np.array([[a[:6] == b[:6] for b in from_scratch] for a in from_scratch])
    assert found.related[same].min() > 2 * SHARED_START
    assert abs(found.related[~same]).max() < SHARED_START / 2
    assert found.matrix[same].min() > abs(found.matrix[~same]).max()


def test_groups_are_the_same_in_any_order_of_networks(fine_tuned: dict[str, nn.Module]) -> None:
    one = compare(joint_decompose(fine_tuned))
    order = [7, 2, 11, 0, 5, 9, 1, 10, 3, 6, 8, 4]
    names = [list(fine_tuned)[i] for i in order]
    other = compare(joint_decompose({name: fine_tuned[name] for name in names}))
    np.testing.assert_allclose(other.matrix, one.matrix[np.ix_(order, order)], atol=1e-6)
    np.testing.assert_allclose(other.related, one.related[np.ix_(order, order)], atol=1e-9)
    assert {frozenset(g.members) for g in other.groups} == {frozenset(g.members) for g in one.groups}
    assert other.groups[0].members[0] == names[0]
    assert other.share == pytest.approx(one.share)


def test_a_comparison_of_networks_of_one_start_is_trusted(fine_tuned: dict[str, nn.Module]) -> None:
    few = {name: fine_tuned[name] for name in starts(fine_tuned)[1]}
    found = compare(joint_decompose(few))
    assert found.trusted
    assert found.verdict.startswith("trusted: these networks share a start, and 9 atoms explain 9")
    np.testing.assert_allclose(found.matrix, filter_cosines(few), atol=2 * (1 - found.joint.shares.min()))
    # a group does not depend on the other networks in the comparison
    whole = compare(joint_decompose(fine_tuned))
    inside = [list(fine_tuned).index(n) for n in few]
    np.testing.assert_allclose(whole.matrix[np.ix_(inside, inside)], found.matrix, atol=0.02)


def test_with_enough_atoms_similarities_are_the_cosines_of_filters(fine_tuned: dict[str, nn.Module]) -> None:
    found = compare(joint_decompose(fine_tuned, 9 * 12))
    np.testing.assert_allclose(found.matrix, filter_cosines(fine_tuned), atol=2e-7)
    assert found.joint.share == pytest.approx(1)
    assert [g.members for g in found.groups] == starts(fine_tuned)
    assert not found.trusted  # exact, but of unrelated networks


def test_too_few_coefficients_make_unrelated_networks_look_alike() -> None:
    """This is why unrelated networks are compared over coefficients for each start."""
    torch.manual_seed(0)
    spectrum = torch.tensor([1.0, 0.5, 0.25, 0.1, 0.1, 0.1, 0.05, 0.05, 0.05])
    kernels = torch.linalg.qr(torch.randn(9, 9))[0]
    states = []
    for _ in range(4):  # the same kernels, as trained networks have; other mixing of channels
        mixing = torch.linalg.qr(torch.randn(256, 9))[0]
        states.append({"c.weight": (mixing * spectrum @ kernels).view(16, 16, 3, 3)})
    joint = joint_decompose(states)
    found = compare(joint)
    off = ~np.eye(4, dtype=bool)
    flat = np.stack([s["c.weight"].flatten() / s["c.weight"].norm() for s in states])
    exact = (flat @ flat.T)[off]
    from fscl.similarity import similarity_matrix

    shared_out = similarity_matrix(joint, aggregate="mean").numpy()[off]
    assert len(found.groups) == 4
    assert abs(found.matrix[off] - exact).max() < 1e-6
    assert abs(shared_out - exact).max() > 5 * abs(found.matrix[off] - exact).max()
    assert "no two of them are related" in found.verdict


def test_untrained_and_unrelated_networks_form_groups_of_one() -> None:
    for seed in range(3):
        torch.manual_seed(seed)
        nets = [nn.Sequential(nn.Conv2d(1, 8, 3), nn.Conv2d(8, 16, 3), nn.Conv2d(16, 16, 3)) for _ in range(12)]
        found = compare(joint_decompose(nets))
        assert len(found.groups) == 12
        assert not found.trusted


def test_networks_far_from_their_start_are_read_with_care() -> None:
    torch.manual_seed(0)
    start = nn.Sequential(nn.Conv2d(3, 32, 3), nn.Conv2d(32, 32, 3))
    nets = [copy.deepcopy(start) for _ in range(4)]
    for net in nets:
        for p in net.parameters():
            p.data += 0.6 * p.std() * torch.randn_like(p)
    found = compare(joint_decompose(nets))
    assert len(found.groups) == 1
    assert found.share < 0.9
    assert not found.trusted
    assert found.verdict.startswith("to be read with care: these networks share a start, but 9 atoms explain")


@pytest.mark.parametrize("metric", ["cosine", "filter", "grassmann", "projection"])
@pytest.mark.parametrize("aggregate", ["mean", "product", "depth"])
def test_compare_accepts_every_metric_and_aggregate(
    fine_tuned: dict[str, nn.Module], metric: str, aggregate: str
) -> None:
    found = compare(joint_decompose(dict(list(fine_tuned.items())[:6])), metric, aggregate)
    assert found.matrix.shape == (6, 6)
    assert np.isfinite(found.matrix).all()
    assert [len(g.members) for g in found.groups] == [4, 2]


def test_the_verdict_names_a_badly_explained_network_among_well_explained_ones() -> None:
    torch.manual_seed(0)
    start = torch.randn(32, 32, 3, 3)
    near = {f"near{i}": start @ (torch.eye(3) + 0.01 * torch.randn(3, 3)) for i in range(12)}
    states = {n: {"c.weight": w} for n, w in {**near, "far": start / 2 + 0.75 * torch.randn(32, 32, 3, 3)}.items()}
    joint = joint_decompose(states)
    found = compare(joint)
    assert [len(g.members) for g in found.groups] == [13]
    assert found.share > 0.9 > 0.5 > found.groups[0].least
    assert not found.trusted
    assert re.search(r"9 atoms explain 9\d\.\d % of their filters, as little as \d\d\.\d % in far; more", found.verdict)
    stranger = {"z": {"c.weight": torch.randn(32, 32, 3, 3)}, "zz": {"c.weight": torch.randn(32, 32, 3, 3)}}
    found = compare(joint_decompose({**states, **stranger}))
    assert "within each of the 3 groups the numbers hold as far as its networks are explained" in found.verdict
    said = lines(found)
    groups = [line for line in said if line.startswith("  group ")]
    assert len(groups) == 1, "those alone are not listed again"
    assert re.search(
        r"near7 and 5 more \(9\d\.\d % explained by 9 atoms of its own, as little as \d+\.\d % in one\)$", groups[0]
    )
    assert [line.split()[1] for line in said if line.endswith("none of its start")] == ["2", "3"]
    assert compare(joint_decompose({n: s for n, s in states.items() if n != "far"})).trusted


def test_groups_are_clusters_of_mean_relatedness() -> None:
    chain = np.array([[1, 0.5, 0.02, 0], [0.5, 1, 0.5, 0.02], [0.02, 0.5, 1, 0.5], [0, 0.02, 0.5, 1]])
    assert find_groups(chain, "abcd") == [("a", "b"), ("c", "d")]  # links alone do not make a group
    assert find_groups(np.eye(1), ["a"]) == [("a",)]
    assert find_groups(np.full((3, 3), -0.2) + 1.2 * np.eye(3), "abc") == [("a",), ("b",), ("c",)]


def test_as_data_has_all_results_as_plain_values(fine_tuned: dict[str, nn.Module]) -> None:
    found = compare(joint_decompose(fine_tuned))
    data = json.loads(json.dumps(found.as_data()))
    assert data["names"] == list(fine_tuned)
    np.testing.assert_array_equal(data["matrix"], found.matrix)
    np.testing.assert_array_equal(data["relatedness"], found.related)
    assert data["atoms"] == {"of_a_start": 9, "compared": 27}
    last = found.groups[2]
    assert data["groups"][2] == {
        "members": list(last.members),
        "explained": last.share,
        "explained_least": last.least,
    }
    assert data["explained"]["by_atoms_of_a_start"] == found.share
    assert data["explained"]["by_layer"].keys() == set(found.joint.layers) == {"0", "4", "7", "9"}
    assert set(data["explained"]["by_checkpoint"]) == set(fine_tuned)
    assert data["verdict"]["trusted"] is False


def test_lines_for_a_terminal_show_names_groups_and_verdict(fine_tuned: dict[str, nn.Module]) -> None:
    found = compare(joint_decompose(fine_tuned))
    said = lines(found)
    assert all("\n" not in line for line in said)
    rows = said[1:13]
    places = decimals(min(1 - found.nearest(name)[1] for name in fine_tuned), least=3, most=6)
    for name, row in zip(fine_tuned, rows, strict=True):
        shown, group, share, sign, nearest, similarity = row.split()
        assert (shown, group, sign) == (name, str(int(name[5]) + 1), "%")
        assert float(share) <= 100 * found.joint.shares[list(fine_tuned).index(name)]
        assert (nearest, similarity) == (found.nearest(name)[0], f"({found.nearest(name)[1]:.{places}f})")
    assert max(map(len, rows)) <= 80
    assert sum(line.startswith("  group ") for line in said) == 3
    assert "27 atoms, 9 for each of 3 starts" in "\n".join(said)
    alone = lines(compare(joint_decompose(dict(list(fine_tuned.items())[:2]))))
    assert "group" not in "".join(alone)
    assert alone[-1].startswith("Trusted: ")


def test_similarities_of_near_copies_are_shown_with_enough_digits(fine_tuned: dict[str, nn.Module]) -> None:
    torch.manual_seed(0)
    start = torch.randn(16, 16, 3, 3)
    turned = {n: start @ (torch.eye(3) + by * torch.randn(3, 3)) for n, by in (("b", 0.005), ("c", 0.05))}
    states = {n: {"conv.weight": w} for n, w in {"a": start, **turned}.items()}
    alike = [line.split()[-1] for line in lines(compare(joint_decompose(states)))[1:4]]
    assert all(re.fullmatch(r"\(0\.99\d{4}\)", number) for number in alike), alike
    states = {"a": states["a"], "b": states["a"]}
    copies = [line.split()[-1] for line in lines(compare(joint_decompose(states)))[1:3]]
    assert copies == ["(1.000)", "(1.000)"]
