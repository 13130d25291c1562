import numpy as np
import pytest
import torch
from scipy.optimize import minimize

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

from fscl.choices import MIXES
from fscl.errors import FsclError
from fscl.federated.mixing import mixing_weights, onto_simplex

SIMILARITY = torch.tensor(np.corrcoef(np.random.default_rng(0).normal(size=(6, 9)))).float()
IMAGES = torch.tensor([10.0, 20.0, 30.0, 5.0, 40.0, 20.0])
SHARES = IMAGES / IMAGES.sum()


def solved(objective, clients):
    """Weights that minimise an objective, by a general solver."""
    start = np.full(clients, 1 / clients)
    constraint = {"type": "eq", "fun": lambda w: w.sum() - 1}
    return minimize(
        objective, start, bounds=[(0, 1)] * clients, constraints=[constraint], method="SLSQP",
        options={"ftol": 1e-14, "maxiter": 500},
    ).x  # fmt: skip


@pytest.mark.parametrize("mix", MIXES)
def test_weights_of_every_mix_are_shares(mix):
    weights = mixing_weights(SIMILARITY, IMAGES, mix, nearest=3)
    assert weights.shape == (6, 6)
    assert torch.allclose(weights.sum(1), torch.ones(6), atol=1e-6)
    assert weights.min() >= 0


@pytest.mark.parametrize("mix", MIXES)
def test_the_order_of_clients_does_not_matter(mix):
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    weights = mixing_weights(SIMILARITY, IMAGES, mix, nearest=3)
    permuted = mixing_weights(SIMILARITY[order][:, order], IMAGES[order], mix, nearest=3)
    assert torch.allclose(permuted, weights[order][:, order], atol=1e-6)


def test_the_mean_has_the_shares_of_images_for_everyone():
    assert torch.allclose(mixing_weights(SIMILARITY, IMAGES, "mean"), SHARES.expand(6, 6))


@pytest.mark.parametrize(
    ("mix", "options"), [("soft", {"sharpness": 0.0}), ("graph", {"sharpness": 0.0}), ("nearest", {"nearest": 6})]
)
def test_without_preference_every_mix_is_the_mean(mix, options):
    assert torch.allclose(mixing_weights(SIMILARITY, IMAGES, mix, **options), SHARES.expand(6, 6), atol=1e-6)


@pytest.mark.parametrize(
    ("mix", "options"), [("soft", {"sharpness": 1e3}), ("graph", {"sharpness": 1e3}), ("nearest", {"nearest": 1})]
)
def test_with_the_strongest_preference_everyone_is_alone(mix, options):
    assert torch.allclose(mixing_weights(SIMILARITY, IMAGES, mix, **options), torch.eye(6), atol=1e-4)


def test_the_nearest_are_the_most_similar_and_weigh_by_their_images():
    weights = mixing_weights(SIMILARITY, IMAGES, "nearest", nearest=3)
    for client, row in enumerate(weights):
        chosen = set(SIMILARITY[client].argsort(descending=True)[:3].tolist())
        assert set(row.nonzero()[:, 0].tolist()) == chosen | {client}
        assert torch.allclose(row[row > 0], IMAGES[row > 0] / IMAGES[row > 0].sum())


def test_a_client_is_among_its_nearest_even_if_all_are_equally_similar():
    assert mixing_weights(torch.ones(4, 4), torch.ones(4), "nearest", nearest=2).diagonal().tolist() == [0.5] * 4


@pytest.mark.parametrize("sharpness", [0.5, 3.0, 20.0])
def test_the_graph_minimises_its_program(sharpness):
    weights = mixing_weights(SIMILARITY, IMAGES, "graph", sharpness=sharpness)
    p, s = SHARES.double().numpy(), SIMILARITY.double().numpy()
    for client, row in enumerate(weights.double().numpy()):
        expected = solved(lambda w, c=client: ((w - p) ** 2).sum() - sharpness * w @ s[c] / 6, 6)
        assert np.allclose(row, expected, atol=1e-5)


def test_projection_gives_the_nearest_weights():
    rows = torch.randn(20, 5, dtype=torch.float64)
    for row, projected in zip(rows, onto_simplex(rows), strict=True):
        expected = solved(lambda w, r=row: ((w - r.numpy()) ** 2).sum(), 5)
        assert np.allclose(projected.numpy(), expected, atol=1e-5)


def test_weights_are_their_own_projection():
    weights = torch.distributions.Dirichlet(torch.ones(4)).sample((10,))
    assert torch.allclose(onto_simplex(weights), weights, atol=1e-6)


def test_wrong_arguments_are_refused_with_their_value():
    with pytest.raises(FsclError, match="mix is 'median'; known: mean, nearest, soft, graph"):
        mixing_weights(SIMILARITY, IMAGES, "median")
    with pytest.raises(FsclError, match="nearest is 0; it must be at least 1"):
        mixing_weights(SIMILARITY, IMAGES, "nearest", nearest=0)
