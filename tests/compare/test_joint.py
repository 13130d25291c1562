"""Several checkpoints over shared coefficients: explained shares, similarities, and restored networks."""

import copy
import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fscl.atoms import AtomBank, atom_layers, decompose
from fscl.compare import joint_decompose
from fscl.compare.filters import LayerFilters
from fscl.errors import FsclError
from fscl.similarity import similarity_matrix


class Net(nn.Module):
    """A layer of few filters, one of many, a grouped one with a larger kernel, and entries that are not filters."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.BatchNorm2d(8)
        self.wide = nn.Conv2d(8, 16, 3, padding=1, bias=False)
        self.point = nn.Conv2d(16, 16, 1)
        self.grouped = nn.Conv2d(16, 16, (5, 3), padding=(2, 1), groups=4)
        self.hidden = nn.Linear(16, 12)
        self.classifier = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.wide(torch.relu(self.norm(self.stem(x)))))
        x = torch.relu(self.grouped(torch.relu(self.point(x)))).mean((2, 3))
        return self.classifier(torch.relu(self.hidden(x)))


SPATIAL = ("stem", "wide", "grouped")
LAYERS = ("stem", "wide", "point", "grouped", "hidden")


def tuned(start: nn.Module, by: float, classes: int = 3) -> nn.Module:
    """A network at some distance from its start, as after fine-tuning. The head is new."""
    model = Net(classes)
    old = start.state_dict()
    model.load_state_dict({k: v for k, v in old.items() if "classifier" not in k}, strict=False)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if "classifier" not in name:
                p += by * p.std() * torch.randn_like(p) if p.numel() > 1 else 0
        for buffer in (model.norm.running_mean, model.norm.running_var):
            buffer += torch.rand_like(buffer)
    return model.eval()


@pytest.fixture
def family() -> list[nn.Module]:
    """Five networks of one start."""
    start = Net()
    return [tuned(start, 0.2) for _ in range(5)]


@pytest.fixture
def strangers() -> list[nn.Module]:
    return [Net().eval() for _ in range(4)]


def columns(models: list[nn.Module], layer: str) -> list[np.ndarray]:
    """Each network's filters (out * in, kh * kw), or blocks of 16 input channels, of norm 1, from its weights."""
    found = [m.state_dict()[f"{layer}.weight"].double().numpy() for m in models]
    flat = [w.reshape(w.shape[0] * w.shape[1], -1) if layer in SPATIAL else w.reshape(-1, 16) for w in found]
    return [w / (np.linalg.norm(w) or 1) for w in flat]


def cosines(models: list[nn.Module], layer: str) -> np.ndarray:
    flat = np.stack([w.ravel() for w in columns(models, layer)])
    return flat @ flat.T


def similarity(joint, **options) -> np.ndarray:
    return similarity_matrix(joint, aggregate="mean", **options).double().numpy()


# the coefficients


@pytest.mark.parametrize("num_atoms", [1, 4, 9, 20, 45])
@pytest.mark.parametrize("models", ["family", "strangers"])
def test_joint_coefficients_explain_as_much_as_their_number_allows(request, models, num_atoms):
    """Eckart and Young: the unexplained energy is the energy of the remaining singular values of the tall matrix."""
    models = request.getfixturevalue(models)
    joint = joint_decompose(models, num_atoms)
    assert joint.layers == LAYERS
    for layer in LAYERS:
        tall = np.concatenate(columns(models, layer), 1)
        values = np.linalg.svd(tall, compute_uv=False)
        u = joint.coefficients[layer].double().flatten(0, 1).numpy()
        m = u.shape[1]
        pixels = tall.shape[1] // len(models)
        assert m == min(max(num_atoms, math.ceil(num_atoms * pixels / 9)), len(tall))
        left = np.linalg.norm(tall - u @ (u.T @ tall)) ** 2
        assert left == pytest.approx((values[m:] ** 2).sum(), abs=1e-6)
        assert joint.explained[layer].mean() == pytest.approx((values[:m] ** 2).sum() / len(models), abs=1e-6)
        # orthonormal, as many as the filters span dimensions
        rank = min(m, len(values))
        np.testing.assert_allclose(u.T @ u, np.diag(np.arange(m) < rank), atol=1e-6)
        for t, (w, model) in enumerate(zip(columns(models, layer), models, strict=True)):
            norm = float(model.get_submodule(layer).weight.detach().norm())
            np.testing.assert_allclose(joint.stack(layer)[t].flatten(1), norm * (u.T @ w), atol=1e-6 * norm)


