"""Compares the responses of a bank's tasks to images, by passes or by the tangent of one network's passes.

The cosine of atoms compares what layers do to the same input. But the input of a layer depends on all layers before it,
on normalisation and on the images. Responses to synthetic images (:mod:`fscl.similarity.stimuli`) include all this, and
need no data.
"""

import copy
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.modules.batchnorm import _NormBase

from fscl.atoms.bank import AtomBank
from fscl.errors import FsclError
from fscl.similarity.features import channels_first, collect_features
from fscl.similarity.probing import PROBES, probing_matrix
from fscl.similarity.subspace import similarity_matrix

__all__ = ["READINGS", "response_features", "response_similarity", "tangent_features", "tangent_similarity"]

READINGS = ("aligned_cosine", "linear_cka", "mean_cca")  # compare channels, variances, directions
Call = Callable[[nn.Module, Tensor], object]


def response_features(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    layers: str | Iterable[str] | None = None,
    positions: int | None = 64,
    batch_size: int = 64,
    call: Call | None = None,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """The outputs of each task's convolutions, or other layers, for the same images, before normalisation.

    Args:
        bank: T tasks.
        model: the bank's network, or one of its architecture. It is not changed.
        images: (n, channels, height, width), real or synthetic, such as :func:`fscl.similarity.dead_leaves`.
        layers: dotted names, or one dotted name; the bank's layers by default, which are spatial convolutions. Name
            linear layers and ``nn.MultiheadAttention`` for transformers; their tokens are positions.
        positions: number of positions drawn from each image's feature map, the same in all tasks; None takes all.
        batch_size: images in a pass.
        call: makes the pass from (model, images), if ``model(images)`` does not.
        seed: seed of the draw of positions.

    Returns:
        By layer a list of T feature matrices (n * positions, out_channels) on the CPU.

    Raises:
        FsclError: the bank is empty or belongs to another network; and as :func:`fscl.similarity.collect_features`.

    Example:
        >>> from fscl.atoms import AtomBank, decompose, freeze_coefficients
        >>> from fscl.compare import response_features
        >>> from fscl.similarity import noise_images
        >>> model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))).model
        >>> freeze_coefficients(model)
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0)
        >>> response_features(bank, model, noise_images(2, (1, 8, 8)))["0"][0].shape
        torch.Size([72, 4])
    """
    _check(bank)
    network, names = copy.deepcopy(model), _names(bank, layers)
    responses: dict[str, list[Tensor]] = {}
    for task in bank.tasks:
        bank.restore(network, task)
        features = collect_features(
            network,
            images.split(batch_size),
            names,
            maps="positions",
            positions=positions,
            call=call,
            progress=False,
            seed=seed,
        )
        for name, values in features.items():
            responses.setdefault(name, []).append(values)
    return responses


def response_similarity(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    measure: str | Sequence[str] = "aligned_cosine",
    *,
    per_layer: bool = False,
    **options: Any,
) -> Tensor:
    """Task-to-task similarity of the responses to the same images, mean over layers: (T, T), or (L, T, T).

    It needs no data if the images are synthetic, such as :func:`fscl.similarity.recall_images`. It costs a pass of a
    few images for each task, and the measure for each pair of tasks.

    Args:
        bank, model, images, options: as in :func:`response_features`.
        measure: a measure of :func:`fscl.similarity.probing_matrix`, such as ``aligned_cosine``, which is valid for
            tasks over shared coefficients, or ``linear_cka``. For several measures the mean is returned. The mean of
            ``READINGS`` agrees with CKA and with CCA on real images better than these two agree with each other.
        per_layer: return (L, T, T), without the mean over layers.

    Raises:
        FsclError: as :func:`response_features` and :func:`fscl.similarity.probing_matrix`; there is no measure.
    """
    features = response_features(bank, model, images, **options)
    measures = [measure] if isinstance(measure, str) else list(measure)
    if not measures:
        raise FsclError(f"no measure; one or more of {', '.join(PROBES)} would do")
    matrices = torch.stack([
        torch.stack([probing_matrix(values, name) for name in measures]).mean(0) for values in features.values()
    ])  # fmt: skip
    return matrices if per_layer else matrices.mean(0)


def tangent_features(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    reference: int | None = None,
    layers: str | Iterable[str] | None = None,
    positions: int | None = 64,
    call: Call | None = None,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """:func:`response_features` to first order around one reference task.

    A task's features are the reference's features plus a fixed linear map of the difference between the two tasks, in
    atoms, normalisation (folded into a scale and a shift) and biases. Only the reference network is run, with
    forward-mode derivatives. The number of passes is the number of dimensions that the tasks span.

    Args:
        reference: the task at which the derivative is taken; the first task by default.
        bank, model, images, layers, positions, call, seed: as in :func:`response_features`.

    Raises:
        FsclError: as :func:`response_features`; the reference is unknown.
    """
    basis, weights = _tangent(bank, model, images, reference, layers, positions, call, seed)
    responses: dict[str, list[Tensor]] = {}
    for name, values in basis.items():
        flat = (weights.to(values.dtype) @ values.flatten(1)).unflatten(1, values.shape[1:])
        responses[name] = list(flat)
    return responses


def tangent_similarity(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    per_layer: bool = False,
    reference: int | None = None,
    layers: str | Iterable[str] | None = None,
    positions: int | None = 64,
    call: Call | None = None,
    seed: int = 0,
) -> Tensor:
    """Squared cosine of tasks, in the metric that features induce on atoms and normalisation, mean over layers.

    The :func:`fscl.similarity.aligned_cosine` of :func:`tangent_features` is a quadratic form of a task's own values.
    The matrix of this form depends only on the reference network and the images. With it, tasks are compared as short
    vectors in blocks, so there may be many. The plain cosine of atoms is the case in which the matrix is the identity.

    Args:
        per_layer: return (L, T, T), without the mean over layers.
        bank, model, images, reference, layers, positions, call, seed: as in :func:`tangent_features`.

    Returns:
        (T, T) or (L, T, T) in float64.

    Raises:
        FsclError: as :func:`tangent_features`.
    """
    basis, weights = _tangent(bank, model, images, reference, layers, positions, call, seed)
    matrices_by_layer = []
    for values in basis.values():
        flat = (values - values.mean(1, keepdim=True)).double().flatten(1)
        strength, directions = torch.linalg.eigh(flat @ flat.mT)
        vectors = weights @ (directions * strength.clamp(min=0).sqrt())
        # the product over one layer is the squared cosine
        matrices_by_layer.append(similarity_matrix([vectors[:, :, None, None]], "cosine", "product"))
    matrices = torch.stack(matrices_by_layer)
    return matrices if per_layer else matrices.mean(0)


def _tangent(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    reference: int | None,
    layers: str | Iterable[str] | None,
    positions: int | None,
    call: Call | None,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """By layer, the reference's features and derivatives (1 + r, samples, channels); and tasks' weights (T, 1 + r)."""
    _check(bank)
    task = bank.tasks[0] if reference is None else reference
    network = copy.deepcopy(model).eval()
    bank.restore(network, task)
    features = collect_features(
        network,
        [images],
        _names(bank, layers),
        maps="positions",
        positions=positions,
        call=call,
        progress=False,
        seed=seed,
    )
    folded, device = _fold_normalisation(network), _device_of(network)
    task_values = [_coordinates(bank.entries(t), network, folded) for t in bank.tasks]
    reference_values = {
        name: value.to(device)
        for name, value in task_values[bank.tasks.index(task)].items()
        # some tasks may lack a head
        if all(name in values and values[name].shape == value.shape for values in task_values)
    }
    points = torch.stack(
        [torch.cat([values[name].cpu().double().flatten() for name in reference_values]) for values in task_values]
    )
    steps = points - points[bank.tasks.index(task)]
    # one direction for each dimension that the tasks span
    svd = torch.linalg.svd(steps, full_matrices=False)
    left, strength, right = svd.U, svd.S, svd.Vh
    spanned = strength > strength[0] * 1e-6
    directions = right[spanned]
    weights = torch.cat([torch.ones(len(task_values), 1, dtype=torch.float64), (left * strength)[:, spanned]], 1)
    stimulus = images.to(device)

    def passes(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return _outputs(network, values, stimulus, list(features), positions, call, seed)

    basis = {name: [values] for name, values in features.items()}
    with torch.no_grad():
        for direction in directions:
            parts = direction.split([value.numel() for value in reference_values.values()])
            tangent = {
                name: part.view(value.shape).to(value)
                for (name, value), part in zip(reference_values.items(), parts, strict=True)
            }
            slopes = jvp(passes, (reference_values,), (tangent,))[1]
            for name, rows in basis.items():
                rows.append(slopes[name].cpu())
    return {name: torch.stack(rows) for name, rows in basis.items()}, weights


def _fold_normalisation(network: nn.Module) -> dict[str, float]:
    """Turns each normalisation with statistics into a scale and a shift, in place; returns its epsilon by name."""
    folded: dict[str, float] = {}
    state = network.state_dict()
    for name, module in network.named_modules():
        if isinstance(module, _NormBase) and module.running_mean is not None and module.running_var is not None:
            folded[name] = module.eps
            scale, shift = _scale_and_shift(state, name, module.eps)
            module.weight, module.bias = nn.Parameter(scale), nn.Parameter(shift)
            module.running_mean.zero_()
            module.running_var.fill_(1)
            module.eps = 0.0
    return folded


def _scale_and_shift(entries: Mapping[str, Tensor], name: str, eps: float) -> tuple[Tensor, Tensor]:
    """The scale and shift of each channel that a normalisation applies in evaluation."""
    scale = (entries[f"{name}.running_var"] + eps).rsqrt()
    if f"{name}.weight" in entries:
        scale = entries[f"{name}.weight"].detach() * scale
    shift = -entries[f"{name}.running_mean"] * scale
    return scale, shift + entries[f"{name}.bias"].detach() if f"{name}.bias" in entries else shift


def _coordinates(entries: Mapping[str, Tensor], network: nn.Module, folded: Mapping[str, float]) -> dict[str, Tensor]:
    """A task's own values that its features may depend on. The head is included, though no feature depends on it."""
    values: dict[str, Tensor] = {}
    present = network.state_dict()
    for name, tensor in entries.items():
        if name.rpartition(".")[0] not in folded and name in present and tensor.is_floating_point():
            values[name] = tensor.detach()
    for name, eps in folded.items():
        if f"{name}.running_var" in entries:
            values[f"{name}.weight"], values[f"{name}.bias"] = _scale_and_shift(entries, name, eps)
    return values


def _outputs(
    network: nn.Module,
    values: dict[str, Tensor],
    images: Tensor,
    names: list[str],
    positions: int | None,
    call: Call | None,
    seed: int,
) -> dict[str, Tensor]:
    """The layers' features, equal to :func:`collect_features` but differentiable."""
    outputs: dict[str, Tensor] = {}
    generators = {name: torch.Generator().manual_seed(seed) for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            output = channels_first(module, output)
            flat = output.flatten(2).mT if output.ndim > 2 else output
            if output.ndim > 2 and positions is not None and positions < flat.shape[1]:
                scores = torch.rand(flat.shape[:2], generator=generators[name], dtype=torch.float64)
                drawn = scores.topk(positions).indices.to(flat.device)
                flat = flat[torch.arange(len(flat), device=flat.device)[:, None], drawn]
            outputs[name] = flat.reshape(-1, flat.shape[-1]).clone()  # the next layer may change it in place

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        functional_call(_Called(network, call), {f"network.{name}": value for name, value in values.items()}, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return outputs


class _Called(nn.Module):
    def __init__(self, network: nn.Module, call: Call | None) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, images: Tensor) -> object:
        return self.network(images) if self.call is None else self.call(self.network, images)


def _names(bank: AtomBank, layers: str | Iterable[str] | None) -> list[str]:
    if layers is None:
        return bank.layers
    return [layers] if isinstance(layers, str) else list(layers)


def _device_of(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check(bank: AtomBank) -> None:
    if not len(bank):
        raise FsclError("the bank is empty; store a task first")
