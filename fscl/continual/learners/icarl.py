"""iCaRL: exemplars chosen by herding, distillation from the former network, and classes by nearest mean."""

import copy
from typing import Any

import torch
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.models import avalanche_forward
from avalanche.training.templates import SupervisedTemplate
from torch import Tensor, nn
from torch.nn import functional as F

from fscl.continual.evaluate import features_of
from fscl.continual.learner import UNSEEN
from fscl.continual.loader import batches
from fscl.errors import FsclError

__all__ = ["ICaRL", "herd"]


class ICaRL(SupervisedTemplate):
    """Incremental classifier and representation learning, for new classes without task labels.

    The network is trained on a task's images and all exemplars. The loss is the binary cross-entropy of each class,
    summed over classes. For new classes its targets are the labels; for former classes they are the outputs of the
    former network. The criterion that is passed is not used. After training, exemplars of each new class are chosen,
    and exemplars of former classes are removed, so that the memory is divided evenly. A test image gets the class
    whose mean feature over exemplars is nearest to the feature of the image.

    ``avalanche.training.ICaRL`` takes a feature extractor and a classifier in place of a network. It accepts only
    streams of Avalanche's older scenarios, and its head must know all classes from the start. It keeps exemplars as
    transformed images, which are not augmented when they are learned again.

    Args:
        model: a network that ends in a linear layer or in a head that grows, see :func:`fscl.continual.build_network`.
        memory_size: number of exemplars in all, divided evenly among the classes.
        criterion: not used.
        **arguments: as in ``avalanche.training.Naive``.

    Attributes:
        exemplars: class -> its exemplars as an Avalanche data set, the best first.
        means: (classes, p) unit vectors, the mean features of the classes in ``exemplars``; None before the first task.
        former: the network after the last task, from which the next task distils; None before the first task.

    Raises:
        FsclError: an experience has classes that were learned before, or there are more classes than exemplars.

    References:
        Rebuffi, Kolesnikov, Sperl, Lampert. iCaRL: Incremental Classifier and Representation Learning. CVPR 2017.

    Example:
        >>> net = nn.Linear(4, 2)
        >>> optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
        >>> ICaRL(model=net, optimizer=optimizer, memory_size=20, evaluator=None).exemplars
        {}
    """

    scenarios = ("class",)
    own_loss = True

    def __init__(self, *, memory_size: int = 200, criterion: Any = None, **arguments: Any) -> None:
        super().__init__(**arguments)
        if memory_size < 1:
            raise FsclError(f"memory_size is {memory_size}; it must be at least 1")
        self.memory_size = memory_size
        self.exemplars: dict[int, Any] = {}
        self.means: Tensor | None = None
        self.former: nn.Module | None = None

    def train_dataset_adaptation(self, **kwargs: Any) -> None:
        super().train_dataset_adaptation(**kwargs)
        new = self.experience.classes_in_this_experience
        if known := sorted(set(new) & set(self.exemplars)):
            raise FsclError(
                f"experience {self.experience.current_experience} has classes {known}, which were learned before; "
                "iCaRL learns new classes, as with split.scenario=class"
            )
        if (classes := len(new) + len(self.exemplars)) > self.memory_size:
            raise FsclError(
                f"memory_size is {self.memory_size}, and there are {classes} classes; give at least {classes}"
            )
        self.adapted_dataset = concat_datasets([self.experience.dataset.train(), *self.exemplars.values()])

    def criterion(self) -> Tensor:
        """The loss of a mini-batch: binary cross-entropy of each class, with distilled targets for former classes."""
        answers = self.mb_output.float()
        targets = F.one_hot(self.mb_y, answers.shape[1]).to(answers)
        if self.is_training and self.former is not None:
            known = sorted(self.exemplars)
            with torch.no_grad():
                before = avalanche_forward(self.former, self.mb_x, self.mb_task_id)
            targets[:, known] = before.float().sigmoid()[:, known]
        return F.binary_cross_entropy_with_logits(answers, targets, reduction="sum") / len(answers)

    def forward(self) -> Tensor:
        """The network's outputs in training; in evaluation, the cosine of the feature with each class's mean."""
        if self.is_training or self.means is None:
            return super().forward()
        known = sorted(self.exemplars)
        classes = 1 + max(*known, *self.experience.classes_in_this_experience)
        answers = self.means.new_full((len(self.mb_x), classes), UNSEEN)
        answers[:, known] = F.normalize(features_of(self.model, self.mb_x), dim=1) @ self.means.T
        return answers

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._update_memory()
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def _update_memory(self) -> None:
        """Chooses exemplars of the new classes, and stores the means of all classes and a copy of the network."""
        data = self.experience.dataset.train()
        new = sorted(self.experience.classes_in_this_experience)
        room = self.memory_size // (len(self.exemplars) + len(new))
        for known, samples in self.exemplars.items():
            self.exemplars[known] = samples.subset(range(min(room, len(samples))))
        features, labels = self._features(data.eval())
        for number in new:
            members = (labels == number).nonzero()[:, 0]
            self.exemplars[number] = data.subset(members[herd(features[members], room)].tolist())
        features, labels = self._features(concat_datasets(list(self.exemplars.values())).eval())
        means = torch.stack([features[labels == known].mean(0) for known in sorted(self.exemplars)])
        self.means = F.normalize(means, dim=1)
        self.former = copy.deepcopy(self.model).eval()

    def _features(self, data: Any) -> tuple[Tensor, Tensor]:
        """Features, (N, p) unit vectors, and labels, (N,), of images without augmentation."""
        features, labels = [], []
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed even if it does not shuffle
            for x, y, *_ in batches(data, self.eval_mb_size, self.device):
                features.append(F.normalize(features_of(self.model, x.to(self.device)), dim=1))
                labels.append(y)
        return torch.cat(features), torch.cat(labels).to(self.device)


def herd(features: Tensor, count: int) -> Tensor:
    """Chooses rows one after another, each so that the mean of the chosen rows is nearest to the mean of all rows.

    Args:
        features: (N, p).
        count: number of rows to choose; at most N are chosen.

    Returns:
        int64 (count,), the positions of the rows in the order of choice. No row occurs twice.

    Example:
        >>> herd(torch.tensor([[0.0], [10.0], [5.0], [6.0]]), 3)
        tensor([2, 3, 0])
    """
    features = features.double()
    mean = features.mean(0)
    total, chosen = torch.zeros_like(mean), list[int]()
    free = torch.ones(len(features), dtype=torch.bool, device=features.device)
    for number in range(1, min(count, len(features)) + 1):
        distance = (mean - (total + features) / number).square().sum(1)
        best = int(distance.masked_fill(~free, float("inf")).argmin())
        free[best] = False
        total += features[best]
        chosen.append(best)
    return torch.tensor(chosen, dtype=torch.int64, device=features.device)