def test_the_explained_share_grows_with_the_number_of_atoms_up_to_1(family, strangers):
    for models in (family, strangers):
        last = {layer: torch.zeros(len(models), dtype=torch.float64) for layer in LAYERS}
        share, shares = 0.0, torch.zeros(len(models), dtype=torch.float64)
        for num_atoms in (1, 2, 3, 5, 9, 12, 18, 9 * len(models)):
            joint = joint_decompose(models, num_atoms)
            for layer in LAYERS:
                assert ((joint.explained[layer] >= 0) & (joint.explained[layer] <= 1)).all()
                assert (joint.explained[layer] >= last[layer] - 1e-12).all()
            assert joint.share >= share - 1e-12
            assert (joint.shares >= shares - 1e-12).all()
            last, share, shares = joint.explained, joint.share, joint.shares
        assert share == pytest.approx(1, abs=1e-12)
        assert all(torch.allclose(e, torch.ones_like(e), atol=1e-12) for e in last.values())


def test_the_overall_explained_share_is_weighted_by_energy(family):
    joint = joint_decompose(family, 2)
    energy = {
        n: np.array([float((m.get_submodule(n).weight.detach().double() ** 2).sum()) for m in family]) for n in LAYERS
    }
    explained = {n: joint.explained[n].numpy() for n in LAYERS}
    of_each = sum(energy[n] * explained[n] for n in LAYERS) / sum(energy.values())
    np.testing.assert_allclose(joint.shares, of_each)
    total = sum((energy[n] * explained[n]).sum() for n in LAYERS)
    assert joint.share == pytest.approx(total / sum(e.sum() for e in energy.values()))


def test_unrelated_networks_share_no_coefficients(strangers):
    """As many coefficients as one network needs explain little more than a quarter of four networks."""
    apart = joint_decompose(strangers, layers=["wide"])
    assert apart.share < 0.5
    assert apart.refit(9 * 4).share == pytest.approx(1)


# comparing


def test_with_enough_atoms_the_cosine_of_atoms_is_the_cosine_of_filters(family, strangers):
    models = family[:3] + strangers[:2]
    joint = joint_decompose(models, 9 * 5)
    for layer in LAYERS:
        np.testing.assert_allclose(similarity(joint, layers=[layer]), cosines(models, layer), atol=2e-7)
        np.testing.assert_allclose(
            similarity(joint, layers=[layer], metric="filter"), cosines(models, layer), atol=2e-7
        )


def test_with_fewer_atoms_the_cosine_of_atoms_is_within_the_unexplained_share(family, strangers):
    for models in (family, strangers):
        for num_atoms in (3, 6, 9, 15):
            joint = joint_decompose(models, num_atoms)
            for layer in LAYERS:
                e = joint.explained[layer].min().item()
                off = np.abs(similarity(joint, layers=[layer]) - cosines(models, layer)).max()
                assert off <= 2 * (1 - e) + 1e-6
    assert np.abs(similarity(joint_decompose(family)) - similarity(joint_decompose(family, 45))).max() < 0.03


