"""One layer's filters of several networks: shared bases, and how much of each network's filters a basis explains."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

__all__ = ["BLOCK_SIDE", "LayerFilters", "as_filters"]

_CHUNK_VALUES = 2**21  # float64 values of a tall matrix in memory at a time: 16 MiB
_WHOLE = 2048  # rows and columns of the largest matrix of inner products in memory: 32 MiB
_KRYLOV = 400  # columns of the Krylov space that is used for larger matrices, but at least three blocks
_ROUNDING = 1e-7  # a singular value below this share of the largest is rounding of float32 filters


# A layer without a spatial part is cut in blocks of 16 input channels of one output: its filters are 4x4. Measured on
# vision transformers and ConvNeXt-like networks that were fine-tuned from one start, as Pearson's correlation with
# linear CKA / mean CCA (two populations of 16 networks on digits, which no report shows; product over depth):
#   0.64 / 0.91 and 0.81 / 0.95  blocks of 16 input channels,
#   0.62 / 0.90 and 0.82 / 0.97  of 32,
#   0.63 / 0.89 and 0.73 / 0.89  of 9,
#   0.58 / 0.88 and 0.83 / 0.97  squares of 4 inputs and 4 outputs,
#   0.55 / 0.85 and 0.69 / 0.89  of 16 outputs of one input,
#   0.57 / 0.86 and 0.77 / 0.95  weights compared whole.
# The shared coefficients span the filters of the common start. So atoms see changes that change the layer's response to
# its inputs as they are weighted there, and are blind to most turns among outputs, as CKA and CCA are.
BLOCK_SIDE = 4


def as_filters(weight: Tensor) -> Tensor:
    """The weight of any layer as filters: of a spatial convolution its own, of other layers blocks of input channels.

    Args:
        weight: (out, in / groups, kh, kw), or (out, in) of a linear layer, or (out, in, length) of a convolution of one
            dimension.

    Returns:
        The same values as (out, blocks, 4, 4) if there is no kernel of two dimensions. The last block is filled with
        zeros, which change no inner product.

    Example:
        >>> as_filters(torch.zeros(10, 40)).shape, as_filters(torch.zeros(10, 3, 5, 5)).shape
        (torch.Size([10, 3, 4, 4]), torch.Size([10, 3, 5, 5]))
    """
    if weight.ndim == 4 and weight.shape[2:] != (1, 1):
        return weight
    rows = weight.flatten(1)
    missing = -rows.shape[1] % BLOCK_SIDE**2
    return (nn.functional.pad(rows, (0, missing)) if missing else rows).unflatten(1, (-1, BLOCK_SIDE, BLOCK_SIDE))


@dataclass(frozen=True, eq=False)
class LayerFilters:
    """One layer's filters in T networks, as matrices W_t (n, k) of n = out * in / groups rows and k = kh * kw.

    Each network's filters are scaled to norm 1 before they are compared or a basis is fitted. Similarity does not
    depend on scale, so networks with larger filters must not count for more in the shared basis.

    Attributes:
        filters: T tensors (out, in / groups, kh, kw), which may lie in mapped files. They are read in chunks.
    """

    filters: Sequence[Tensor]

    def __repr__(self) -> str:
        return f"LayerFilters({len(self.filters)} networks, filters {tuple(self.shape)})"

    @property
    def shape(self) -> torch.Size:
        return self.filters[0].shape

    @property
    def rows(self) -> int:
        return self.shape[0] * self.shape[1]

    @property
    def pixels(self) -> int:
        return self.shape[2] * self.shape[3]

    @cached_property
    def norms(self) -> Tensor:
        """Frobenius norms, (T,) float64."""
        return torch.stack([torch.linalg.vector_norm(f.cpu(), dtype=torch.float64) for f in self.filters])

    @cached_property
    def gram(self) -> Tensor:
        """Inner products of all columns of the unit-norm matrices side by side, (T, k, T, k) float64."""
        count, pixels = len(self.filters), self.pixels
        total = torch.zeros(count * pixels, count * pixels, dtype=torch.float64)
        for part in self._chunks():
            total.addmm_(part.mT, part)
        return total.view(count, pixels, count, pixels)

    def of(self, networks: Sequence[int]) -> "LayerFilters":
        """The filters of some of the networks. Inner products that are already computed are kept."""
        part = LayerFilters([self.filters[t] for t in networks])
        part.__dict__["norms"] = self.norms[networks]
        if "gram" in self.__dict__:
            part.__dict__["gram"] = self.gram[networks][:, :, networks]
        return part

    def basis(self, size: int) -> Tensor:
        """The leading left singular vectors of the unit-norm matrices side by side, (n, size) float64.

        The columns are orthonormal, and no ``size`` columns explain more of all networks together. If the filters span
        fewer dimensions than ``size``, the surplus columns are zero.

        A matrix that is wider than tall is decomposed directly. A tall matrix (262,144 x 108 for a layer of 12
        ResNet-18s) is decomposed through its Gram matrix, so that it is never in memory whole in float64. This halves
        the number of digits: a singular vector is lost in rounding if its value is below about 1e-8 of the largest.
        Float32 filters carry no information there, so values below 1e-7 are left out. Vectors made of rounding alone
        are left out, too: their length differs from what their value predicts. The remaining vectors are orthonormal
        only to about 1e-2 near the limit; a second step makes them orthonormal to float64 precision.

        For hundreds of networks both matrices are too large. If there are few rows, the inner products of rows are
        used. Otherwise the leading vectors are computed in a block Krylov space, whose error falls with the ratio of
        the next singular values to the leading ones.
        """
        wide = len(self.filters) * self.pixels
        if self.rows <= wide <= _WHOLE:
            vectors, values, _ = torch.linalg.svd(torch.cat(list(self._chunks())), full_matrices=False)
            vectors = vectors[:, : min(size, int((values > _ROUNDING * values[0]).sum()))]
        elif self.rows <= _WHOLE < wide:
            squares, vectors = torch.linalg.eigh(self._outer())
            squares, vectors = squares.flip(0), vectors.flip(1)
            rounding = self.rows * torch.finfo(torch.float64).eps  # larger than _ROUNDING squared
            vectors = vectors[:, : min(size, int((squares > rounding * squares[0]).sum()))]
        else:
            squares, right = self._right_vectors(size)
            keep = min(size, int((squares > _ROUNDING**2 * squares[0].clamp(min=0)).sum()))
            right = right[:, :keep] / squares[:keep].sqrt()
            vectors = torch.cat([part @ right for part in self._chunks()])
            inner = vectors.mT @ vectors
            real = (inner.diagonal() - 1).abs() < 0.5
            vectors = vectors[:, real]
            lengths, turns = torch.linalg.eigh(inner[real][:, real])
            vectors = vectors @ (turns / lengths.sqrt() @ turns.mT)
        return nn.functional.pad(vectors, (0, size - vectors.shape[1]))

    def project(self, basis: Tensor, dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor]:
        """The filters in an orthonormal basis (n, m), at their own scale: (T, m, k), and their squared norms, (T,)."""
        atoms = torch.empty(len(self.filters), basis.shape[1], self.pixels, dtype=dtype)
        energies = torch.empty(len(self.filters), dtype=torch.float64)
        for network, columns in enumerate(self._blocks(1)):
            inner = basis.mT @ columns * self.norms[network]
            atoms[network], energies[network] = inner, inner.square().sum()
        return atoms, energies

    def overlap(self) -> tuple[Tensor, Tensor]:
        """Share of each network's filters that lies in the span of another network's, and the share expected by chance.

        Returns:
            Both (T, T), symmetric (the mean of both directions). By chance, filters of n rows have the share k / n of
            their energy in a span of k dimensions. If one of two networks has only zero filters, both values are 1.
        """
        count = len(self.filters)
        values, vectors = torch.linalg.eigh(self._own_gram())
        # directions below 1e-5 of the largest are negligible; values are squares
        real = values > 1e-10 * values[:, -1:].clamp(min=1e-300)
        whiten = vectors * (torch.where(real, values, 1.0).rsqrt() * real)[:, None]
        share = torch.empty(count, count, dtype=torch.float64)
        for start, gram in self._gram_rows():
            for s, inner in enumerate(gram, start):
                share[s] = (whiten[s].mT @ inner.flatten(1)).square().sum(0).unflatten(0, (count, self.pixels)).sum(1)
        chance = (real.sum(1) / self.rows).double().clamp(max=1)[:, None].expand(count, count)
        empty = (self.norms == 0)[:, None] | (self.norms == 0)
        share, chance = (torch.where(empty, 1.0, (m + m.mT) / 2).clamp(max=1) for m in (share, chance))
        return share, chance

    def _right_vectors(self, size: int) -> tuple[Tensor, Tensor]:
        """Squared singular values, largest first, and right singular vectors (T * k, m); m is at least ``size``."""
        wide = len(self.filters) * self.pixels
        width = size + 8
        if wide <= _WHOLE or 3 * width > wide:
            squares, right = torch.linalg.eigh(self.gram.reshape(wide, wide))
            return squares.flip(0), right.flip(1)
        start = torch.randn(wide, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
        block = torch.linalg.qr(start)[0]
        space, images = torch.empty(2, wide, 0, dtype=torch.float64)
        for _ in range(max(3, _KRYLOV // width)):
            image = sum((part.mT @ (part @ block) for part in self._chunks()), torch.zeros_like(block))
            space, images = torch.cat([space, block], 1), torch.cat([images, image], 1)
            for _ in range(2):  # one pass leaves rounding errors
                image = image - space @ (space.mT @ image)
            block, lengths = torch.linalg.qr(image)
            block = block[:, lengths.diagonal().abs() > _ROUNDING**2 * images.norm()]
            if not block.shape[1]:  # the space is complete
                break
        squares, turns = torch.linalg.eigh(space.mT @ images)
        return squares.flip(0), space @ turns.flip(1)

    def _outer(self) -> Tensor:
        """Inner products of all rows of the unit-norm matrices side by side, (n, n) float64."""
        total = torch.zeros(self.rows, self.rows, dtype=torch.float64)
        for part in self._blocks(max(1, _CHUNK_VALUES // (self.rows * self.pixels))):
            total.addmm_(part, part.mT)
        return total

    def _own_gram(self) -> Tensor:
        """Inner products of each network's own columns, (T, k, k) float64."""
        if "gram" in self.__dict__:
            return self.gram.diagonal(dim1=0, dim2=2).permute(2, 0, 1)
        return torch.stack([part.mT @ part for part in self._blocks(1)])

    def _gram_rows(self) -> Iterator[tuple[int, Tensor]]:
        """In parts: the number of the first network of a part, and inner products of its columns with those of all
        networks, (networks, k, T, k) float64."""
        count, pixels = len(self.filters), self.pixels
        if count * pixels <= _WHOLE:
            yield 0, self.gram
            return
        part_size = max(1, _CHUNK_VALUES // (count * pixels**2))
        for start in range(0, count, part_size):
            columns = slice(start * pixels, (start + part_size) * pixels)
            total = torch.zeros(min(part_size, count - start) * pixels, count * pixels, dtype=torch.float64)
            for part in self._chunks():
                total.addmm_(part[:, columns].mT, part)
            yield start, total.view(-1, pixels, count, pixels)

    def _blocks(self, count: int) -> Iterator[Tensor]:
        """In parts of ``count`` networks: their unit-norm matrices side by side, (n, count * k) float64."""
        scale = [norm or 1.0 for norm in self.norms.tolist()]
        for start in range(0, len(self.filters), count):
            part = zip(self.filters[start : start + count], scale[start : start + count], strict=True)
            yield torch.cat([w.reshape(self.rows, self.pixels).to("cpu", torch.float64) / s for w, s in part], 1)

    @property
    def _height(self) -> int:
        return max(1, _CHUNK_VALUES // (len(self.filters) * self.pixels))

    def _chunks(self) -> Iterator[Tensor]:
        """In parts: some rows of all unit-norm matrices side by side, (rows, T * k) float64."""
        flat = [filters.reshape(self.rows, self.pixels) for filters in self.filters]
        scale = [norm or 1.0 for norm in self.norms.tolist()]
        for start in range(0, self.rows, self._height):
            stop = start + self._height
            yield torch.cat([w[start:stop].to("cpu", torch.float64) / s for w, s in zip(flat, scale, strict=True)], 1)
