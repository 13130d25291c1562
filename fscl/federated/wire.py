"""How parts are written into a message: with 32, 16 or 8 bits a number, and only the rows of a head that matter."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fscl.errors import FsclError

__all__ = ["BITS", "HEAD", "Wire", "decoded", "encoded"]

BITS = (32, 16, 8)
HEAD = "head"
BLOCK = 64  # values with one scale, of two bytes, when each has one byte


def encoded(values: Tensor, bits: int = 32) -> NDArray[np.generic]:
    """A flat part as it travels.

    With 8 bits, every 64 values share a scale, and each has an error of at most 1/253 of the largest of them. Encoding
    what was decoded gives the same bytes again.

    Args:
        values: (n), floating-point numbers.
        bits: 32 keeps the numbers as they are; 16 is half precision; 8 is a signed byte for each number.

    Raises:
        FsclError: another number of bits, or values that are too large for it.

    Example:
        >>> values = torch.linspace(-1, 1, 100)
        >>> [encoded(values, bits).nbytes for bits in BITS]
        [400, 200, 104]
        >>> float((decoded(encoded(values, 8)) - values).abs().max()) < 1 / 253
        True
    """
    if bits not in BITS:
        raise FsclError(f"bits is {bits}; known: {', '.join(map(str, BITS))}")
    if bits == 32:
        return values.numpy()
    if bits == 16:
        half = values.half()
        if not bool(half.isfinite().all()):
            raise FsclError(f"values up to {float(values.abs().max()):.3g} do not fit into 16 bits; 32 would do")
        return half.numpy()
    blocks = torch.nn.functional.pad(values.float(), (0, -len(values) % BLOCK)).view(-1, BLOCK)
    # bfloat16 has a scale for all values that float32 has; half precision rounds changes below 1e-5 to nothing
    scales = (blocks.abs().amax(1) / 127).bfloat16()
    if not bool(scales.isfinite().all()):
        raise FsclError(f"values up to {float(values.abs().max()):.3g} do not fit into 8 bits; 32 would do")
    steps = torch.where(scales > 0, scales.float(), torch.ones(len(scales)))[:, None]
    signed = (blocks / steps).round().clamp(-127, 127).to(torch.int8).flatten()[: len(values)]
    return np.concatenate([scales.view(torch.uint8).numpy(), signed.view(torch.uint8).numpy()])


def decoded(written: NDArray[np.generic]) -> Tensor:
    """The values that :func:`encoded` wrote: (n), of the type that travelled; float32 if they had 8 bits.

    Raises:
        FsclError: the array has another type, or bytes of no possible length.
    """
    if np.issubdtype(written.dtype, np.floating):
        values = torch.from_numpy(np.array(written))  # a copy, since the message's memory cannot be written to
        return values.float() if written.dtype == np.float16 else values
    if written.dtype != np.uint8 or written.ndim != 1:
        raise FsclError(f"it has type {written.dtype}; floating-point numbers would do")
    blocks = -(-len(written) // (BLOCK + 2))
    count = len(written) - 2 * blocks
    if count < 0 or -(-count // BLOCK) != blocks:
        raise FsclError(f"{len(written)} bytes are no values of 8 bits")
    scales = torch.from_numpy(written[: 2 * blocks].copy().view(np.int16)).view(torch.bfloat16).float()
    signed = torch.from_numpy(written[2 * blocks :].copy().view(np.int8)).float()
    return signed * scales.repeat_interleave(BLOCK)[:count]


@dataclass(frozen=True)
class Wire:
    """How the parts of one client travel. Server and client must agree on it.

    Attributes:
        bits: of a number. With fewer than 32, a client returns by how much it changed a part.
        rows: (values of the head), which of them travel; None sends all. They are the rows of the client's own classes.
    """

    bits: int = 32
    rows: Tensor | None = None

    def write(self, parts: Mapping[str, Tensor], exact: Collection[str] = ()) -> dict[str, NDArray[np.generic]]:
        """Parts as they travel.

        Args:
            parts: whole packed parts.
            exact: parts that arrive as they are. They have 32 bits a number if fewer would change them.
        """
        chosen = {part: self._chosen(part, values) for part, values in parts.items()}
        return {
            part: encoded(values, 32 if part in exact and not _fits(values, self.bits) else self.bits)
            for part, values in chosen.items()
        }

    def read(self, written: Mapping[str, Tensor], base: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Whole packed parts from decoded ones.

        Args:
            written: decoded parts.
            base: whole packed parts with the values of what did not travel.

        Raises:
            FsclError: a part is unknown or has another number of values.
        """
        whole = {}
        for part, values in written.items():
            if part not in base:
                raise FsclError(f"part {part!r} is unknown; known: {', '.join(base)}")
            size = self._chosen(part, base[part]).numel()
            if values.ndim != 1 or len(values) != size:
                raise FsclError(f"{part} has shape {tuple(values.shape)}; this network's has ({size},)")
            whole[part] = values.to(base[part].dtype)
            if self.rows is not None and part == HEAD:
                whole[part] = base[part].clone().masked_scatter_(self.rows, whole[part])
        return whole

    def _chosen(self, part: str, values: Tensor) -> Tensor:
        return values if self.rows is None or part != HEAD else values[self.rows]


def _fits(values: Tensor, bits: int) -> bool:
    """Whether so many bits keep the values as they are."""
    try:
        return torch.equal(decoded(encoded(values, bits)).to(values.dtype), values)
    except FsclError:
        return False