@pytest.mark.parametrize("num_atoms", [4, 9, 45])
@pytest.mark.parametrize("metric", ["cosine", "filter", "grassmann", "projection"])
def test_the_order_of_networks_only_permutes_the_similarity_matrix(family, metric, num_atoms):
    order = [3, 0, 4, 2, 1]
    one = similarity(joint_decompose(family, num_atoms), metric=metric)
    other = similarity(joint_decompose([family[i] for i in order], num_atoms), metric=metric)
    np.testing.assert_allclose(other, one[np.ix_(order, order)], atol=1e-5)
    related = joint_decompose(family).relatedness()
    again = joint_decompose([family[i] for i in order]).relatedness()
    torch.testing.assert_close(again, related[order][:, order])


@pytest.mark.parametrize("num_atoms", [4, 9, 45])
@torch.no_grad()
def test_scaling_the_filters_of_one_network_changes_no_similarity(family, num_atoms):
    before = joint_decompose(family, num_atoms)
    related = before.relatedness()
    family[1].wide.weight *= 100
    family[2].stem.weight *= -1e-3
    after = joint_decompose(family, num_atoms)
    signs = np.ones((5, 5))
    signs[2], signs[:, 2] = -1, -1
    signs[2, 2] = 1
    for layer, sign in (("wide", 1), ("stem", signs)):
        np.testing.assert_allclose(
            similarity(after, layers=[layer]), sign * similarity(before, layers=[layer]), atol=1e-6
        )
        torch.testing.assert_close(after.explained[layer], before.explained[layer])
    torch.testing.assert_close(after.relatedness(), related)
    assert num_atoms == 45 or after.share != pytest.approx(before.share)  # by energy, as it says


def test_adding_other_networks_changes_the_similarity_with_few_atoms(family):
    family[1].wide.weight.data.normal_()
    joint = joint_decompose(family, 45, layers=["wide"])
    assert np.abs(similarity(joint)[1, [0, 2, 3, 4]]).max() < 0.2
    assert similarity(joint)[0, 2] > 0.9


# precision


@pytest.mark.parametrize("apart", [1e-2, 1e-4, 1e-6, 0.0])
@torch.no_grad()
def test_coefficients_of_nearly_equal_networks_stay_orthonormal(apart):
    """Singular values span as many digits as the networks agree in."""
    start = torch.randn(32, 16, 3, 3)
    states = [{"c.weight": start + apart * torch.randn_like(start)} for _ in range(4)]
    joint = joint_decompose(states, 36)
    u = joint.coefficients["c"].double().flatten(0, 1)
    gram = u.mT @ u
    assert torch.allclose(gram, gram.diagonal().round().diag(), atol=1e-5)
    assert 9 <= gram.diagonal().round().sum() <= (36 if apart else 9)
    fitted = torch.einsum("oim,tmhw->toihw", joint.coefficients["c"], joint.atoms["c"])
    for mine, state in zip(fitted, states, strict=True):
        assert float((mine - state["c.weight"]).norm() / start.norm()) < 3e-7
    flat = torch.stack([s["c.weight"].double().flatten() for s in states])
    flat /= flat.norm(dim=1, keepdim=True)
    np.testing.assert_allclose(similarity(joint), flat @ flat.mT, atol=2e-7)


def test_directions_made_of_rounding_are_left_out():
    """If images reach only the middle of kernels, the other kernel values stay exactly as they started."""
    start = torch.randn(64, 64, 3, 3)
    networks = [start.clone() for _ in range(3)]
    for filters in networks:
        filters[..., 1, 1] += 0.1 * torch.randn(64, 64)
    stack = LayerFilters(networks)
    noise = 1e-14 * torch.randn(27, 27, dtype=torch.float64)  # of inner products over a quarter of a million filters
    stack.__dict__["gram"] = stack.gram + (noise + noise.T).view(3, 9, 3, 9)
    basis = stack.basis(27)
    assert int((basis.norm(dim=0) > 0.5).sum()) == 8 + 3
    torch.testing.assert_close(basis.mT @ basis, (basis.norm(dim=0) > 0.5).double().diag())
    explained = stack.project(basis)[1] / stack.norms.square()
    torch.testing.assert_close(explained, torch.ones_like(explained))


