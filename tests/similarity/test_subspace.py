import math
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity import aggregate_layers, atoms_of_filters, gram_matrix, similarity_matrix, subspace

METRICS = ["cosine", "filter", "grassmann", "projection"]
SPANS = ["grassmann", "projection"]


@dataclass
class Bank:
    """The smallest bank that ``similarity_matrix`` accepts."""

    atoms: dict[str, Tensor]
    coefficients: dict[str, Tensor]

    @property
    def layers(self) -> Sequence[str]:
        return list(self.atoms)

    def stack(self, layer: str) -> Tensor:
        return self.atoms[layer]

    def gram(self, layer: str) -> Tensor:
        return gram_matrix(self.coefficients[layer])


def random(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


@pytest.fixture
def bank() -> Bank:
    atoms = {"stem": random(5, 4, 3, 3), "body": random(5, 6, 3, 3, seed=1)}
    return Bank(atoms, {"stem": random(7, 3, 4, seed=2), "body": random(5, 7, 6, seed=3)})


def composed(coefficients: Tensor, atoms: Tensor) -> Tensor:
    return torch.einsum("oim,tmhw->toihw", coefficients, atoms)


def cosines(values: Tensor) -> np.ndarray:
    flat = values.flatten(1).double().numpy()
    return np.array([[u @ v / np.linalg.norm(u) / np.linalg.norm(v) for v in flat] for u in flat])


def plane_spanned_by(vectors: Tensor) -> Tensor:
    """Row vectors (rank, 9) as one task's atoms."""
    return vectors.reshape(1, -1, 3, 3)


# Axioms


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("per_layer", [False, True])
@settings(deadline=None, max_examples=20)
@given(tasks=st.integers(1, 6), seed=st.integers(0, 10**6), scale=st.sampled_from([1e-30, 1.0, 1e30]))
def test_similarity_matrix_is_symmetric_bounded_and_1_on_the_diagonal(metric, per_layer, tasks, seed, scale):
    stacks = [random(tasks, 4, 3, 3, seed=seed) * scale, random(tasks, 3, 2, 3, seed=seed + 1)]
    grams = [gram_matrix(random(5, 2, m, seed=seed)) for m in (4, 3)]
    similarity = similarity_matrix(stacks, metric, per_layer=per_layer, grams=grams)
    assert similarity.shape == ((2, tasks, tasks) if per_layer else (tasks, tasks))
    assert torch.equal(similarity, similarity.mT)
    assert (similarity.diagonal(dim1=-2, dim2=-1) == 1).all()
    assert similarity.abs().max() <= 1


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_similarity_of_scaled_atoms_with_themselves_is_1(metric, dtype):
    atoms = random(1, 9, 3, 3, dtype=torch.float32).to(dtype).repeat(4, 1, 1, 1)
    atoms[1] *= 0.25  # exact in every dtype
    atoms[2] *= 8
    similarity = similarity_matrix(atoms, metric, grams=torch.eye(9))
    assert similarity.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    torch.testing.assert_close(similarity, torch.ones_like(similarity), atol=1e-6, rtol=0)


@pytest.mark.parametrize("metric", METRICS)
def test_reordering_tasks_reorders_the_similarity_matrix(bank, metric):
    order = [3, 0, 4, 1, 2]
    moved = Bank({name: atoms[order] for name, atoms in bank.atoms.items()}, bank.coefficients)
    torch.testing.assert_close(similarity_matrix(moved, metric), similarity_matrix(bank, metric)[order][:, order])


def test_similarity_matrix_records_no_gradient():
    assert not similarity_matrix(random(3, 4, 3, 3).requires_grad_()).requires_grad


# Filters and gauge


def test_filter_metric_is_the_cosine_of_the_composed_filters(bank):
    for layer, similarity in zip(bank.layers, similarity_matrix(bank, "filter", per_layer=True), strict=True):
        expected = cosines(composed(bank.coefficients[layer], bank.atoms[layer]))
        np.testing.assert_allclose(similarity, expected, atol=1e-12)


@pytest.mark.parametrize("metric", ["filter", *SPANS])
def test_a_change_of_gauge_changes_only_the_plain_cosine(bank, metric):
    gauge = {name: random(atoms.shape[1], atoms.shape[1], seed=9) for name, atoms in bank.atoms.items()}
    moved = Bank(
        {name: torch.einsum("mn,tnhw->tmhw", gauge[name], atoms) for name, atoms in bank.atoms.items()},
        {name: c @ torch.linalg.inv(gauge[name]) for name, c in bank.coefficients.items()},
    )
    torch.testing.assert_close(similarity_matrix(moved, metric), similarity_matrix(bank, metric), atol=1e-9, rtol=0)
    cosine = similarity_matrix(bank, "cosine", "mean")
    assert (similarity_matrix(moved, "cosine", "mean") - cosine).abs().max() > 0.05


def test_plain_cosine_is_the_filter_cosine_for_orthogonal_coefficients_of_one_scale():
    atoms = random(5, 4, 3, 3)
    coefficients = 2.5 * torch.linalg.qr(random(21, 4, seed=1)).Q.reshape(7, 3, 4)
    similarity = similarity_matrix(atoms, "cosine", aggregate="mean")
    torch.testing.assert_close(similarity, similarity_matrix(atoms, "filter", "mean", grams=gram_matrix(coefficients)))
    np.testing.assert_allclose(similarity, cosines(composed(coefficients, atoms)), atol=1e-12)


def test_metrics_accept_the_singular_gram_matrix_of_more_atoms_than_filters():
    atoms, coefficients = random(4, 9, 3, 3, dtype=torch.float32), random(8, 1, 9, seed=1, dtype=torch.float32)
    similarity = similarity_matrix(atoms, "filter", "mean", grams=gram_matrix(coefficients))
    np.testing.assert_allclose(similarity, cosines(composed(coefficients, atoms)), atol=1e-5)


def test_gram_matrix_sums_over_all_channels():
    coefficients = random(4, 3, 5)
    expected = sum(torch.outer(c, c) for c in coefficients.reshape(12, 5))
    torch.testing.assert_close(gram_matrix(coefficients), expected)


# Known answers


def test_similarity_of_orthogonal_and_opposite_atoms():
    atoms = torch.zeros(3, 2, 3, 3)
    atoms[0, 0, 0, 0], atoms[1, 1, 2, 2], atoms[2, 0, 0, 0] = 3, 5, -7
    expected = torch.tensor([[1.0, 0, -1], [0, 1, 0], [-1, 0, 1]])
    assert torch.equal(similarity_matrix(atoms, "cosine", "mean"), expected)
    assert torch.equal(similarity_matrix(atoms, "filter", "mean", grams=torch.eye(2)), expected)


@pytest.mark.parametrize("theta", [0.0, 1e-7, 1e-3, 0.3, 1.2, math.pi / 2])
def test_similarity_of_spans_with_one_known_principal_angle(theta):
    e = torch.eye(9, dtype=torch.float64)
    tilted = torch.stack([e[0], math.cos(theta) * e[1] + math.sin(theta) * e[2]])
    atoms = torch.cat([plane_spanned_by(e[:2]), plane_spanned_by(tilted)])
    grassmann = similarity_matrix(atoms, "grassmann", "mean", rank=2)[0, 1]
    assert 1 - grassmann == pytest.approx(theta / (math.sqrt(2) * math.pi / 2), rel=1e-6, abs=1e-14)
    projection = similarity_matrix(atoms, "projection", "mean", rank=2)[0, 1]
    assert projection == pytest.approx((1 + math.cos(theta) ** 2) / 2, abs=1e-12)


def test_orthogonal_spans_have_similarity_0():
    e = torch.eye(9)
    atoms = torch.cat([plane_spanned_by(e[:3]), plane_spanned_by(e[3:6])])
    for metric in SPANS:
        assert similarity_matrix(atoms, metric)[0, 1] == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("rank", [1, 2, 3, 4])
def test_similarity_of_spans_agrees_with_scipy(rank):
    atoms = random(6, 5, 3, 3)
    leading = [scipy.linalg.svd(task.reshape(5, 9).T.numpy())[0][:, :rank] for task in atoms]
    grassmann = similarity_matrix(atoms, "grassmann", "mean", rank=rank)
    projection = similarity_matrix(atoms, "projection", "mean", rank=rank)
    for s, t in [(0, 1), (4, 2), (5, 0)]:
        angles = scipy.linalg.subspace_angles(leading[s], leading[t])
        distance = np.sqrt(np.sum(angles**2)) / (np.sqrt(rank) * np.pi / 2)
        assert grassmann[s, t] == pytest.approx(1 - distance, abs=1e-10)
        assert projection[s, t] == pytest.approx(np.mean(np.cos(angles) ** 2), abs=1e-10)


@pytest.mark.parametrize("metric", SPANS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_similarity_of_spans_is_invariant_to_mixing_atoms(metric, dtype):
    atoms = random(3, 3, 3, 3, dtype=dtype)
    mixed = torch.einsum("mn,tnhw->tmhw", random(3, 3, seed=5, dtype=dtype), atoms)
    similarity = similarity_matrix(torch.cat([atoms, mixed]), metric, "mean")
    torch.testing.assert_close(similarity[:3, 3:].diagonal(), torch.ones(3, dtype=dtype), atol=1e-6, rtol=0)
    torch.testing.assert_close(similarity[:3, :3], similarity[3:, 3:], atol=1e-5, rtol=0)
    plain = similarity_matrix(torch.cat([atoms, mixed]), "cosine", "mean")
    assert (plain[:3, 3:].diagonal() - 1).abs().max() > 0.01


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize("how", ["mean", "product", "depth", "per_layer"])
@pytest.mark.parametrize("values", [1, 20, 100, 2000])  # 11 tasks are a multiple of no block but one of 1
def test_similarity_matrix_does_not_depend_on_the_block_size(monkeypatch, metric, how, values):
    stacks = [random(11, 4, 3, 3), random(11, 5, 3, 3, seed=1, dtype=torch.float32), random(11, 4, 3, 3, seed=2)]
    stacks[1][7] = 0
    options = {"per_layer": True} if how == "per_layer" else {"aggregate": how}
    grams = [gram_matrix(random(6, 2, stack.shape[1], seed=3)) for stack in stacks]
    whole = similarity_matrix(stacks, metric, grams=grams, **options)
    monkeypatch.setattr(subspace, "_BLOCK_VALUES", values)
    blocks = similarity_matrix(stacks, metric, grams=grams, **options)
    torch.testing.assert_close(blocks, whole, atol=1e-12, rtol=0)
    assert torch.equal(blocks, blocks.mT)
    assert (blocks.diagonal(dim1=-2, dim2=-1) == 1).all()


def test_errors_beyond_the_first_block_name_the_task(monkeypatch):
    monkeypatch.setattr(subspace, "_BLOCK_VALUES", 120)
    atoms = random(11, 4, 3, 3)
    atoms[8] = atoms[8, :1].clone()
    with pytest.raises(FsclError, match="the atoms of task 8 span 1 dimensions"):
        similarity_matrix(atoms, "grassmann")
    atoms[9] = math.nan
    with pytest.raises(FsclError, match="layer '0': task 9 holds values that are not finite"):
        similarity_matrix(atoms)


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="peak memory is read from /proc")
def test_memory_of_similarity_matrix_does_not_grow_with_the_pairs():
    """Eight layers of 3,000 tasks would take 576 MB if float64 similarities of all layers were in memory."""
    code = """
import re, torch
from fscl.similarity import similarity_matrix
torch.set_num_threads(1)
stacks = list(torch.randn(8, 3000, 9, 3, 3))
similarity_matrix([stack[:9] for stack in stacks])
used = lambda what: int(re.search(what + r":\\s+(\\d+) kB", open("/proc/self/status").read())[1]) * 1024
before = used("VmRSS")
result = similarity_matrix(stacks)
copies = sum(8 * stack.numel() for stack in stacks)
print((used("VmHWM") - before - copies - result.nbytes) / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120)
    assert float(done.stdout) < 64


# Layers


def two_layers() -> list[Tensor]:
    """Two tasks whose layers have cosines 0.6 and -0.8."""
    first = torch.tensor([[1.0, 0.0], [0.6, 0.8]]).reshape(2, 1, 1, 2)
    second = torch.tensor([[0.0, 2.0], [0.6, -0.8]]).reshape(2, 1, 1, 2)
    return [first, second]


@pytest.mark.parametrize(("how", "expected"), [("mean", -0.1), ("product", 0.36 * 0.64), ("depth", 0.18 * 1.64)])
def test_aggregate_layers_agrees_with_a_calculation_by_hand(how, expected):
    assert similarity_matrix(two_layers(), aggregate=how)[0, 1] == pytest.approx(expected)
    per_layer = similarity_matrix(two_layers(), per_layer=True)
    assert per_layer[:, 0, 1].tolist() == pytest.approx([0.6, -0.8])
    assert aggregate_layers(per_layer, how)[1, 0] == pytest.approx(expected)


def alike(*cosines: float) -> list[Tensor]:
    """For each cosine, a layer of two tasks whose atoms have this cosine."""
    values = [[[1, 0], [c, math.sqrt(1 - c**2)]] for c in cosines]
    return list(torch.tensor(values, dtype=torch.float64).reshape(-1, 2, 1, 1, 2))


@pytest.mark.parametrize(
    ("cosines", "expected"),
    [
        ([1, 0.5], (1 + 0.25) / 2),
        ([0.5, 1], (0.25 + 0.25) / 2),
        ([1, 1, 0], 2 / 3),
        ([0, 1, 1], 0),
        ([0.5, 0.5, 0.5], (1 / 4 + 1 / 16 + 1 / 64) / 3),
        ([-0.5], 0.25),
    ],
)
def test_aggregate_depth_is_the_mean_of_the_products_down_to_each_layer(cosines, expected):
    similarity = similarity_matrix(alike(*cosines), aggregate="depth")
    assert similarity[0, 1] == pytest.approx(expected, abs=1e-15)
    assert torch.equal(similarity, similarity.T)
    assert (similarity.diagonal() == 1).all()
    values = torch.tensor(cosines, dtype=torch.float64).reshape(-1, 1, 1)
    assert aggregate_layers(values, "depth").item() == pytest.approx(expected, abs=1e-15)
    assert values.flatten().tolist() == cosines  # not written to


@given(cosines=st.lists(st.floats(-1, 1), min_size=1, max_size=6), seed=st.integers(0, 10**6))
@settings(deadline=None, max_examples=50)
def test_aggregate_depth_is_at_least_the_product_and_grows_with_each_layer(cosines, seed):
    def depth(values: Sequence[float]) -> float:
        return float(aggregate_layers(torch.tensor(values, dtype=torch.float64), "depth"))

    def product(values: Sequence[float]) -> float:
        return float(aggregate_layers(torch.tensor(values, dtype=torch.float64), "product"))

    last = len(cosines) * depth(cosines) - (len(cosines) - 1) * depth(cosines[:-1]) if cosines[1:] else depth(cosines)
    assert last == pytest.approx(product(cosines), abs=1e-12)
    assert product(cosines) - 1e-12 <= depth(cosines) <= cosines[0] ** 2 + 1e-12
    assert depth([-c for c in cosines]) == depth(cosines)
    layer = seed % len(cosines)
    nearer = [*cosines[:layer], (1 + abs(cosines[layer])) / 2, *cosines[layer + 1 :]]
    assert depth(nearer) >= depth(cosines)
    assert depth(sorted(cosines, key=abs)) <= depth(cosines) + 1e-12  # the layers least alike first
    assert depth(sorted(cosines, key=abs, reverse=True)) >= depth(cosines) - 1e-12


def test_only_aggregate_depth_depends_on_the_order_of_layers(bank):
    for how in ("product", "mean", "depth"):
        forth, back = (
            similarity_matrix(bank, aggregate=how, layers=order) for order in (["stem", "body"], ["body", "stem"])
        )
        gap = (forth - back).abs().max()
        assert gap > 0.01 if how == "depth" else gap < 1e-15


@pytest.mark.parametrize("metric", METRICS)
def test_similarity_matrix_is_the_same_for_a_bank_a_mapping_a_sequence_and_a_stack(bank, metric):
    grams = {name: bank.gram(name) for name in bank.layers}
    expected = similarity_matrix(bank, metric)
    assert torch.equal(similarity_matrix(bank.atoms, metric, grams=grams), expected)
    stacks = list(bank.atoms.values())
    assert torch.equal(similarity_matrix(stacks, metric, grams=list(grams.values())), expected)
    one = similarity_matrix(bank, metric, layers=["body"])
    assert torch.equal(similarity_matrix(stacks[1], metric, grams=grams["body"]), one)
    assert torch.equal(similarity_matrix(stacks, metric, layers=[1], grams=list(grams.values())), one)
    assert torch.equal(similarity_matrix(bank, metric, layers="body"), one)


# Degenerate atoms and wrong arguments


@pytest.mark.parametrize("metric", METRICS)
def test_zero_atoms_have_similarity_0_to_others_and_1_to_themselves(metric):
    atoms = random(4, 4, 3, 3)
    atoms[1] = atoms[3] = 0
    similarity = similarity_matrix(atoms, metric, "mean", grams=torch.eye(4))
    assert torch.equal(similarity[1], torch.eye(4, dtype=torch.float64)[1])
    assert torch.equal(similarity[3], torch.eye(4, dtype=torch.float64)[3])
    assert similarity[0, 2] != 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_similarity_matrix_names_non_finite_atoms(bank, bad):
    bank.atoms["body"][3, 2, 1, 0] = bad
    with pytest.raises(FsclError, match=r"layer 'body': task 3 .*not finite"):
        similarity_matrix(bank)
    similarity_matrix(bank, layers=["stem"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "cka"}, "unknown metric 'cka'; known: cosine, filter, grassmann, projection"),
        ({"aggregate": "median"}, "unknown aggregate 'median'; known: product, mean, depth$"),
        ({"layers": ["head"]}, r"unknown layer 'head'; known layers: \['conv1', 'conv2'\]"),
        ({"layers": []}, "no layers; known layers"),
        ({"metric": "filter"}, "'filter' needs the Gram matri.*conv1"),
        ({"metric": "filter", "grams": {"conv1": torch.eye(4)}}, r"'conv2' has no Gram matrix in grams.*\['conv1'\]"),
        ({"metric": "filter", "grams": {"conv1": torch.eye(3)}}, r"'conv1': Gram matrix \(3, 3\).*\(4, 4\)"),
        ({"metric": "filter", "grams": {"conv1": -torch.eye(4)}, "layers": ["conv1"]}, "'conv1'.*semi-definite"),
        ({"metric": "grassmann"}, r"'conv2': rank 3 with m=2 atoms of 9 values; use a rank from 1 to 2.*layers="),
        ({"metric": "projection", "rank": 0}, "rank 0 .* use a rank from 1 to 4"),
    ],
)
def test_similarity_matrix_explains_wrong_arguments(arguments, message):
    with pytest.raises(FsclError, match=message):
        similarity_matrix({"conv1": random(3, 4, 3, 3), "conv2": random(3, 2, 3, 3)}, **arguments)


@pytest.mark.parametrize(
    ("stacks", "message"),
    [
        ([], "no layers; known layers"),
        ([random(3, 3, 3)], r"layer '0': shape \(3, 3, 3\); a real tensor of shape \(tasks, m, kh, kw\)"),
        ([random(0, 3, 3, 3)], r"layer '0': shape \(0, 3, 3, 3\)"),
        ([random(2, 3, 3, 3).numpy()], "layer '0': ndarray; a real tensor"),
        ([random(2, 3, 3, 3), random(3, 3, 3, 3)], "same number of tasks.*'0': 2, '1': 3"),
    ],
)
def test_stacks_that_do_not_fit_are_refused(stacks, message):
    with pytest.raises(FsclError, match=message):
        similarity_matrix(stacks)


def test_a_rank_too_large_for_a_layer_is_refused_by_name():
    with pytest.raises(FsclError, match="'1x1': rank 3 with m=4 atoms of 1 values; leave it out with layers="):
        similarity_matrix({"1x1": random(2, 4, 1, 1)}, "grassmann")
    thin = random(2, 4, 3, 3)
    thin[1] = thin[1, :1]
    with pytest.raises(FsclError, match=r"'thin': the atoms of task 1 span 1 dimensions.*rank up to 1"):
        similarity_matrix({"thin": thin}, "grassmann")


def test_aggregate_layers_and_gram_matrix_refuse_wrong_arguments():
    with pytest.raises(FsclError, match=r"unknown aggregate 'max'; known: product, mean, depth$"):
        aggregate_layers(torch.eye(3)[None], "max")
    with pytest.raises(FsclError, match="no layers"):
        aggregate_layers(torch.empty(0, 3, 3))
    with pytest.raises(FsclError, match=r"shape \(3,\); they take \(out, in, m\)"):
        gram_matrix(torch.ones(3))


# Filters without atoms


def test_atoms_of_filters_represents_filters_with_shared_coefficients_exactly():
    coefficients, atoms = random(8, 3, 4), random(5, 4, 3, 3, seed=1)
    filters = composed(coefficients, atoms)
    found = atoms_of_filters(filters)
    assert found.atoms.shape == (5, 4, 3, 3)
    torch.testing.assert_close(composed(found.coefficients, found.atoms), filters)
    torch.testing.assert_close(found.explained, torch.ones(5, dtype=torch.float64))
    torch.testing.assert_close(gram_matrix(found.coefficients), torch.eye(4, dtype=torch.float64))
    np.testing.assert_allclose(similarity_matrix(found.atoms, aggregate="mean"), cosines(filters), atol=1e-12)


@pytest.mark.parametrize("reference", [0, 2, -1])
def test_atoms_of_filters_projects_on_the_span_of_the_reference(reference):
    filters = random(4, 20, 2, 3, 3, dtype=torch.float32)
    found = atoms_of_filters(list(filters), reference)
    rebuilt = composed(found.coefficients, found.atoms)
    torch.testing.assert_close(rebuilt[reference], filters[reference], atol=1e-5, rtol=0)
    basis = filters[reference].reshape(40, 9).double().numpy()
    for t, snapshot in enumerate(filters.reshape(4, 40, 9).double().numpy()):
        fit = basis @ np.linalg.lstsq(basis, snapshot)[0]
        np.testing.assert_allclose(rebuilt[t].reshape(40, 9), fit, atol=1e-5)
        assert found.explained[t] == pytest.approx(np.sum(fit**2) / np.sum(snapshot**2), abs=1e-5)
    assert found.explained.min() < 0.5


def test_atoms_of_filters_explains_zero_snapshots_in_full():
    filters = torch.stack([random(4, 2, 3, 3), torch.zeros(4, 2, 3, 3, dtype=torch.float64)])
    assert atoms_of_filters(filters).explained[1] == 1
    with pytest.raises(FsclError, match="reference snapshot 1 are all zero"):
        atoms_of_filters(filters, reference=1)


def test_atoms_of_filters_explains_wrong_arguments():
    filters = random(3, 4, 2, 3, 3)
    with pytest.raises(FsclError, match="reference 3 is not among the 3 snapshots; use 0 to 2"):
        atoms_of_filters(filters, reference=3)
    with pytest.raises(FsclError, match=r"shapes \[\(4, 2, 3, 3\), \(4, 2, 5, 5\)\]"):
        atoms_of_filters([filters[0], random(4, 2, 5, 5)])
    with pytest.raises(FsclError, match=r"shapes \[\]"):
        atoms_of_filters([])
    filters[1, 0, 0, 0, 0] = math.nan
    with pytest.raises(FsclError, match=r"filters: snapshot 1 .*not finite"):
        atoms_of_filters(filters)
