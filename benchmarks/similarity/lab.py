"""Tasks of known geometry, and networks over shared coefficients that learn them: what the study is measured on."""

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.transforms import InterpolationMode
from torchvision.transforms.functional import rotate

from fscl.atoms import AtomBank, decompose
from fscl.continual.training.acceleration import Acceleration
from fscl.data.datasets import ImageSet, load_images
from fscl.errors import FsclError
from fscl.networks import ConvNet
from fscl.optimization import channels_last

__all__ = [
    "ARCHITECTURES",
    "DATA",
    "Budget",
    "Images",
    "Task",
    "accuracy",
    "bank_of",
    "blank",
    "fit",
    "head_of",
    "learn",
    "start",
]

ARCHITECTURES = {"plain": "plain", "vgg": "VGG-like", "resnet": "ResNet"}
DATA = {"fmnist": "Fashion-MNIST", "cifar100": "CIFAR-100"}
SIDE, CLASSES = 32, 10  # of all tasks here
NORMAL = {"fmnist": ((0.286,), (0.353,)), "cifar100": ((0.507, 0.487, 0.441), (0.267, 0.256, 0.276))}


@dataclass(frozen=True)
class Budget:
    """What is spent on training a network; the first task trains coefficients as well, for longer."""

    images: int = 6000  # of each task, drawn at random
    epochs: int = 2
    first_epochs: int = 6
    rate: float = 0.05  # the peak of one cycle, of SGD with Nesterov momentum 0.9
    first_rate: float = 0.1
    decay: float = 5e-4
    batch: int = 64

    def steps(self, task: "Task", epochs: int) -> int:
        """Batches in some epochs of a task."""
        return len(task.images) // self.batch * epochs


@dataclass(frozen=True)
class Task:
    """Training and test images of one task, normalised float32 (n, c, 32, 32), and labels from 0."""

    name: str
    images: Tensor
    labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Images:
    """A data set from which tasks are made.

    Args:
        name: ``fmnist``, padded to 32x32, or ``cifar100``.
        data: the data folder, see :func:`fscl.data.datasets.load_images`.
    """

    def __init__(self, name: str, data: str | None) -> None:
        if name not in NORMAL:
            raise FsclError(f"unknown images {name!r}; known: {', '.join(NORMAL)}")
        self.name = name
        self.train, self.test = _loaded(name, data)
        self.channels = self.train.images.shape[1]

    def rotated(self, degrees: float, budget: Budget, seed: int, name: str | None = None) -> Task:
        """The first ten classes, all images rotated about their centre, counter-clockwise."""

        def turned(pixels: Tensor) -> Tensor:
            return rotate(pixels, degrees, InterpolationMode.BILINEAR) if degrees else pixels

        return self._task(name or f"{degrees:.0f}°", range(CLASSES), budget, seed, turned)

    def of_classes(self, classes: Sequence[int], budget: Budget, seed: int, name: str | None = None) -> Task:
        """Ten classes, labelled in the order given."""
        title = name or " ".join(self.train.classes[c] for c in classes[:3])
        return self._task(title, classes, budget, seed, lambda pixels: pixels)

    def probe(self, n: int, seed: int, turns: Sequence[float] = (0,), train: bool = False) -> Tensor:
        """Test images of all classes, in equal parts under each of some rotations: (n, c, 32, 32)."""
        source = self.train if train else self.test
        generator = torch.Generator().manual_seed(seed)
        drawn = torch.randperm(len(source.images), generator=generator)[:n]
        pixels = self._pixels(source.images[drawn])
        turned = [rotate(part, turn, InterpolationMode.BILINEAR) if turn else part
                  for part, turn in zip(pixels.tensor_split(len(turns)), turns, strict=True)]  # fmt: skip
        mixed = torch.cat(turned)[torch.randperm(len(pixels), generator=generator)]
        return self._normalised(mixed)

    def _task(
        self, name: str, classes: Iterable[int], budget: Budget, seed: int, change: Callable[[Tensor], Tensor]
    ) -> Task:
        places = torch.full((len(self.train.classes),), -1)
        for place, label in enumerate(classes):
            places[label] = place
        generator = torch.Generator().manual_seed(seed)
        parts = []
        for source, most in ((self.train, budget.images), (self.test, 1000)):
            labels = places[source.labels]
            of_task = (labels >= 0).nonzero().flatten()
            drawn = of_task[torch.randperm(len(of_task), generator=generator)[:most]]
            parts += [self._normalised(change(self._pixels(source.images[drawn]))), labels[drawn]]
        return Task(name, *parts)

    def _pixels(self, images: Tensor) -> Tensor:
        margin = (SIDE - images.shape[-1]) // 2
        return F.pad(images.float() / 255, [margin] * 4)

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, deviation = (torch.tensor(values).view(1, -1, 1, 1) for values in NORMAL[self.name])
        return (pixels - mean) / deviation


@lru_cache(maxsize=4)
def _loaded(name: str, data: str | None) -> tuple[ImageSet, ImageSet]:
    return load_images(name, data)


