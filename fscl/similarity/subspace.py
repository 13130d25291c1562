"""Similarity of tasks from their filter atoms alone, without data or forward passes.

A convolution's filters are `W = coefficients x atoms`. If tasks share the coefficients, two tasks are compared by
comparing two small sets of atoms, layer by layer. Everything here is a pure function of tensors.
"""

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from fscl.choices import AGGREGATES, METRICS, SPANS
from fscl.errors import FsclError
from fscl.similarity.filters import check_finite, eps

__all__ = ["AtomStacks", "similarity_matrix"]

_BLOCK_VALUES = 2**17  # most float64 values in one block of task pairs: 1 MiB, which fits in a core's cache
_TINY = torch.finfo(torch.float64).tiny


@runtime_checkable
class AtomStacks(Protocol):
    """The interface that `similarity_matrix` needs of a bank of tasks that share coefficients."""

    @property
    def layers(self) -> Sequence[str]: ...

    def stack(self, layer: str) -> Tensor: ...  # (tasks, m, kh, kw)

    def gram(self, layer: str) -> Tensor: ...  # (m, m), see `gram_matrix`


@torch.no_grad()
def similarity_matrix(
    bank_or_stacks: AtomStacks | Mapping[str, Tensor] | Sequence[Tensor] | Tensor,
    metric: str = "cosine",
    aggregate: str = "product",
    layers: Iterable[str | int] | None = None,
    per_layer: bool = False,
    grams: Mapping[str, Tensor] | Sequence[Tensor] | Tensor | None = None,
    rank: int = 3,
) -> Tensor:
    """Similarity of all pairs of tasks: exactly symmetric, exactly 1 on the diagonal, within [-1, 1], no units.

    Metrics of one layer, for atoms D of shape (m, kh*kw) and the Gram matrix G of the coefficients:

    - `cosine`: cos(vec D_s, vec D_t) in the gauge in which the atoms are stored (Chen, Miao, Qiu 2023). It is the
      cosine of the filters when G is a multiple of the identity, as in a bank whose coefficients are frozen.
    - `filter`: tr(D_s^T G D_t), normalised. It is the cosine of the filters `coefficients x atoms` in any gauge, and
      needs G.
    - `grassmann`: 1 - d / d_max, where d = sqrt(sum of squared principal angles) between the leading `rank`
      dimensions of the spans of the atoms in the space of kernels, and d_max = sqrt(rank) pi / 2 (Miao et al., ICLR
      2022).
    - `projection`: `|B_s^T B_t|_F^2 / rank`, for orthonormal bases B of the same spans.

    If G is known, the spans are those of G^(1/2) D, which are the spans of the filters in any gauge; otherwise they are
    the spans of D. Layers are combined by `aggregate_layers`. An all-zero set of atoms has similarity 0 to every other
    set.

    Args:
        bank_or_stacks: a bank; or stacks of shape (T, m, kh, kw): a mapping from layer to stack, a sequence (its
            layers are named "0", "1", ...), or one stack.
        metric: "cosine", "filter", "grassmann" or "projection".
        aggregate: "product", "mean" or "depth"; ignored with `per_layer`.
        layers: the layers to use; all by default.
        per_layer: return (L, T, T), without aggregation.
        grams: Gram matrices (m, m) of all layers in use, in the same form as the stacks; the bank's by default.
        rank: dimensions of a span, for `grassmann` and `projection`; less than kh*kw and at most m.

    Returns:
        (T, T), or (L, T, T) with `per_layer`, on the device of the first stack; in float64 if a stack has it, otherwise
        in float32.

    All is computed in float64 on that device (on the CPU for MPS, which has no float64), in blocks of pairs. It takes
    memory for the result and one float64 copy of the atoms (for `projection`, (kh*kw)^2 values instead of m*kh*kw; for
    `grassmann`, rank*kh*kw). Further memory does not grow with the number of tasks: it is below 32 MiB for 20 layers of
    12 atoms of 3x3.

    Raises:
        FsclError: a metric, aggregate or layer is unknown, shapes do not fit, values are not finite, a Gram matrix is
            missing, or atoms span fewer than `rank` dimensions.

    >>> atoms = torch.tensor([[1.0, 0, 0, 0], [1, 1, 0, 0], [0, 0, 0, 1]]).reshape(3, 1, 2, 2)
    >>> similarity_matrix({"conv1": atoms}, aggregate="mean")
    tensor([[1.0000, 0.7071, 0.0000],
            [0.7071, 1.0000, 0.0000],
            [0.0000, 0.0000, 1.0000]])
    """
    _check_known("metric", metric, METRICS)
    _check_known("aggregate", aggregate, AGGREGATES)
    stacks = _stacks(bank_or_stacks, layers)
    gram_by_layer = _grams(bank_or_stacks, grams, stacks) if metric != "cosine" else {}
    if metric == "filter" and not gram_by_layer:
        raise FsclError(
            "metric 'filter' needs the Gram matrices of the coefficients: pass a bank or "
            f"grams={{layer: gram_matrix(coefficients)}} for {list(stacks)}, or use metric='cosine'"
        )
    stack_list = list(stacks.values())
    device = torch.device("cpu") if stack_list[0].device.type == "mps" else stack_list[0].device  # MPS has no float64
    roots = {name: _gram_root(name, gram).to(device) for name, gram in gram_by_layer.items()}
    tasks, edge = len(stack_list[0]), _edge(stacks, metric, rank)
    blocks = [_factors(stacks, roots, metric, rank, start, edge, device) for start in range(0, tasks, edge)]
    dtype = torch.float64 if any(stack.dtype == torch.float64 for stack in stack_list) else torch.float32
    result = torch.empty((len(stack_list), tasks, tasks) if per_layer else (tasks, tasks), dtype=dtype, device=device)
    compare = _geodesics if metric == "grassmann" else _products
    for i, rows in enumerate(blocks):
        for j, columns in enumerate(blocks[i:], i):
            pairs = map(compare, rows, columns)
            tiles = pairs if per_layer else [_aggregated(pairs, len(rows), aggregate)]
            for matrix, tile in zip(result if per_layer else [result], tiles, strict=True):
                _place(matrix, tile.clamp_(-1, 1), i * edge, j * edge)
    result.diagonal(dim1=-2, dim2=-1).fill_(1)
    return result.to(stack_list[0].device)