@pytest.mark.parametrize("whole", [150, 40])
@pytest.mark.parametrize("shape", [(24, 16, 3, 3), (8, 4, 3, 3), (6, 2, 5, 3)])
@pytest.mark.parametrize("size", [4, 9, 18])
def test_the_decomposition_of_many_networks_is_the_same_without_whole_matrices(monkeypatch, whole, shape, size):
    """Uses inner products of rows if there are few rows, otherwise a Krylov space, and inner products in parts."""
    start = torch.randn(shape)
    networks = [start + 0.3 * torch.rand(1) * torch.randn(shape) for _ in range(30)] + [torch.randn(shape)]

    def found() -> tuple[Tensor, Tensor, Tensor]:
        stack = LayerFilters(networks)
        basis = stack.basis(min(size, stack.rows))
        atoms, kept = stack.project(basis)
        flat = nn.functional.normalize(atoms.flatten(1))
        torch.testing.assert_close(basis.mT @ basis, torch.eye(basis.shape[1]).double())
        return kept, flat @ flat.mT, stack.overlap()[0]

    expected = found()
    monkeypatch.setattr("fscl.compare.filters._WHOLE", whole)
    monkeypatch.setattr("fscl.compare.filters._CHUNK_VALUES", 30_000)
    for mine, theirs in zip(found(), expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16, torch.float16])
def test_joint_decompose_works_in_other_precisions(dtype):
    states = [{"c.weight": torch.randn(16, 8, 3, 3).to(dtype)} for _ in range(3)]
    joint = joint_decompose(states, 27)
    assert joint.atoms["c"].dtype == torch.promote_types(dtype, torch.float32)
    flat = np.stack([s["c.weight"].double().numpy().ravel() for s in states])
    flat /= np.linalg.norm(flat, axis=1, keepdims=True)
    np.testing.assert_allclose(similarity(joint), flat @ flat.T, atol=2e-7)


def test_joint_decompose_does_not_depend_on_memory_layout_or_gradients(family):
    joint = joint_decompose(family)
    for model in family:
        model.to(memory_format=torch.channels_last)
    np.testing.assert_array_equal(similarity(joint_decompose(family)), similarity(joint))
    assert not any(t.requires_grad for t in (*joint.atoms.values(), *joint.coefficients.values()))


# filters that are zero, and layers that are small


def test_zero_filters_have_similarity_0_and_break_nothing(family):
    states = [m.state_dict() for m in family]
    states[1] = states[1] | {"wide.weight": torch.zeros(16, 8, 3, 3)}
    states = [s | {"stem.weight": torch.zeros(8, 1, 3, 3)} for s in states]
    joint = joint_decompose(states, 6)
    matrix = similarity(joint, layers=["wide"])
    assert (matrix[1, [0, 2, 3, 4]] == 0).all()
    assert matrix[0, 2] > 0.9
    assert joint.explained["wide"][1] == 1
    assert (joint.explained["stem"] == 1).all()
    assert (similarity(joint, layers=["stem"]) == np.eye(5)).all()
    assert similarity(joint, layers=["stem"], metric="filter").tolist() == np.eye(5).tolist()
    assert 0 < joint.share < 1
    assert joint.relatedness().isfinite().all()
    nothing = joint_decompose([{"c.weight": torch.zeros(4, 4, 3, 3)}] * 2)
    assert nothing.share == 1
    assert (nothing.relatedness() == 1).all()


# whether networks share a start