def blank(architecture: str, channels: int) -> nn.Module:
    """An untrained network of atom layers.

    Raises:
        FsclError: the architecture is unknown.
    """
    return decompose(_network(architecture, channels)).model


def start(architecture: str, task: Task, budget: Budget, seed: int) -> tuple[nn.Module, AtomBank, float]:
    """Trains all parameters of a network of atom layers on a first task; all further tasks share its coefficients.

    Returns:
        The network, a bank that holds it as task 0, and its accuracy on test images.

    Raises:
        FsclError: the architecture is unknown, or the task has fewer images than a batch.
    """
    torch.manual_seed(seed)
    model = blank(architecture, task.images.shape[1])
    reached = fit(model, task, list(model.parameters()), budget.first_epochs, budget.first_rate, budget, seed)
    bank = AtomBank(model)  # freezes what tasks share
    bank.store(model, 0, task.name)
    return model, bank, reached


def learn(
    model: nn.Module,
    bank: AtomBank,
    task: Task,
    budget: Budget,
    seed: int,
    begin_from: int | None = None,
    after_step: Callable[[int], None] | None = None,
) -> float:
    """Trains in place what belongs to a task, with a fresh head; returns the accuracy on test images.

    Args:
        model: the network.
        bank: fixes what tasks share; :meth:`AtomBank.store` keeps what was learned.
        task: the images.
        budget: how long and how fast.
        seed: of the head and of the order of images.
        begin_from: the task of the bank to begin from; None begins from the network as it is.
        after_step: called with the number of the step just done, from 1.
    """
    torch.manual_seed(seed)
    bank.begin(model, begin_from)
    return fit(model, task, bank.parameters(model), budget.epochs, budget.rate, budget, seed, after_step)


def fit(
    model: nn.Module,
    task: Task,
    parameters: Sequence[nn.Parameter],
    epochs: int,
    rate: float,
    budget: Budget,
    seed: int,
    after_step: Callable[[int], None] | None = None,
    optimizer: torch.optim.Optimizer | None = None,
) -> float:
    """Trains a network in place, over one cycle of the rate; returns the accuracy.

    By default ``parameters`` are trained by SGD, in the precision and the layout that are fastest here. With an
    ``optimizer``, its parameters are trained in float32, which is faster for small transformers.

    Raises:
        FsclError: the task has fewer images than a batch, or the loss is not finite at the end.
    """
    steps = budget.steps(task, epochs)
    if steps < 1:
        raise FsclError(f"task {task.name!r} has {len(task.images)} images; a batch is {budget.batch}")
    lower, laid_out = torch.float32, optimizer is None
    if optimizer is None:
        optimizer = torch.optim.SGD(parameters, lr=rate, momentum=0.9, nesterov=True, weight_decay=budget.decay)
        lower = getattr(torch, Acceleration().resolved(torch.device("cpu")))
        model.to(memory_format=torch.channels_last)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, rate, total_steps=steps)
    generator = torch.Generator().manual_seed(seed)
    model.train()
    step = 0
    for _ in range(epochs):
        order = torch.randperm(len(task.images), generator=generator)
        for batch in order[: len(order) // budget.batch * budget.batch].split(budget.batch):
            images = channels_last(task.images[batch]) if laid_out else task.images[batch]
            with torch.autocast("cpu", lower, enabled=lower != torch.float32):
                loss = F.cross_entropy(model(images).float(), task.labels[batch])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
            if after_step:
                after_step(step)
    if not math.isfinite(float(loss.detach())):
        raise FsclError(f"training on {task.name!r} ended with loss {float(loss.detach())}; lower the rate")
    return accuracy(model, task.test_images, task.test_labels)


@torch.no_grad()
def accuracy(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The share of images that the network labels rightly, in evaluation mode."""
    model.eval()
    guesses = torch.cat([model(channels_last(part)).argmax(1) for part in images.split(500)])
    return float((guesses == labels).float().mean())


def head_of(model: nn.Module) -> nn.Linear:
    """The last linear layer."""
    return [module for module in model.modules() if isinstance(module, nn.Linear)][-1]


def bank_of(model: nn.Module, states: Sequence[tuple[str, dict[str, Tensor]]]) -> AtomBank:
    """A bank whose tasks are states of one network, each with its name."""
    bank, network = AtomBank(model), copy.deepcopy(model)
    for task, (name, state) in enumerate(states):
        network.load_state_dict(state)
        bank.store(network, task, name)
    return bank


def _network(architecture: str, channels: int) -> nn.Module:
    if architecture == "plain":
        return ConvNet(channels, CLASSES, (16, 32, 32, 64, 64), (0, 2), dropout=0.0)
    if architecture == "vgg":  # two or more convolutions between pools
        return ConvNet(channels, CLASSES, (16, 16, 32, 32, 64, 64, 64, 64), (0, 1, 3), dropout=0.0)
    if architecture == "resnet":
        from pytorchcv.models.resnet_cifar import get_resnet_cifar

        return get_resnet_cifar(CLASSES, blocks=8, bottleneck=False, in_channels=channels, in_size=(SIDE, SIDE))
    raise FsclError(f"unknown architecture {architecture!r}; known: {', '.join(ARCHITECTURES)}")
