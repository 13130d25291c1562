"""Packs the entries of a network into one array for each kind, as they travel between clients and a server."""

from collections.abc import Collection, Iterable, Mapping, Sequence

import torch
from torch import Tensor, nn

from fscl.atoms.entries import fingerprint_of, live_state
from fscl.atoms.ownership import KINDS, entry_kinds
from fscl.errors import FsclError
from fscl.text import brief

__all__ = ["PARTS", "Packing"]

# the kinds of a task's own entries, and what tasks share: coefficients, 1x1 convolutions, hidden linear layers; of a
# network without atoms, the filters
PARTS = (*KINDS, "shared")


class Packing:
    """Puts the entries of a network into one flat array for each part, and back.

    The parts are ``atoms``, ``normalisation``, ``head``, ``other`` (biases of convolutions, buffers) and ``shared``
    (coefficients and all else that the tasks of an :class:`~fscl.AtomBank` share). Only floating-point entries are
    packed: an average of counters means nothing.

    Args:
        model: a network, with or without atom layers. Others that are built alike can then be packed, too.
        heads, own: as for :class:`~fscl.AtomBank`.

    Attributes:
        entries: the names of the entries of each part that is not empty, in the order of the network.

    Raises:
        FsclError: a name matches no entry, or entries have several types.

    Example:
        >>> from fscl.atoms import decompose
        >>> model = decompose(nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 2))).model
        >>> packing = Packing(model)
        >>> {part: packing.size(part) for part in packing.entries}
        {'atoms': 36, 'head': 34, 'other': 4, 'shared': 16}
        >>> atoms = packing.pack(model, "atoms")
        >>> packing.unpack(model, {"atoms": 2 * atoms})
    """

    def __init__(self, model: nn.Module, heads: Sequence[str] | None = None, own: Collection[str] = ()) -> None:
        kinds = entry_kinds(model, heads, own)
        entries: dict[str, list[str]] = {part: [] for part in PARTS}
        self._shapes: dict[str, torch.Size] = {}
        seen: set[int] = set()
        types = set()
        for name, tensor in live_state(model).items():
            if tensor.is_floating_point() and id(tensor) not in seen:  # a tied parameter travels once
                seen.add(id(tensor))
                entries[kinds.get(name, "shared")].append(name)
                self._shapes[name] = tensor.shape
                types.add(str(tensor.dtype))
        self.entries = {part: tuple(names) for part, names in entries.items() if names}
        if len(types) > 1:
            raise FsclError(f"{type(model).__name__} has entries of several types ({', '.join(sorted(types))})")

    def size(self, part: str) -> int:
        """Number of values of a part."""
        return sum(self._shapes[name].numel() for name in self._names(part))

    def pack(self, model: nn.Module, part: str) -> Tensor:
        """A copy of the entries of one part, flat, on the CPU: (values)."""
        state = live_state(model)
        return torch.cat([state[name].detach().reshape(-1).cpu() for name in self._names(part)])

    def packed(self, model: nn.Module, parts: Iterable[str] | None = None) -> dict[str, Tensor]:
        """Copies of several parts, flat; of all parts by default. A part that the network lacks is left out."""
        return {part: self.pack(model, part) for part in self.entries if parts is None or part in parts}

    @torch.no_grad()
    def unpack(self, model: nn.Module, packed: Mapping[str, Tensor]) -> None:
        """Puts packed parts into a network, in place.

        Raises:
            FsclError: a part is unknown, has another number of values, or has a value that is not finite. The network
                is then unchanged.
        """
        self.check(packed)
        state = live_state(model)
        for name, values in self.entries_of(packed).items():
            state[name].copy_(values)

    def entries_of(self, packed: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Views of packed parts as entries: name -> tensor in the entry's shape."""
        entries: dict[str, Tensor] = {}
        for part, values in packed.items():
            names = self._names(part)
            pieces = values.split([self._shapes[name].numel() for name in names])
            entries |= {name: piece.view(self._shapes[name]) for name, piece in zip(names, pieces, strict=True)}
        return entries

    def check(self, packed: Mapping[str, Tensor]) -> None:
        """Raises :class:`FsclError` for packed parts that do not fit the network or are not finite."""
        for part, values in packed.items():
            if values.ndim != 1 or len(values) != self.size(part):
                raise FsclError(f"{part} has shape {tuple(values.shape)}; this network's has ({self.size(part)},)")
            if not bool(values.isfinite().all()):
                raise FsclError(f"{part} is not finite")

    def atoms(self, packed: Tensor) -> dict[str, Tensor]:
        """The atoms of each layer from the packed part ``atoms``: layer name -> (m, height, width)."""
        return {name.removesuffix(".atoms"): values for name, values in self.entries_of({"atoms": packed}).items()}

    def rows(self, classes: Collection[int]) -> Tensor:
        """Which values of the part ``head`` belong to some classes: (values), bool.

        They are the rows, with these numbers, of all entries that have as many rows as the head's last entry. Other
        entries belong to all classes.

        Raises:
            FsclError: a class is no row of the head, or there is none.
        """
        names = self._names("head")
        outputs = self._shapes[names[-1]][0]
        if not classes or not set(classes) <= set(range(outputs)):
            raise FsclError(f"classes are {brief(sorted(classes))}; some of 0 to {outputs - 1} would do")
        chosen = torch.zeros(outputs, dtype=torch.bool)
        chosen[list(classes)] = True
        parts = []
        for name in names:
            shape = self._shapes[name]
            belongs = chosen if shape[0] == outputs else torch.ones(shape[0], dtype=torch.bool)
            parts.append(belongs.view(-1, *[1] * (len(shape) - 1)).expand(shape).flatten())
        return torch.cat(parts)

    def fingerprint(self, model: nn.Module) -> str:
        """SHA-256 of the part ``shared``. Atoms of two clients can be averaged and compared only if it is equal."""
        state = live_state(model)
        return fingerprint_of({name: state[name] for name in self.entries.get("shared", ())})

    def _names(self, part: str) -> tuple[str, ...]:
        if part not in self.entries:
            raise FsclError(f"this network has no part {brief(part)}; its parts: {', '.join(self.entries)}")
        return self.entries[part]
