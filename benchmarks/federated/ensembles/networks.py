"""The networks of a finished federation: what they answer, and what they can be compared by."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from fscl.atoms import AtomConv2d, atom_layers
from fscl.compare import joint_decompose
from fscl.compare.layers import is_spatial
from fscl.errors import FsclError
from fscl.federated import Federation, LabelledImages
from fscl.runs.federation.serving import open_federation
from fscl.runs.records.federated import FederatedRecord
from fscl.similarity import collect_features, gram_matrix

__all__ = ["Answers", "ClientAtoms", "answers_of", "client_atoms"]

AT_ONCE = 256  # images of a pass that collects features


class ClientAtoms(NamedTuple):
    """The filters of all clients, written with coefficients that all of them share.

    Attributes:
        stacks: the atoms of each layer, (clients, m, kh, kw) float64.
        grams: the Gram matrix of each layer's coefficients, (m, m).
        rows: filters of each layer, out * in / groups.
        explained: the share of the filters that the atoms hold; 1 for networks of atom layers.
        source: ``layers`` of atoms with common coefficients, or a ``joint`` decomposition.
    """

    stacks: dict[str, Tensor]
    grams: dict[str, Tensor]
    rows: dict[str, int]
    explained: float
    source: str


@dataclass(frozen=True, eq=False)
class Answers:
    """What the networks of N clients answer. Each network has seen each image once.

    Attributes:
        record: of the run.
        outputs: of each network for all images on which a client is tested, (N, images, classes) float32.
        labels: of these images.
        places: of each client, where its own test images are among them.
        columns: of each client, the classes among which its network chooses.
        features: of each network for the probe images, (N, images, channels): the last convolution's output, as means
            over positions.
        layer: the name of this convolution.
        image: (channels, height, width) of an image.
        atoms: None if the filters of all networks are equal, so that nothing can be picked by them.
    """

    record: FederatedRecord
    outputs: Tensor
    labels: Tensor
    places: list[Tensor]
    columns: list[Tensor]
    features: Tensor
    layer: str
    image: tuple[int, int, int]
    atoms: ClientAtoms | None

    @property
    def clients(self) -> int:
        return len(self.outputs)


def answers_of(record: FederatedRecord, probe: int, seed: int, data: str | None = None) -> Answers:
    """Asks all networks of a finished run.

    Methods that fine-tune before they answer do so, as in their run; nothing else is trained.

    Args:
        record: of the run.
        probe: number of training images, drawn from those of all clients, for which features are collected.
        seed: of this draw.
        data: the data folder.

    Raises:
        FsclError: the run kept no weights, its data is missing, or its network has no convolution.
    """
    server, federation = open_federation(record, record.path.parent, data=data)
    tested, probed = _tested(federation), _probe(federation, probe, seed)
    _, channels, height, width = federation.test[0].images.shape
    batches = federation.plain(probed.load()[0]).split(AT_ONCE)
    outputs, features, filters, layer = [], [], [], ""
    for number in range(record.clients):
        client = federation.answering_now(number, server.question)
        layer = _last_convolution(client.network)
        outputs.append(client.outputs(tested))
        features.append(collect_features(client.network, batches, layer, maps="pooled", progress=False)[layer])
        filters.append(_filters(client.network))
    return Answers(
        record=record,
        outputs=torch.stack(outputs),
        labels=tested.load()[1],
        places=[torch.searchsorted(tested.chosen, own.chosen) for own in federation.test],
        columns=[torch.tensor(federation.classes_of(number) or range(len(record.classes)))
                 for number in range(record.clients)],
        features=torch.stack(features),
        layer=layer,
        image=(channels, height, width),
        atoms=client_atoms(filters),
    )  # fmt: skip


def _tested(federation: Federation) -> LabelledImages:
    """The images on which any client is tested, in increasing order."""
    chosen = torch.cat([own.chosen for own in federation.test]).unique()
    return replace(federation.test[0], chosen=chosen)


def _probe(federation: Federation, number: int, seed: int) -> LabelledImages:
    own = torch.cat([images.chosen for images in federation.train]).numpy()
    drawn = np.random.default_rng(seed).permutation(own)[:number]
    return replace(federation.train[0], chosen=torch.from_numpy(drawn))


def _last_convolution(network: nn.Module) -> str:
    names = [name for name, module in network.named_modules() if isinstance(module, nn.Conv2d | AtomConv2d)]
    if not names:
        raise FsclError(f"{type(network).__name__} has no convolution; features are those of the last one")
    return names[-1]


Filters = dict[str, tuple[Tensor, Tensor | None]]  # by layer: coefficients and atoms, or filters and None


def _filters(network: nn.Module) -> Filters:
    """Copies of a network's spatial filters; of its atom layers alone if it has any."""
    layers = atom_layers(network)
    if layers:
        return {name: (layer.coefficients.detach().clone(), layer.atoms.detach().clone())
                for name, layer in layers.items()}  # fmt: skip
    return {name: (module.weight.detach().clone(), None) for name, module in network.named_modules()
            if isinstance(module, nn.Conv2d) and is_spatial(module.weight)}  # fmt: skip


def client_atoms(filters: list[Filters]) -> ClientAtoms | None:
    """Atoms of all clients with common coefficients; None if all clients have the same filters.

    Networks of atom layers mostly share their coefficients, and their own atoms are taken. The filters of other
    networks are decomposed jointly: the coefficients are those that explain most of all clients' filters.
    """
    first = filters[0]
    if all(_equal(own[name], pair) for own in filters for name, pair in first.items()):
        return None
    rows = {name: coefficients.shape[0] * coefficients.shape[1] for name, (coefficients, _) in first.items()}
    if all(atoms is not None and torch.equal(own[name][0], coefficients)
           for own in filters for name, (coefficients, atoms) in first.items()):  # fmt: skip
        stacks = {
            name: torch.stack([atoms for own in filters if (atoms := own[name][1]) is not None]).double()
            for name in first
        }
        grams = {name: gram_matrix(coefficients.double()) for name, (coefficients, _) in first.items()}
        return ClientAtoms(stacks, grams, rows, 1.0, "layers")
    joint = joint_decompose([{f"{name}.weight": _composed(*pair) for name, pair in own.items()} for own in filters])
    return ClientAtoms(
        {name: joint.stack(name).double() for name in joint.layers},
        {name: joint.gram(name) for name in joint.layers},
        {name: rows[name] for name in joint.layers},
        joint.share,
        "joint",
    )


def _equal(one: tuple[Tensor, Tensor | None], other: tuple[Tensor, Tensor | None]) -> bool:
    return torch.equal(_composed(*one), _composed(*other))


def _composed(coefficients: Tensor, atoms: Tensor | None) -> Tensor:
    return coefficients if atoms is None else torch.einsum("oim,mhw->oihw", coefficients, atoms)
