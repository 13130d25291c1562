"""Collects what the probing measures need of two networks' features, batch by batch and in bounded memory."""

from typing import NamedTuple

import torch
from torch import Tensor

from fscl.errors import FsclError
from fscl.similarity.matrices import PAIR, Centred, Named, only_rounding, scaled

__all__ = ["Scatter"]

LARGEST = 1e140  # sums of squares of larger features may overflow


class Scatter(NamedTuple):
    """The scatter of features x and y about their means, as a triangular factor.

    With z = [x, y], (n, p + q), and any shift a, the QR decomposition [1, z - a] = Q R has n and the means in the first
    row of R. The rest of R is a factor of the scatter matrix: the sum over samples of (z - mean) (z - mean)^T. So R has
    the inner products of the centred features. It is found without forming the scatter matrix, because that would
    square the condition number, and CCA would lose half of its digits. The R of two sets of samples together is the R
    of both matrices R, one below the other.

    Attributes:
        shift: a, (p + q,). Precision is best if it is near to the means.
        lowest, highest: smallest and largest value of each feature, (p + q,).
        rows: matrices whose R is the R of all samples, each (r, 1 + p + q). They are reduced to R when there are enough
            of them to be worth it.
        samples: n.
    """

    shift: Tensor
    lowest: Tensor
    highest: Tensor
    rows: tuple[Tensor, ...]
    samples: int

    @classmethod
    def of(cls, batch: list[Named]) -> "Scatter":
        """The scatter of one batch (x, y).

        Raises:
            FsclError: squares of features would overflow.
        """
        for name, values in batch:
            if (largest := float(values.double().abs().max())) > LARGEST:
                raise FsclError(f"{name} has a value of size {largest:.3g}; squares of up to {LARGEST:g} can be summed")
        z = torch.cat([values.double() for _, values in batch], 1)
        shift = z.mean(0)
        rows = torch.cat([z.new_ones(len(z), 1), z - shift], 1)
        return cls(shift, z.amin(0), z.amax(0), (rows,), len(z))._reduced()

    def merged(self, other: "Scatter") -> "Scatter":
        """The scatter of the samples of both, on the device of this one."""
        shift, lowest, highest = (t.to(self.shift) for t in (other.shift, other.lowest, other.highest))
        # 1 times the change of shift for a sample; it is linear in rows, so it is right for those of R, too
        moved = [
            torch.cat([rows[:, :1], rows[:, 1:] + rows[:, :1] * (shift - self.shift)], 1)
            for rows in (rows.to(self.shift) for rows in other.rows)
        ]
        return Scatter(
            self.shift,
            self.lowest.minimum(lowest),
            self.highest.maximum(highest),
            (*self.rows, *moved),
            self.samples + other.samples,
        )._reduced()

    def centred(self, num_features: int) -> tuple[Centred, Centred]:
        """Matrices with the inner products of centred x, of ``num_features`` columns, and centred y.

        Raises:
            FsclError: all samples of x or of y have the same features.
        """
        factor = self._factor()
        means = factor[0, 1:] / factor[0, 0]  # less the shift
        deviation = (self.highest - self.shift - means).maximum(means - (self.lowest - self.shift))
        centred_features = factor[1:, 1:].clone()
        centred_features[:, only_rounding(deviation, self.lowest.abs().maximum(self.highest.abs()))] = 0
        x, y = centred_features.tensor_split([num_features], 1)
        return scaled(PAIR[0], x, self.samples), scaled(PAIR[1], y, self.samples)

    def _reduced(self) -> "Scatter":
        """The same with only the rows of R, if there are twice as many rows: QR then costs little for each sample."""
        enough = sum(map(len, self.rows)) > 2 * self.rows[0].shape[1]
        return self._replace(rows=(self._factor(),)) if enough else self

    def _factor(self) -> Tensor:
        return torch.linalg.qr(torch.cat(self.rows), mode="r").R