def _check_known(argument: str, value: str, choices: Sequence[str]) -> None:
    if value not in choices:
        raise FsclError(f"unknown {argument} {value!r}; known: {', '.join(choices)}")


def _named(values: Any, ndim: int) -> dict[str, Tensor]:
    """A mapping from layer name to tensor, from such a mapping, a sequence, or one tensor of `ndim` dimensions."""
    if isinstance(values, Mapping):
        return dict(values)
    is_single = isinstance(values, Tensor) and values.ndim == ndim
    return {str(index): value for index, value in enumerate([values] if is_single else values)}


def _stacks(source: Any, layers: Iterable[str | int] | None) -> dict[str, Tensor]:
    bank = isinstance(source, AtomStacks)
    by_name = {} if bank else _named(source, ndim=4)
    names = list(source.layers if bank else by_name)
    chosen = names if layers is None else [str(name) for name in ([layers] if isinstance(layers, str) else layers)]
    unknown = [name for name in chosen if name not in names]
    if unknown or not chosen:
        raise FsclError(f"{f'unknown layer {unknown[0]!r}' if unknown else 'no layers'}; known layers: {names}")
    stacks = {name: source.stack(name) if bank else by_name[name] for name in chosen}
    for name, stack in stacks.items():
        if not isinstance(stack, Tensor) or stack.ndim != 4 or 0 in stack.shape or stack.is_complex():
            actual = f"shape {tuple(stack.shape)}" if isinstance(stack, Tensor) else type(stack).__name__
            raise FsclError(f"layer {name!r}: {actual}; a real tensor of shape (tasks, m, kh, kw) would do")
    tasks = {name: len(stack) for name, stack in stacks.items()}
    if len(set(tasks.values())) > 1:
        raise FsclError(f"every layer needs the same number of tasks, but they have {tasks}")
    return stacks


