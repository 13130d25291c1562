"""How the tasks of a bank respond to images that need no data: by passes, or by the tangent of one network's passes.

The cosine of atoms compares what layers do to the same input; yet the input of a layer depends on all layers before it,
on normalisation and on what comes in. Responses to synthetic images (:mod:`fscl.similarity.stimuli`) hold all that.
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
from fscl.similarity.features import collect_features
from fscl.similarity.probing import PROBES, probing_matrix
from fscl.similarity.subspace import similarity_matrix

__all__ = ["READINGS", "response_features", "response_similarity", "tangent_features", "tangent_similarity"]

READINGS = ("aligned_cosine", "linear_cka", "mean_cca")  # channel by channel, by variance, by direction
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
    """What each task's convolutions give for the same images, before normalisation.

    Args:
        bank: T tasks.
        model: their network, or one of its architecture; it is left as it was.
        images: (n, channels, height, width), such as :func:`fscl.similarity.dead_leaves`, or real ones.
        layers: dotted names, or one; the bank's layers by default.
        positions: drawn from each image's map, the same in all tasks; None for all of them.
        batch_size: images a pass.
        call: makes the pass from (model, images) where ``model(images)`` does not.
        seed: of the positions.

    Returns:
        By layer a list of T feature matrices (n * positions, out_channels) on the CPU.

    Raises:
        FsclError: the bank is empty or not of this network; as :func:`fscl.similarity.collect_features`.

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
    found: dict[str, list[Tensor]] = {}
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
            found.setdefault(name, []).append(values)
    return found


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

    Without data if the images are synthetic, such as :func:`fscl.similarity.recall_images`; the cost is a pass of a few
    images for each task, and that of the measure for each pair.

    Args:
        bank, model, images: as in :func:`response_features`, which also takes further options.
        measure: ``aligned_cosine``, which tasks over shared coefficients permit, ``linear_cka``, or any other of
            :func:`fscl.similarity.probing_matrix`. Of several the mean is taken, as of ``READINGS``, which agrees with
            CKA and with CCA on real images better than each alone does with the other.
        per_layer: return (L, T, T), before the mean.

    Raises:
        FsclError: as these functions.
    """
    features = response_features(bank, model, images, **options)
    measures = [measure] if isinstance(measure, str) else list(measure)
    if not measures:
        raise FsclError(f"no measure; one or more of {', '.join(PROBES)} would do")
    matrices = torch.stack([
        torch.stack([probing_matrix(values, how) for how in measures]).mean(0) for values in features.values()
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
    layers: str | Iterable[str] | None = None,
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
    layers: str | Iterable[str] | None,
    positions: int | None,
    call: Call | None,
    seed: int,
) -> tuple[dict[str, Tensor], Tensor]:
    """By layer the reference's features and derivatives (1 + r, samples, channels), and weights (T, 1 + r) of each."""
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
    folded, place = _fold_normalisation(network), _place(network)
    own = [_coordinates(bank.entries(t), network, folded) for t in bank.tasks]
    at = {
        name: value.to(place)
        for name, value in own[bank.tasks.index(task)].items()
        if all(name in values and values[name].shape == value.shape for values in own)  # heads may be of one task alone
    }
    points = torch.stack([torch.cat([values[name].cpu().double().flatten() for name in at]) for values in own])
    steps = points - points[bank.tasks.index(task)]
    # a direction for each task, or an orthonormal basis of what they span where that is smaller
    svd = torch.linalg.svd(steps, full_matrices=False)
    left, strength, right = svd.U, svd.S, svd.Vh
    kept = strength > strength[0] * 1e-6
    directions = right[kept]
    weights = torch.cat([torch.ones(len(own), 1, dtype=torch.float64), (left * strength)[:, kept]], 1)
    stimulus = images.to(place)

    def passes(values: dict[str, Tensor]) -> dict[str, Tensor]:
        return _outputs(network, values, stimulus, list(features), positions, call, seed)

    basis = {name: [values] for name, values in features.items()}
    with torch.no_grad():
        for direction in directions:
            parts = direction.split([value.numel() for value in at.values()])
            tangent = {
                name: part.view(value.shape).to(value) for (name, value), part in zip(at.items(), parts, strict=True)
            }
            slopes = jvp(passes, (at,), (tangent,))[1]
            for name, rows in basis.items():
                rows.append(slopes[name].cpu())
    return {name: torch.stack(rows) for name, rows in basis.items()}, weights


def _fold_normalisation(network: nn.Module) -> dict[str, float]:
    """Makes each normalisation with statistics a scale and a shift of its channels, in place: name -> its epsilon."""
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
    """What a normalisation does in evaluation to each channel."""
    scale = (entries[f"{name}.running_var"] + eps).rsqrt()
    if f"{name}.weight" in entries:
        scale = entries[f"{name}.weight"].detach() * scale
    shift = -entries[f"{name}.running_mean"] * scale
    return scale, shift + entries[f"{name}.bias"].detach() if f"{name}.bias" in entries else shift


def _coordinates(entries: Mapping[str, Tensor], network: nn.Module, folded: Mapping[str, float]) -> dict[str, Tensor]:
    """A task's own values that its features depend on; the head's are among them, and change no feature."""
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
    """The layers' features as :func:`collect_features` has them, in a form that can be differentiated."""
    kept: dict[str, Tensor] = {}
    generators = {name: torch.Generator().manual_seed(seed) for name in names}

    def keep(name: str) -> Callable[[nn.Module, Any, Tensor], None]:
        def hook(module: nn.Module, inputs: object, output: Tensor) -> None:
            flat = output.flatten(2).mT if output.ndim > 2 else output
            if output.ndim > 2 and positions is not None and positions < flat.shape[1]:
                luck = torch.rand(flat.shape[:2], generator=generators[name], dtype=torch.float64)
                drawn = luck.topk(positions).indices.to(flat.device)
                flat = flat[torch.arange(len(flat), device=flat.device)[:, None], drawn]
            kept[name] = flat.reshape(-1, flat.shape[-1]).clone()  # the next layer may work in place

        return hook

    hooks = [network.get_submodule(name).register_forward_hook(keep(name)) for name in names]
    try:
        functional_call(_Called(network, call), {f"network.{name}": value for name, value in values.items()}, (images,))
    finally:
        for hook in hooks:
            hook.remove()
    return kept


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


def _place(model: nn.Module) -> torch.device:
    return next(model.parameters()).device


def _check(bank: AtomBank) -> None:
    if not len(bank):
        raise FsclError("the bank is empty; store a task first")
