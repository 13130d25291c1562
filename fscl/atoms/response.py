"""How the tasks of a bank respond to images that need no data: by passes, or by the tangent of one network's passes.

The cosine of atoms compares what layers do to the same input; yet the input of a layer depends on all layers before it,
on normalisation and on what comes in. Responses to synthetic images (:mod:`fscl.similarity.stimuli`) hold all that.
"""

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call, jvp
from torch.nn.modules.batchnorm import _BatchNorm

from fscl.atoms.bank import AtomBank
from fscl.errors import FsclError
from fscl.similarity.features import collect_features
from fscl.similarity.probing import probing_matrix
from fscl.similarity.subspace import similarity_matrix

__all__ = ["response_features", "response_similarity", "tangent_features", "tangent_similarity"]

Call = Callable[[nn.Module, Tensor], object]


def response_features(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    layers: Iterable[str] | None = None,
    positions: int | None = 64,
    batch_size: int = 64,
    call: Call | None = None,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """What each task's convolutions give for the same images, before normalisation.

    Args:
        bank: T tasks.
        model: their network; it is left as it was.
        images: (n, channels, height, width), such as :func:`fscl.similarity.dead_leaves`, or real ones.
        layers: dotted names; the bank's layers by default.
        positions: drawn from each image's map, the same in all tasks; None for all of them.
        batch_size: images a pass.
        call: makes the pass from (model, images) where ``model(images)`` does not.
        seed: of the positions.

    Returns:
        By layer a list of T feature matrices (n * positions, out_channels) on the CPU.

    Raises:
        FsclError: the bank is empty or not of this network; as :func:`fscl.similarity.collect_features`.

    Example:
        >>> from fscl.atoms import decompose, freeze_coefficients
        >>> from fscl.similarity import noise_images
        >>> model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(144, 2))).model
        >>> freeze_coefficients(model)
        >>> bank = AtomBank(model)
        >>> bank.store(model, task=0)
        >>> response_features(bank, model, noise_images(2, (1, 8, 8)))["0"][0].shape
        torch.Size([72, 4])
    """
    _check(bank)
    names = list(bank.layers if layers is None else layers)
    found: dict[str, list[Tensor]] = {name: [] for name in names}
    for task in bank.tasks:
        with bank.swapped(model, task):
            features = collect_features(
                model,
                images.split(batch_size),
                names,
                maps="positions",
                positions=positions,
                call=None if call is None else lambda net, batch: call(net, batch.to(_place(net))),
                progress=False,
                seed=seed,
            )
        for name, values in features.items():
            found[name].append(values)
    return found


def response_similarity(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    measure: str = "aligned_cosine",
    *,
    per_layer: bool = False,
    **options: Any,
) -> Tensor:
    """Task-to-task similarity of the responses to the same images, mean over layers: (T, T), or (L, T, T).

    Without data if the images are synthetic, such as :func:`fscl.similarity.recall_images`; the cost is a pass of a few
    images for each task, and that of the measure for each pair.

    Args:
        bank, model, images: as in :func:`response_features`, which also takes further options.
        measure: ``aligned_cosine``, which tasks over shared coefficients permit, ``linear_cka``, or any other of
            :func:`fscl.similarity.probing_matrix`.
        per_layer: return (L, T, T), before the mean.

    Raises:
        FsclError: as these functions.
    """
    features = response_features(bank, model, images, **options)
    matrices = torch.stack([probing_matrix(values, measure) for values in features.values()])
    return matrices if per_layer else matrices.mean(0)


def tangent_features(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    reference: int | None = None,
    layers: Iterable[str] | None = None,
    positions: int | None = 64,
    call: Call | None = None,
    seed: int = 0,
) -> dict[str, list[Tensor]]:
    """:func:`response_features` to first order in what is a task's own, about one reference task.

    A task's features are those of the reference plus a fixed linear map of the difference of their atoms,
    normalisation (folded into a scale and a shift) and biases. Only the reference network is ever run: passes with
    forward-mode derivatives, as many as the tasks span dimensions, at most one for each of a task's values.

    Args:
        reference: the task at which the derivative is taken; the first by default.
        bank, model, images, layers, positions, call, seed: as in :func:`response_features`.

    Raises:
        FsclError: as :func:`response_features`; an unknown reference.
    """
    basis, weights = _tangent(bank, model, images, reference, layers, positions, call, seed)
    found: dict[str, list[Tensor]] = {}
    for name, values in basis.items():
        flat = (weights.to(values.dtype) @ values.flatten(1)).unflatten(1, values.shape[1:])
        found[name] = list(flat)
    return found


def tangent_similarity(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    *,
    per_layer: bool = False,
    reference: int | None = None,
    layers: Iterable[str] | None = None,
    positions: int | None = 64,
    call: Call | None = None,
    seed: int = 0,
) -> Tensor:
    """Squared cosine of tasks in the metric that features induce on atoms and normalisation, mean over layers.

    The :func:`fscl.similarity.aligned_cosine` of :func:`tangent_features` is a quadratic form of a task's own values.
    Its matrix comes from the reference network and the images alone; with it tasks are compared as short vectors, in
    blocks, however many there are. The plain cosine of atoms is the case in which it is the identity.

    Args:
        per_layer: return (L, T, T), before the mean.
        bank, model, images, reference, layers, positions, call, seed: as in :func:`tangent_features`.

    Returns:
        (T, T) or (L, T, T) in float64.

    Raises:
        FsclError: as :func:`tangent_features`.
    """
    basis, weights = _tangent(bank, model, images, reference, layers, positions, call, seed)
    found = []
    for values in basis.values():
        flat = (values - values.mean(1, keepdim=True)).double().flatten(1)
        strength, directions = torch.linalg.eigh(flat @ flat.mT)
        vectors = weights @ (directions * strength.clamp(min=0).sqrt())
        found.append(similarity_matrix([vectors[:, :, None, None]], "cosine", "product"))  # its square
    matrices = torch.stack(found)
    return matrices if per_layer else matrices.mean(0)


def _tangent(
    bank: AtomBank,
    model: nn.Module,
    images: Tensor,
    reference: int | None,
    layers: Iterable[str] | None,
    positions: int | None,
    call: Call | None,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """By layer the reference's features and derivatives (1 + r, samples, channels), and weights (T, 1 + r) of each."""
    _check(bank)
    names = list(bank.layers if layers is None else layers)
    network = copy.deepcopy(model).eval()
    bank.restore(network, bank.tasks[0] if reference is None else reference)
    folded = _fold_normalisation(network)
    tasks = [_coordinates(bank.entries(task), network, folded) for task in bank.tasks]
    at = _coordinates(bank.entries(bank.tasks[0] if reference is None else reference), network, folded)
    origin = torch.cat([value.flatten() for value in at.values()]).double()
    steps = torch.stack([torch.cat([task[name].flatten() for name in at]).double() for task in tasks]) - origin
    # a direction for each task, or an orthonormal basis of what they span where that is smaller
    svd = torch.linalg.svd(steps, full_matrices=False)
    left, strength, right = svd.U, svd.S, svd.Vh
    kept = strength > strength[0] * 1e-6 if strength.numel() else strength > 0
    directions = right[kept]
    weights = torch.cat([torch.ones(len(tasks), 1, dtype=torch.float64), (left * strength)[:, kept]], 1)

    place = _place(network)
    stimulus = images.to(place)

    def passes(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return _outputs(network, values, stimulus, names, positions, call, seed)

    features: dict[str, Tensor] = {}
    basis: dict[str, list[Tensor]] = {}
    with torch.no_grad():
        features = passes(at)
        basis = {name: [features[name].cpu()] for name in names}
        for direction in directions:
            parts = direction.split([value.numel() for value in at.values()])
            tangent = {
                name: part.view(value.shape).to(value) for (name, value), part in zip(at.items(), parts, strict=True)
            }
            slopes = jvp(passes, (at,), (tangent,))[1]
            for name in names:
                basis[name].append(slopes[name].cpu())
    return {name: torch.stack(rows) for name, rows in basis.items()}, weights


class _Affine(nn.Module):
    """Batch normalisation in evaluation: a scale and a shift for each channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(channels))
        self.register_buffer("shift", torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        shape = (1, -1, *[1] * (x.ndim - 2))
        return x * self.get_buffer("scale").view(shape) + self.get_buffer("shift").view(shape)


def _fold_normalisation(network: nn.Module) -> dict[str, float]:
    """Puts an affine map in the place of every batch normalisation that keeps statistics: name -> its epsilon."""
    folded: dict[str, float] = {}
    for name, module in list(network.named_modules()):
        if isinstance(module, _BatchNorm) and module.running_var is not None:
            owner, _, leaf = name.rpartition(".")
            affine = _Affine(module.num_features).to(module.running_var.device)
            setattr(network.get_submodule(owner), leaf, affine)
            folded[name] = module.eps
    return folded


def _coordinates(entries: Mapping[str, Tensor], network: nn.Module, folded: Mapping[str, float]) -> dict[str, Tensor]:
    """A task's own values that its features depend on; the head's are among them, and change no feature."""
    values: dict[str, Tensor] = {}
    present = network.state_dict()
    for name, tensor in entries.items():
        owner = name.rpartition(".")[0]
        if owner not in folded and name in present and tensor.is_floating_point():
            values[name] = tensor.detach()
    for name, eps in folded.items():
        deviation = (entries[f"{name}.running_var"] + eps).sqrt()
        scale = entries[f"{name}.weight"].detach() / deviation if f"{name}.weight" in entries else 1 / deviation
        shift = -entries[f"{name}.running_mean"] * scale
        values[f"{name}.scale"] = scale
        values[f"{name}.shift"] = shift + entries[f"{name}.bias"].detach() if f"{name}.bias" in entries else shift
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
    """The layers' features as :func:`collect_features` has them, in a form that can be differentiated."""
    kept: dict[str, Tensor] = {}
    generators = {name: torch.Generator().manual_seed(seed) for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            flat = output.flatten(2).mT
            if positions is not None and positions < flat.shape[1]:
                luck = torch.rand(flat.shape[:2], generator=generators[name], dtype=torch.float64)
                drawn = luck.topk(positions).indices.to(flat.device)
                flat = flat[torch.arange(len(flat), device=flat.device)[:, None], drawn]
            kept[name] = flat.flatten(0, 1) if flat.is_contiguous() else flat.reshape(-1, flat.shape[2])

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        functional_call(_Called(network, call), {f"network.{name}": value for name, value in values.items()}, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return {name: value.clone() for name, value in kept.items()}


class _Called(nn.Module):
    def __init__(self, network: nn.Module, call: Call | None) -> None:
        super().__init__()
        self.network, self.call = network, call

    def forward(self, images: Tensor) -> object:
        return self.network(images) if self.call is None else self.call(self.network, images)


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check(bank: AtomBank) -> None:
    if not len(bank):
        raise FsclError("the bank is empty; store a task first")