def _grams(source: Any, grams: Any, stacks: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Gram matrices of the layers in `stacks`; empty if neither the source nor the caller has them."""
    bank = isinstance(source, AtomStacks) and grams is None
    if grams is None and not bank:
        return {}
    by_layer = {name: source.gram(name) for name in stacks} if bank else _named(grams, ndim=2)
    for name, stack in stacks.items():
        if name not in by_layer:
            raise FsclError(f"layer {name!r} has no Gram matrix in grams, which has {list(by_layer)}")
        m, gram = stack.shape[1], by_layer[name]
        if gram.shape != (m, m) or not gram.isfinite().all():
            raise FsclError(f"layer {name!r}: Gram matrix {tuple(gram.shape)}; finite values ({m}, {m}) would do")
    return by_layer


def _edge(stacks: Mapping[str, Tensor], metric: str, rank: int) -> int:
    """Number of tasks on each side of a block of pairs. A pair of spans takes memory for all values of a span."""
    largest = max(rank * stack.shape[2:].numel() for stack in stacks.values()) if metric == "grassmann" else 1
    return max(1, math.isqrt(_BLOCK_VALUES // max(1, largest)))


def _factors(
    stacks: Mapping[str, Tensor],
    roots: Mapping[str, Tensor],
    metric: str,
    rank: int,
    start: int,
    edge: int,
    device: torch.device,
) -> list[Tensor]:
    """By layer, what pairs of up to `edge` tasks from `start` on are compared by: (tasks, ...) in float64."""
    same_shape: dict[tuple[torch.Size, torch.dtype], list[str]] = {}  # layers of one shape are prepared together
    for name, stack in stacks.items():
        same_shape.setdefault((stack.shape, stack.dtype), []).append(name)
    factors: dict[str, Tensor] = {}
    for (_, dtype), names in same_shape.items():
        atoms = torch.stack([stacks[name][start : start + edge].to(device) for name in names]).double().flatten(3)
        flat = atoms.flatten(2)
        if dtype == torch.float64:  # no metric depends on scale; only squares of float64 values can overflow
            flat.div_(flat.abs().amax(2, keepdim=True).clamp_(min=_TINY))
        norms = torch.linalg.vector_norm(flat, dim=2, keepdim=True)
        if not math.isfinite(norms.sum()):
            for name in names:
                check_finite(f"layer {name!r}", stacks[name], "task")
        flat.div_(norms.clamp_(min=_TINY))
        if roots:
            atoms = torch.stack([roots[name] for name in names])[:, None] @ atoms
        if metric in SPANS:
            atoms = _bases(names, atoms, rank, eps(dtype), start)
        if metric == "projection":  # |B^T B'|_F^2 is the inner product of the projectors
            atoms = atoms.mT @ atoms
        if metric != "grassmann":
            atoms = atoms.flatten(2)
        if metric in ("filter", "projection"):
            atoms.div_(torch.linalg.vector_norm(atoms, dim=2, keepdim=True).clamp_(min=_TINY))
        factors.update(zip(names, atoms, strict=True))
    return [factors[name] for name in stacks]


def _gram_root(name: str, gram: Tensor) -> Tensor:
    """A root R with R^T R = G. Eigenvalues within the rounding of the input's dtype count as zero."""
    full = gram.detach().cpu().double()
    values, vectors = torch.linalg.eigh((full + full.mT) / 2)
    noise = 4 * len(full) * eps(gram.dtype) * values.abs().max()
    if (full - full.mT).abs().max() > noise or values[0] < -noise:
        raise FsclError(
            f"layer {name!r}: the Gram matrix is not symmetric positive semi-definite (least eigenvalue "
            f"{float(values[0]):.3g}); use gram_matrix(coefficients)"
        )
    return torch.where(values > noise, values, 0.0).sqrt()[:, None] * vectors.mT


def _bases(names: Sequence[str], atoms: Tensor, rank: int, rounding: float, start: int) -> Tensor:
    """Orthonormal bases (L, T, rank, kh*kw) of the leading dimensions of atoms (L, T, m, kh*kw); 0 for zero atoms."""
    m, size = atoms.shape[2:]
    most = min(m, size - 1)
    if not 1 <= rank <= most:
        use = f"use a rank from 1 to {most}, or leave" if most else "leave"
        raise FsclError(f"layer {names[0]!r}: rank {rank} with m={m} atoms of {size} values; {use} it out with layers=")
    _, strength, span = torch.linalg.svd(atoms, full_matrices=False)
    dimensions = (strength > strength[..., :1] * rounding * max(m, size)).sum(2)
    short = ((dimensions > 0) & (dimensions < rank)).nonzero().tolist()
    if short:
        layer, task = short[0]
        least = int(dimensions[layer, task])
        raise FsclError(
            f"layer {names[layer]!r}: the atoms of task {start + task} span {least} dimensions, fewer than rank "
            f"{rank}; use a rank up to {least}, or leave the layer out with layers="
        )
    return span[:, :, :rank] * (dimensions > 0)[..., None, None]


def _products(rows: Tensor, columns: Tensor) -> Tensor:
    return rows @ columns.mT


def _geodesics(rows: Tensor, columns: Tensor) -> Tensor:
    """Grassmann similarity of all pairs of spans, from orthonormal rows (T, rank, size) and (T', rank, size)."""
    present = rows.any(2).any(1)[:, None] & columns.any(2).any(1)
    rank, rows = rows.shape[1], rows[:, None]
    left, _, right = torch.linalg.svd(rows @ columns.mT)
    # Principal vectors an angle theta apart are a chord 2 sin(theta / 2) apart. Unlike the arc cosine of the
    # singular values, this keeps full precision for spans that (almost) coincide.
    chords = torch.linalg.vector_norm(left.mT @ rows - right @ columns, dim=-1)
    angles = 2 * torch.asin((chords / 2).clamp(max=math.sqrt(0.5)))
    return (1 - torch.linalg.vector_norm(angles, dim=-1) / (math.sqrt(rank) * math.pi / 2)) * present


def _aggregated(pairs: Iterator[Tensor], layers: int, how: str) -> Tensor:
    """`aggregate_layers` with one layer in memory at a time."""
    total = next(pairs)
    if how == "depth":
        so_far = total.square_().clone()
        for pair in pairs:
            total.add_(so_far.mul_(pair.square_()))
        return total.div_(layers)
    for pair in pairs:
        total = total.add_(pair) if how == "mean" else total.mul_(pair)
    return total.div_(layers) if how == "mean" else total.square_()


def _place(matrix: Tensor, tile: Tensor, row: int, column: int) -> None:
    """Writes a tile on or above the diagonal, and its mirror image."""
    above = matrix[row : row + tile.shape[0], column : column + tile.shape[1]]
    if row == column:
        tile = (tile + tile.mT).div_(2)  # matrix products need not be symmetric to the last bit
    above.copy_(tile)
    if row != column:
        matrix[column : column + tile.shape[1], row : row + tile.shape[0]].copy_(above.mT)