def test_relatedness_is_1_for_shared_coefficients_and_0_by_chance():
    torch.manual_seed(1)
    u = torch.linalg.qr(torch.randn(32 * 32, 9))[0]
    same = [{"c.weight": (u @ torch.randn(9, 9)).view(32, 32, 3, 3)} for _ in range(3)]
    related = joint_decompose(same).relatedness()
    torch.testing.assert_close(related, torch.ones(3, 3, dtype=torch.float64), atol=1e-6, rtol=0)
    assert abs(similarity(joint_decompose(same))[0, 1]) < 0.5  # though their atoms have nothing to do with each other
    chance = [
        joint_decompose([{"c.weight": torch.randn(8, 4, 3, 3)} for _ in range(2)]).relatedness()[0, 1]
        for _ in range(200)
    ]
    assert abs(np.mean(chance)) < 0.01
    assert max(chance) < 0.15


def test_relatedness_is_symmetric_at_most_1_and_falls_with_distance():
    start = Net()
    models = [start, *(tuned(start, by) for by in (0.05, 0.3, 1.0, 5.0)), Net()]
    related = joint_decompose(models).relatedness()
    assert torch.equal(related, related.mT)
    assert (related.diagonal() == 1).all()
    assert (related <= 1).all()
    assert related[0].tolist() == sorted(related[0].tolist(), reverse=True) or related[0, 5] < related[0, 3]
    assert related[0, 1] > 0.95
    assert abs(related[0, 5]) < 0.15


def test_layers_explained_by_chance_do_not_count_in_relatedness():
    small = [{"c.weight": torch.randn(8, 1, 3, 3)} for _ in range(3)]  # 8 filters lie in the span of any 9
    joint = joint_decompose(small)
    assert joint.share == pytest.approx(1)
    assert (joint.relatedness() == 1).all()
    more = [s | {"d.weight": torch.randn(16, 16, 3, 3)} for s in small]
    assert joint_decompose(more).relatedness()[0, 1:].max() < 0.1


def test_the_explained_share_of_two_networks_does_not_reveal_unrelated_ones():
    """This is why relatedness subtracts chance: a few strong atoms explain most of any filters."""
    strength = torch.tensor([1, 0.5] + [0.05] * 7)
    states = [{"c.weight": (torch.randn(1024, 9) * strength).view(32, 32, 3, 3)} for _ in range(2)]
    joint = joint_decompose(states)
    assert joint.share > 0.95
    assert joint.relatedness()[0, 1] < 0.05


# some of the networks, some of the layers


def test_refit_equals_a_new_decomposition(family, strangers):
    named = {f"n{i}": m for i, m in enumerate(family + strangers)}
    joint = joint_decompose(named)
    joint.relatedness()
    some = ["n4", "n0", "n7"]
    for again, fresh in (
        (joint.refit(5, some), joint_decompose({n: named[n] for n in some}, 5)),
        (joint.refit(names=some).refit(20, ["n0", "n7"]), joint_decompose({n: named[n] for n in ("n0", "n7")}, 20)),
        (joint.refit(30), joint_decompose(named, 30)),
    ):
        assert again.names == fresh.names
        assert again.num_atoms == fresh.num_atoms
        np.testing.assert_allclose(similarity(again), similarity(fresh), atol=1e-6)
        torch.testing.assert_close(again.shares, fresh.shares)
        torch.testing.assert_close(again.relatedness(), fresh.relatedness())


def test_joint_decompose_accepts_a_choice_of_layers(family):
    joint = joint_decompose(family, layers=["grouped", "stem"])
    assert joint.layers == ("grouped", "stem")
    whole = joint_decompose(family)
    assert torch.equal(joint.stack("stem"), whole.stack("stem"))
    assert "2 layers" in repr(joint)
    bank = joint_decompose(family, 45, layers=["grouped", "stem"]).bank(Net())
    assert bank.layers == ["stem", "grouped"]
    back = decompose(Net(), 45, skip=["wide"]).model
    bank.restore(back, 2)
    x = torch.randn(2, 1, 8, 8)
    torch.testing.assert_close(back.eval()(x), family[2](x), rtol=1e-4, atol=1e-5)


