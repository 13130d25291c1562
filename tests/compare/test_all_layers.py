"""Networks of linear layers, attention and 1x1 convolutions are compared by all their layers."""

import copy
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import SqueezeNet, VisionTransformer

from fscl.compare import joint_decompose
from fscl.compare.comparison import compare
from fscl.compare.comparison_text import lines
from fscl.compare.filters import as_filters
from fscl.compare.layers import comparable_layers
from fscl.errors import FsclError
from fscl.similarity import similarity_matrix


def transformer(classes: int = 5) -> VisionTransformer:
    return VisionTransformer(
        image_size=16, patch_size=4, num_layers=2, num_heads=2, hidden_dim=32, mlp_dim=64, num_classes=classes
    )


class ConvNextLike(nn.Module):
    """A depthwise convolution, a normalisation of channels, and two linear layers."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 32, 2, 2)
        self.depthwise = nn.Conv2d(32, 32, 7, padding=3, groups=32)
        self.norm = nn.LayerNorm(32)
        self.widen, self.narrow = nn.Linear(32, 128), nn.Linear(128, 32)
        self.head = nn.Linear(32, classes)


def moved(model: nn.Module, by: float, seed: int) -> nn.Module:
    """A copy whose weights are changed at random, in proportion to their size."""
    generator = torch.Generator().manual_seed(seed)
    result = copy.deepcopy(model)
    with torch.no_grad():
        for p in result.parameters():
            p += by * p.std() * torch.randn(p.shape, generator=generator) if p.ndim > 1 else 0
    return result


def families(make: Callable[[], nn.Module], steps: tuple[float, ...] = (0.05, 0.1, 0.2)) -> dict[str, nn.Module]:
    """Networks of three starts, at growing distances from each."""
    found = {}
    for start in range(3):
        torch.manual_seed(start)
        model = make()
        found |= {f"start{start}_{by}": moved(model, by, 10 * start + i) for i, by in enumerate(steps)}
    return found


def bottleneck() -> nn.Module:
    """As in ResNet-50, 1x1 convolutions hold a part of the weights."""
    layers = [nn.Conv2d(3, 64, 3), nn.Conv2d(64, 16, 1), nn.Conv2d(16, 16, 3), nn.Conv2d(16, 64, 1)]
    return nn.Sequential(*layers, nn.Flatten(), nn.Linear(64, 5))


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(48, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 5))


MAKERS = {"transformer": transformer, "convnext": ConvNextLike, "bottleneck": bottleneck, "perceptron": perceptron}


def weight_cosines(models: list[nn.Module], entries: list[str], part: slice = slice(None)) -> np.ndarray:
    """The oracle: the mean over entries of the cosine of whole weights."""
    matrices = []
    for entry in entries:
        flat = np.stack([m.state_dict()[entry][part].double().numpy().ravel() for m in models])
        flat /= np.linalg.norm(flat, axis=1, keepdims=True)
        matrices.append(flat @ flat.T)
    return np.mean(matrices, axis=0)


@pytest.mark.parametrize("name", MAKERS)
def test_networks_of_three_starts_form_three_groups(name: str) -> None:
    models = families(MAKERS[name])
    found = compare(joint_decompose(models))
    assert [g.members for g in found.groups] == [
        tuple(n for n in models if n.startswith(f"start{s}")) for s in range(3)
    ]
    same = np.array([[a[:6] == b[:6] for b in models] for a in models])
    assert found.related[same].min() > 0.8
    assert abs(found.related[~same]).max() < 0.1
    assert found.matrix[same].min() > abs(found.matrix[~same]).max()
    assert not found.trusted


@pytest.mark.parametrize("name", MAKERS)
def test_nearer_networks_of_one_start_are_more_similar_and_trusted(name: str) -> None:
    torch.manual_seed(0)
    start = MAKERS[name]()
    models = {"start": start} | {str(by): moved(start, by, 3) for by in (0.01, 0.05, 0.2)}
    found = compare(joint_decompose(models))
    assert found.matrix[0].tolist() == sorted(found.matrix[0].tolist(), reverse=True)
    assert found.trusted, found.verdict
    assert "of the parameters" in found.verdict


@pytest.mark.parametrize("name", MAKERS)
def test_states_in_any_order_and_modules_give_the_same_similarity(name: str) -> None:
    models = list(families(MAKERS[name]).values())[:4]
    of_modules = joint_decompose(models)
    of_states = joint_decompose([dict(sorted(m.state_dict().items())) for m in models])
    assert set(of_states.layers) == set(of_modules.layers)
    assert of_states.head == of_modules.head is not None
    assert of_states.compared == of_modules.compared
    assert of_states.parameters == of_modules.parameters == sum(p.numel() for p in models[0].parameters())
    np.testing.assert_allclose(
        similarity_matrix(of_states, aggregate="mean"), similarity_matrix(of_modules, aggregate="mean"), atol=1e-6
    )


def test_with_enough_atoms_similarity_is_the_cosine_of_weights() -> None:
    models = list(families(transformer).values())[:5]
    joint = joint_decompose(models, 9 * 5)
    prefix = "encoder.layers.encoder_layer_1"
    for layer, entry, part in (
        (f"{prefix}.mlp.0", f"{prefix}.mlp.0.weight", slice(None)),
        (f"{prefix}.self_attention.out_proj", f"{prefix}.self_attention.out_proj.weight", slice(None)),
        (f"{prefix}.self_attention.k_proj", f"{prefix}.self_attention.in_proj_weight", slice(32, 64)),
        ("conv_proj", "conv_proj.weight", slice(None)),
    ):
        expected = weight_cosines(models, [entry], part)
        np.testing.assert_allclose(similarity_matrix(joint, layers=[layer], aggregate="mean"), expected, atol=2e-6)
    assert joint.share == pytest.approx(1)


def test_every_weight_but_the_head_of_a_transformer_is_compared() -> None:
    model = transformer()
    joint = joint_decompose([model, moved(model, 0.1, 0)])
    matrices = {
        n: p for n, p in model.named_parameters() if p.ndim > 1 and "pos_embedding" not in n and "token" not in n
    }
    head = matrices.pop("heads.head.weight")
    assert joint.head == "heads.head"
    assert joint.compared == sum(p.numel() for p in matrices.values())
    assert joint.parameters == sum(p.numel() for p in model.parameters())
    found = compare(joint)
    assert found.coverage.share == joint.compared / joint.parameters < 1 - head.numel() / joint.parameters
    assert any("heads.head (the head" in line for line in lines(found))
    assert found.as_data()["layers"]["head"] == "heads.head"


def test_fused_packed_and_separate_queries_keys_and_values_are_compared_alike() -> None:
    torch.manual_seed(0)
    parts = [[torch.randn(32, 32) for _ in range(3)] for _ in range(3)]
    out = {"head.weight": torch.randn(2, 32)}
    fused = [{"attn.qkv.weight": torch.cat(p)} | out for p in parts]
    packed = [{"attn.in_proj_weight": torch.cat(p)} | out for p in parts]
    names = ("query", "key", "value")
    separate = [{f"attn.{n}.weight": w for n, w in zip(names, p, strict=True)} | out for p in parts]
    kinds = [{f"attn.{n}_proj_weight": w for n, w in zip("qkv", p, strict=True)} | out for p in parts]
    first, *others = (
        similarity_matrix(joint_decompose(states), aggregate="mean") for states in (fused, packed, separate, kinds)
    )
    for other in others:
        torch.testing.assert_close(other, first)
    assert joint_decompose(packed).layers == ("attn.q_proj", "attn.k_proj", "attn.v_proj")
    assert joint_decompose(fused).layers == ("attn.qkv.q", "attn.qkv.k", "attn.qkv.v")


@pytest.mark.parametrize("shape", [(8, 40), (8, 40, 1, 1), (5, 3), (6, 4, 5), (3, 16)])
def test_filters_of_layers_without_a_kernel_keep_all_inner_products(shape: tuple[int, ...]) -> None:
    first, second = torch.randn(2, *shape)
    filters = [as_filters(w) for w in (first, second)]
    assert filters[0].shape[2:] == (4, 4)
    assert len(filters[0]) == shape[0]
    torch.testing.assert_close((filters[0] * filters[1]).sum(), (first * second).sum())
    torch.testing.assert_close(filters[0].norm(), first.norm())


def test_atoms_of_blocks_see_changes_of_the_response_and_not_turns_among_outputs() -> None:
    """A turn among outputs leaves CKA as it is; a change of how inputs are weighted does not."""
    torch.manual_seed(0)
    start = torch.randn(256, 16)
    antisymmetric = torch.randn(256, 256)
    turn = torch.matrix_exp(0.02 * (antisymmetric - antisymmetric.mT))
    stretch = torch.eye(16) + 0.3 * torch.randn(16, 16)
    states = [{"0.weight": w, "1.weight": torch.ones(2, 256)} for w in (start, turn @ start, start @ stretch)]
    flat = nn.functional.normalize(torch.stack([s["0.weight"].flatten() for s in states]))
    whole, atoms = flat @ flat.mT, similarity_matrix(joint_decompose(states), aggregate="mean")
    assert float(1 - atoms[0, 1]) < 0.5 * float(1 - whole[0, 1])
    assert float(1 - atoms[0, 2]) > 0.8 * float(1 - whole[0, 2])


def test_heads_and_layers_that_not_all_networks_have_are_left_out_by_name() -> None:
    torch.manual_seed(0)
    start = transformer()
    states = [moved(start, 0.05, i).state_dict() for i in range(3)]
    for state, classes in zip(states, (2, 3, 5), strict=True):
        state["heads.head.weight"] = torch.randn(classes, 32)
    assert compare(joint_decompose(states)).trusted
    states[1]["second.weight"] = torch.randn(4, 32)
    for state, outputs in zip(states, (6, 6, 7), strict=True):
        state["aside.weight"] = torch.randn(outputs, 32)
    joint = joint_decompose(states)
    assert {layer: why.reason for layer, why in joint.left_out.items()} == {
        "second": "not in every network",
        "aside": "its number of outputs differs",
    }
    found = compare(joint)
    assert not found.trusted
    assert "2 of 15 layers could not be compared" in found.verdict
    assert joint_decompose(states[:2], layers=["aside"]).layers == ("aside",)
    with pytest.raises(FsclError, match=r"layer 'aside' cannot be compared with the other networks: its number of out"):
        joint_decompose(states, layers=["aside"])
    states[2]["encoder.layers.encoder_layer_0.mlp.3.weight"] = torch.randn(32, 48)
    with pytest.raises(
        FsclError, match=r"^2: layer '.*mlp\.3' has weights \(32, 48\) here and weights \(32, 64\) in 0"
    ):
        joint_decompose(states)


HEADS: dict[str, tuple[Callable[[], dict[str, Tensor]], str]] = {
    "last in its order": (lambda: {"a.weight": torch.ones(4, 4), "b.weight": torch.ones(2, 4)}, "b"),
    "by name": (lambda: {"classifier.weight": torch.ones(2, 4), "encoder.weight": torch.ones(4, 4)}, "classifier"),
    "last of a classifier": (lambda: {f"classifier.{i}.weight": torch.ones(4, 4) for i in (0, 12, 3)}, "classifier.12"),
    "by number": (lambda: {f"{i}.weight": torch.ones(4, 4) for i in (1, 10, 2)}, "10"),
    "convolution": (lambda: dict(sorted(SqueezeNet(num_classes=2).state_dict().items())), "classifier.1"),
    "none": (lambda: {"0.weight": torch.ones(4, 4, 1, 1), "1.weight": torch.ones(4, 4, 3, 3)}, ""),
}


@pytest.mark.parametrize("kind", HEADS)
def test_the_head_is_found_in_states_in_any_order(kind: str) -> None:
    make, expected = HEADS[kind]
    assert "".join(comparable_layers("net", make()).head) == expected


def test_recurrent_layers_and_one_dimensional_convolutions_are_compared() -> None:
    model = nn.Sequential(nn.Conv1d(4, 8, 5), nn.LSTM(8, 16), nn.Linear(16, 3))
    joint = joint_decompose([model, moved(model, 0.1, 0)])
    assert joint.layers == ("0", "1.weight_ih_l0", "1.weight_hh_l0")
    assert joint.compared == 4 * 8 * 5 + 64 * 8 + 64 * 16


def test_linear_layers_that_cannot_be_compared_are_left_out_by_name() -> None:
    class Scaled(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return 2 * super().forward(x)

    model = nn.Sequential(
        nn.Linear(4, 4), Scaled(4, 4), nn.utils.parametrizations.orthogonal(nn.Linear(4, 4)), nn.Linear(4, 2)
    )
    of_module = comparable_layers("net", model)
    assert list(of_module.weights) == ["0", "2"]
    assert of_module.left_out["1"].reason == "Scaled overrides nn.Linear's forward"
    of_state = comparable_layers("net", model.state_dict())
    assert list(of_state.weights) == ["0", "1"]
    assert "in an unknown way" in of_state.left_out["2"].reason
    integers = model.state_dict() | {"1.weight": torch.ones(4, 4, dtype=torch.int8)}
    assert comparable_layers("net", integers).left_out["1"].reason == "int8 values, whose scale is not known"
