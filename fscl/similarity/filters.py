"""Filters as `coefficients x atoms`: the inner products of coefficients, and the atoms of ordinary filters.

Everything here is a pure function of tensors.
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["FilterAtoms", "atoms_of_filters", "check_finite", "eps", "gram_matrix"]


class FilterAtoms(NamedTuple):
    """Several snapshots of one convolution, written with one shared set of coefficients."""

    atoms: Tensor  # (T, m, kh, kw)
    coefficients: Tensor  # (out, in, m), orthonormal columns
    explained: Tensor  # (T,), the share of each snapshot's squared norm that is in the span of the coefficients

    def __repr__(self) -> str:
        snapshots, num_atoms, height, width = self.atoms.shape
        return f"FilterAtoms({snapshots} snapshots, {num_atoms} atoms of {height}x{width})"


@torch.no_grad()
def gram_matrix(coefficients: Tensor) -> Tensor:
    """Inner products of the m coefficient maps over all channels: (out, in, m) -> (m, m).

    >>> gram_matrix(torch.ones(2, 3, 1))
    tensor([[6.]])
    """
    if coefficients.ndim < 2:
        raise FsclError(f"coefficients have shape {tuple(coefficients.shape)}; they take (out, in, m)")
    flat = coefficients.flatten(0, -2).cpu().double()
    return (flat.mT @ flat).to(coefficients.device, torch.promote_types(coefficients.dtype, torch.float32))


@torch.no_grad()
def atoms_of_filters(filters: Sequence[Tensor] | Tensor, reference: int = 0) -> FilterAtoms:
    """Atoms for learners without atoms: projects snapshots of one convolution on shared coefficients.

    The coefficients are the left singular vectors of the reference snapshot's filters (out*in, kh*kw). There are as
    many as their rank m <= kh*kw, so the reference is represented exactly. The atoms of every snapshot are its
    least-squares fit. Check `explained` with any similarity of these atoms: the part of the filters that is not
    explained is not compared.

    Args:
        filters: T snapshots of shape (out, in, kh, kw), or one tensor (T, out, in, kh, kw).
        reference: which snapshot the coefficients come from.

    Raises:
        FsclError: there are no snapshots, shapes differ, values are not finite, or the reference is zero or missing.

    >>> atoms, coefficients, explained = atoms_of_filters([torch.eye(4).reshape(4, 1, 2, 2)] * 2)
    >>> atoms.shape, coefficients.shape, explained
    (torch.Size([2, 4, 2, 2]), torch.Size([4, 1, 4]), tensor([1., 1.]))
    """
    shapes = [tuple(snapshot.shape) for snapshot in filters]
    if not shapes or len(set(shapes)) > 1 or len(shapes[0]) != 4 or 0 in shapes[0]:
        raise FsclError(f"filters have shapes {shapes}; they take one or more snapshots of one (out, in, kh, kw)")
    if not -len(shapes) <= reference < len(shapes):
        raise FsclError(f"reference {reference} is not among the {len(shapes)} snapshots; use 0 to {len(shapes) - 1}")
    stored = torch.stack([snapshot.detach() for snapshot in filters])
    check_finite("filters", stored, "snapshot")
    flat = stored.cpu().double().flatten(3).flatten(1, 2)
    basis, strength, _ = torch.linalg.svd(flat[reference], full_matrices=False)
    basis = basis[:, strength > strength[0] * eps(stored.dtype) * max(flat.shape[1:])]
    if basis.shape[1] == 0:
        raise FsclError(f"the filters of reference snapshot {reference} are all zero; choose another reference")
    atoms = basis.mT @ flat
    energy = flat.square().sum((1, 2))
    explained = torch.where(energy > 0, atoms.square().sum((1, 2)) / energy, 1.0).clamp(max=1)
    parts = atoms.unflatten(2, shapes[0][2:]), basis.unflatten(0, shapes[0][:2]), explained
    return FilterAtoms(*(p.to(stored.device, torch.promote_types(stored.dtype, torch.float32)) for p in parts))


def check_finite(name: str, values: Tensor, item: str) -> None:
    """Refuses values (T, ...) that are not finite; the message names the first item of the T that has one."""
    bad = (~values.isfinite().flatten(1).all(1)).nonzero().flatten().tolist()
    if bad:
        raise FsclError(f"{name}: {item} {bad[0]} holds values that are not finite; leave it out or restore it")


def eps(dtype: torch.dtype) -> float:
    """The relative rounding of values of a type. Half precision counts as float32, in which it is computed."""
    return torch.finfo(torch.float64 if dtype == torch.float64 else torch.float32).eps