def test_state_dicts_and_modules_named_or_in_order_give_the_same_decomposition(family):
    by_order = joint_decompose(family)
    assert by_order.names == ("0", "1", "2", "3", "4")
    by_name = joint_decompose({f"m{i}": m.state_dict() for i, m in enumerate(family)})
    assert by_name.names == ("m0", "m1", "m2", "m3", "m4")
    assert all(torch.equal(by_name.stack(layer), by_order.stack(layer)) for layer in LAYERS)


# the bank


@torch.no_grad()
def test_with_enough_atoms_a_bank_restores_every_network(tmp_path):
    start = Net()
    models = [tuned(start, 0.3, classes=n) for n in (3, 7, 2)]
    joint = joint_decompose({f"of {n} classes": m.state_dict() for n, m in zip((3, 7, 2), models, strict=True)}, 27)
    network = Net(classes=5)
    before = copy.deepcopy(network.state_dict())
    joint.bank(network).save(tmp_path / "bank.safetensors")
    assert all(torch.equal(v, before[k]) for k, v in network.state_dict().items())
    bank = AtomBank.load(tmp_path / "bank.safetensors")
    assert bank.names == list(joint.names)
    assert bank.layers == list(SPATIAL)
    x = torch.randn(4, 1, 8, 8)
    back = decompose(Net(), joint.num_atoms).model.eval()
    for task in (2, 0, 1):
        bank.restore(back, task)
        torch.testing.assert_close(back(x), models[task](x), rtol=1e-5, atol=1e-6)
        for name, value in models[task].state_dict().items():  # what is no filter comes back to the bit
            if name.removesuffix(".weight") not in SPATIAL:
                assert torch.equal(back.state_dict()[name], value), name
    torch.testing.assert_close(bank.similarity(), similarity_matrix(joint, layers=SPATIAL))


@torch.no_grad()
def test_with_few_atoms_a_bank_restores_the_explained_part_of_filters(family):
    x = torch.randn(16, 1, 8, 8)
    wrong = []
    for num_atoms in (3, 9, 45):
        joint = joint_decompose(family, num_atoms)
        bank = joint.bank(Net())
        back = decompose(Net(), num_atoms).model.eval()
        for task, model in enumerate(family):
            bank.restore(back, task)
            for layer, restored in atom_layers(back).items():
                given = model.get_submodule(layer).weight
                left = float(((restored.weight - given).norm() / given.norm()).square())
                assert left == pytest.approx(1 - float(joint.explained[layer][task]), abs=1e-6)
        wrong.append(float((back(x) - family[-1](x)).norm() / family[-1](x).norm()))
    assert wrong == sorted(wrong, reverse=True)
    assert wrong[1] < 0.1
    assert wrong[2] < 1e-5


def test_a_bank_of_checkpoints_stores_entries_that_agree_once(family):
    states = [m.state_dict() for m in family]
    states = [s | {n: states[0][n] for n in ("hidden.weight", "hidden.bias", "point.bias")} for s in states]
    bank = joint_decompose(states).bank(Net())
    assert {"hidden.weight", "hidden.bias"} <= set(bank.shared)
    assert torch.equal(bank.shared["hidden.weight"], states[0]["hidden.weight"])
    own = bank.entries(3)
    assert "point.weight" in own
    assert torch.equal(own["point.weight"], states[3]["point.weight"])
    kinds = bank._tasks[3].kinds
    assert kinds["point.weight"] == kinds["point.bias"] == kinds["stem.bias"] == "other"
    assert bank.memory()["other"] == sum(4 * states[0][n].numel() for n, k in kinds.items() if k == "other")


