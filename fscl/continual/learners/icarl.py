"""iCaRL: exemplars chosen by herding, distillation from the former network, and the nearest mean of exemplars."""

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

    Trained on a task's images and all exemplars: what the former network says of former classes is held, and new
    classes are learned, by a loss of its own (binary cross-entropy of each class, summed over classes), so that a
    criterion that is passed is not used. Then of each new class as many exemplars are chosen as the memory has room
    for, and those of former classes are cut to as many. A test image gets the class whose exemplars' mean feature is
    nearest to its own.

    ``avalanche.training.ICaRL`` takes a feature extractor and a classifier in place of a network, streams of
    Avalanche's older scenarios alone, and a head that knows all classes beforehand. It keeps exemplars as transformed
    images, which are not augmented when they are learned again.

    Args:
        model: a network whose last layer is linear, or has a head that grows, see
            :func:`fscl.continual.build_network`.
        memory_size: exemplars in all, shared out evenly among the classes.
        criterion: not used.
        **arguments: as in ``avalanche.training.Naive``.

    Attributes:
        exemplars: of each class, the best first, as an Avalanche data set.
        means: (classes, p) unit vectors, the mean features of the classes in ``exemplars``; None before the first task.

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
        if again := sorted(set(new) & set(self.exemplars)):
            raise FsclError(
                f"experience {self.experience.current_experience} has classes {again}, which were learned before; "
                "iCaRL learns new classes, as with split.scenario=class"
            )
        if (classes := len(new) + len(self.exemplars)) > self.memory_size:
            raise FsclError(f"memory_size is {self.memory_size}, and there are {classes} classes: an exemplar each")
        self.adapted_dataset = concat_datasets([self.experience.dataset.train(), *self.exemplars.values()])

    def criterion(self) -> Tensor:
        """The loss of one mini-batch: of each class the cross-entropy of yes and no, with former ones distilled."""
        answers = self.mb_output.float()
        wanted = F.one_hot(self.mb_y, answers.shape[1]).to(answers)
        if self.is_training and self.former is not None:
            known = sorted(self.exemplars)
            with torch.no_grad():
                before = avalanche_forward(self.former, self.mb_x, self.mb_task_id)
            wanted[:, known] = before.float().sigmoid()[:, known]
        return F.binary_cross_entropy_with_logits(answers, wanted, reduction="sum") / len(answers)

    def forward(self) -> Tensor:
        """In training the network's answers; in evaluation, the cosine with each class's mean feature."""
        if self.is_training or self.means is None:
            return super().forward()
        known = sorted(self.exemplars)
        classes = 1 + max(*known, *self.experience.classes_in_this_experience)
        answers = self.means.new_full((len(self.mb_x), classes), UNSEEN)
        answers[:, known] = F.normalize(features_of(self.model, self.mb_x), dim=1) @ self.means.T
        return answers

    def _after_training_exp(self, **kwargs: Any) -> None:
        self._remember()
        super()._after_training_exp(**kwargs)

    @torch.no_grad()
    def _remember(self) -> None:
        """Chooses exemplars of the new classes, and takes the means of all and the network as they are now."""
        data = self.experience.dataset.train()
        new = sorted(self.experience.classes_in_this_experience)
        room = self.memory_size // (len(self.exemplars) + len(new))
        for known, samples in self.exemplars.items():
            self.exemplars[known] = samples.subset(range(min(room, len(samples))))
        features, labels = self._features(data.eval())
        for number in new:
            mine = (labels == number).nonzero()[:, 0]
            self.exemplars[number] = data.subset(mine[herd(features[mine], room)].tolist())
        features, labels = self._features(concat_datasets(list(self.exemplars.values())).eval())
        means = torch.stack([features[labels == known].mean(0) for known in sorted(self.exemplars)])
        self.means = F.normalize(means, dim=1)
        self.former = copy.deepcopy(self.model).eval()

    def _features(self, data: Any) -> tuple[Tensor, Tensor]:
        """(N, p) unit vectors and (N) labels of images as they are tested."""
        found, labels = [], []
        with torch.random.fork_rng(devices=[]):  # a loader draws a seed even where nothing is shuffled
            for x, y, *_ in batches(data, self.eval_mb_size, self.device):
                found.append(F.normalize(features_of(self.model, x.to(self.device)), dim=1))
                labels.append(y)
        return torch.cat(found), torch.cat(labels).to(self.device)


def herd(features: Tensor, count: int) -> Tensor:
    """The rows whose mean, one after another, stays nearest to the mean of all.

    Args:
        features: (N, p).
        count: how many; fewer are returned where there are fewer.

    Returns:
        (count) positions, the best first, none twice.

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
