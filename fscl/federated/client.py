"""What one client does with a network: fits parts of it to its own images, and tests it."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.atoms.learning import train_only
from fscl.atoms.ownership import NORMALISATION
from fscl.atoms.packing import Packing
from fscl.data.transforms import ImageTransform
from fscl.errors import FsclError
from fscl.modes import evaluating
from fscl.optimization import PRECISIONS, build_optimizer, build_schedule, channels_last, resolved_precision
from fscl.settings import Training

__all__ = ["Client", "LabelledImages"]

EVALUATED_AT_ONCE = 500  # images


@dataclass(frozen=True)
class LabelledImages:
    """Some images of a data set, chosen when they are used: a thousand clients share one copy of all images.

    Attributes:
        images: uint8 (N, C, H, W) of the whole data set.
        labels: int64 (N).
        chosen: indices of these images.
    """

    images: Tensor
    labels: Tensor
    chosen: Tensor

    def __len__(self) -> int:
        return len(self.chosen)

    def load(self) -> tuple[Tensor, Tensor]:
        """The chosen images, uint8 (n, C, H, W), and their labels (n)."""
        return self.images[self.chosen], self.labels[self.chosen]


@dataclass
class Client:
    """One client while it works on one message of the server.

    Attributes:
        number: its number, from 0.
        round: the server's round, from 1.
        network: a network that holds what the server sent and what the client kept.
        packing: packs parts of the network.
        training: how it is trained; ``epochs`` are local epochs.
        train, test: its images.
        augmented, plain: transforms of training and test images.
        classes: among which the network chooses, in increasing order, in training and in answers; None: among all.
        received: the parts that the server sent.
        kept: what it keeps to itself until its next round, by name. Replaced by the parts that a method keeps.
    """

    number: int
    round: int
    network: nn.Module
    packing: Packing
    training: Training
    train: LabelledImages
    test: LabelledImages
    augmented: ImageTransform
    plain: ImageTransform
    classes: list[int] | None = None
    received: dict[str, Tensor] = field(default_factory=dict)
    kept: dict[str, Tensor] = field(default_factory=dict)

    def fit(
        self,
        parts: Collection[str] | None = None,
        *,
        epochs: int | None = None,
        lr: float | None = None,
        pull: float = 0.0,
        towards: Mapping[str, Tensor] | None = None,
    ) -> float:
        """Trains parts of the network on the client's images, with a fresh optimizer.

        Args:
            parts: the parts that are trained, all by default; the rest is frozen, statistics of normalisation included.
            epochs, lr: in place of those of ``training``.
            pull, towards: adds ``pull / 2`` times the squared distance of the trained parameters from these packed
                parts to the loss.

        Returns:
            The mean loss over the last epoch, without the pull.

        Raises:
            FsclError: the network has no parameters in these parts.
        """
        training = self.training.model_copy(
            update={name: value for name, value in (("epochs", epochs), ("lr", lr)) if value is not None}
        )
        part_of = {name: part for part, names in self.packing.entries.items() for name in names}
        chosen = {
            name: parameter
            for name, parameter in self.network.named_parameters()
            if parts is None or part_of.get(name) in parts
        }
        if not chosen:
            raise FsclError(f"the network has no parameters in {', '.join(parts or ()) or 'any part'}; "
                            f"its parts: {', '.join(self.packing.entries)}")  # fmt: skip
        parameters = list(chosen.values())
        anchors = self._anchors(chosen, towards or {}) if pull else []
        train_only(self.network, parameters)
        optimizer = build_optimizer(training, parameters, parameters[0].device)
        images, labels = self.train.load()
        targets = labels if self.classes is None else torch.searchsorted(torch.tensor(self.classes), labels)
        left_out = (training.batch_size - 1) * training.drop_last if len(images) >= training.batch_size else 0
        starts = range(0, len(images) - left_out, training.batch_size)
        schedule = build_schedule(training, optimizer, training.epochs * len(starts))
        self.network.train()
        if parts is not None and "normalisation" not in parts:
            # the rest is trained on what it sees in answers, and statistics that are not trained do not change
            for module in self.network.modules():
                if isinstance(module, NORMALISATION):
                    module.eval()
        losses: list[Tensor] = []
        for _ in range(training.epochs):
            order = torch.randperm(len(images))
            losses = []
            for start in starts:
                batch = order[start : start + training.batch_size]
                outputs = self._outputs(self.augmented(images[batch]))[..., self._columns]
                loss = F.cross_entropy(outputs, targets[batch], label_smoothing=training.label_smoothing)
                losses.append(loss.detach())
                for parameter, anchor in anchors:
                    loss = loss + pull / 2 * (parameter - anchor).square().sum()
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                if schedule is not None:
                    schedule.step()
        return float(torch.stack(losses).mean())

    @torch.no_grad()
    def outputs(self, images: LabelledImages | None = None) -> Tensor:
        """The network's outputs of all classes for the client's test images, or for others: float32 (images, classes).

        It answers in evaluation mode, with the layout and the precision of the training.
        """
        pixels, _ = (images or self.test).load()
        with evaluating(self.network):
            return torch.cat([self._outputs(self.plain(part)) for part in pixels.split(EVALUATED_AT_ONCE)])

    def probabilities(self, images: LabelledImages | None = None) -> Tensor:
        """The network's probabilities of all classes for the client's test images, or for others: (images, classes)."""
        outputs = self.outputs(images)
        probabilities = torch.zeros_like(outputs)
        probabilities[:, self._columns] = outputs[:, self._columns].softmax(1)
        return probabilities

    def correct(self) -> int:
        """How many of the client's test images the network classifies correctly."""
        _, labels = self.test.load()
        return int((self.probabilities().argmax(1) == labels).sum())

    def _outputs(self, images: Tensor) -> Tensor:
        """The network's outputs in float32, with the layout and the precision of the training."""
        if self.training.channels_last:
            images = channels_last(images)
        precision = resolved_precision(self.training.precision, images.device)
        with torch.autocast(images.device.type, PRECISIONS[precision], enabled=precision != "float32"):
            return self.network(images).float()

    @property
    def _columns(self) -> list[int] | slice:
        return slice(None) if self.classes is None else self.classes

    def _anchors(
        self, chosen: Mapping[str, nn.Parameter], towards: Mapping[str, Tensor]
    ) -> list[tuple[nn.Parameter, Tensor]]:
        """The trained parameters that have a value in ``towards``, with that value."""
        values = self.packing.entries_of(towards)
        return [(parameter, values[name]) for name, parameter in chosen.items() if name in values]


def seed_of(*numbers: int) -> int:
    """A seed for torch from several numbers, such as seed, round and client. Neighbours give unrelated seeds."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)