def test_a_bank_accepts_old_checkpoints_without_counters_and_modules_with_two_names():
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = self.again = nn.Conv2d(4, 4, 3, padding=1)
            self.norm = nn.BatchNorm2d(4)
            self.fc = nn.Linear(4, 2)

        def forward(self, x):
            return self.fc(self.norm(self.again(torch.relu(self.one(x)))).mean((2, 3)))

    models = [Twice().eval() for _ in range(2)]
    states = [{k: v for k, v in m.state_dict().items() if "num_batches" not in k} for m in models]
    bank = joint_decompose(states, 18, layers=["one"]).bank(Twice())
    back = decompose(Twice(), 18).model.eval()
    x = torch.randn(2, 4, 6, 6)
    for task in (1, 0):
        bank.restore(back, task)
        torch.testing.assert_close(back(x), models[task](x), rtol=1e-5, atol=1e-6)


# mistakes


def test_errors_of_joint_decompose_name_the_network_and_valid_values(family):
    states = {n: m.state_dict() for n, m in zip("abcde", family, strict=True)}
    with pytest.raises(FsclError, match=r"no networks to decompose"):
        joint_decompose([])
    with pytest.raises(FsclError, match=r"^stem\.weight: Tensor; a state_dict or a module would do"):
        joint_decompose(states["a"])
    with pytest.raises(FsclError, match=r"^1: no layers \(convolutions, or linear layers before the head\)"):
        joint_decompose([states["a"], nn.Linear(2, 2)])
    with pytest.raises(FsclError, match="num_atoms is 0"):
        joint_decompose(states, 0)
    with pytest.raises(FsclError, match=r"^a: no layer 'conv9' to decompose; layers: stem, wide, point, grouped"):
        joint_decompose(states, layers=["stem", "conv9"])
    with pytest.raises(FsclError, match=r"no layer '' to decompose"):
        joint_decompose(states, layers=[])
    wrong = states | {"d": states["d"] | {"wide.weight": torch.randn(16, 4, 3, 3)}}
    with pytest.raises(
        FsclError, match=r"^d: layer 'wide' has filters \(16, 4, 3, 3\) here and filters \(16, 8, 3, 3\) in a"
    ):
        joint_decompose(wrong)
    wrong = states | {"c": {k: v for k, v in states["c"].items() if not k.startswith("wide")}}
    with pytest.raises(FsclError, match=r"^c: layer 'wide' has no filters here and filters \(16, 8, 3, 3\) in a"):
        joint_decompose(wrong)
    wrong = states | {"c": states["c"] | {"more.weight": torch.randn(2, 2, 3, 3)}}
    with pytest.raises(FsclError, match=r"^c: layer 'more' has filters \(2, 2, 3, 3\) here and none in a"):
        joint_decompose(wrong)
    for value in (math.nan, math.inf):
        bad = states["e"]["wide.weight"].clone()
        bad[3, 2, 1, 0] = value
        with pytest.raises(FsclError, match=r"^e: the filters of layer 'wide' are not all finite"):
            joint_decompose(states | {"e": states["e"] | {"wide.weight": bad}})


def test_errors_of_joint_decomposition_methods_list_valid_values(family):
    joint = joint_decompose(dict(zip("abcde", family, strict=True)))
    for call in (joint.stack, joint.gram):
        with pytest.raises(FsclError, match=r"no layer 'classifier' was decomposed; layers: stem, wide, point"):
            call("classifier")
    with pytest.raises(FsclError, match=r"no network 'f' was decomposed; networks: a, b, c, d, e"):
        joint.refit(names=["a", "f"])
    with pytest.raises(FsclError, match=r"no network '' was"):
        joint.refit(names=[])
    with pytest.raises(FsclError, match="num_atoms is 0"):
        joint.refit(0)
    with pytest.raises(FsclError, match=r"the network: layer 'stem' has no filters here"):
        joint.bank(nn.Sequential(nn.Conv2d(1, 8, 3)))
    lacking = [{k: v for k, v in m.state_dict().items() if k != "hidden.bias"} for m in family]
    with pytest.raises(FsclError, match=r"^0: entry 'hidden.bias' of Net is missing"):
        joint_decompose(lacking).bank(Net())
