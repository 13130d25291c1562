"""Training images per second: a bare PyTorch loop, the same training with fscl, and with stock Avalanche."""

import time
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from avalanche.benchmarks import benchmark_from_datasets, with_classes_timeline, with_task_labels
from avalanche.core import SupervisedPlugin
from avalanche.training import Naive
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, Dataset
from torchvision import transforms as tv

from benchmarks.speed.timing import alternately, quartiles, ratio, synchronise
from fscl.atoms import decompose, freeze_coefficients
from fscl.atoms.ownership import entry_kinds
from fscl.continual import Acceleration, build_network, load_images, split_classes
from fscl.continual.learner import Learner
from fscl.continual.loader import InMemoryBatches
from fscl.continual.stream import Stream, labelled
from fscl.continual.training.trainer import Trainer
from fscl.data.datasets import ImageSet
from fscl.data.places import find_data
from fscl.optimization import channels_last
from fscl.runs.recipe import BenchmarkRecipe, load_benchmark, load_strategy, with_overrides

__all__ = ["measure"]

# benchmark, changed settings, and learner; stock Avalanche trains the same network with Naive
CASES = (
    ("split_digits", {}, "naive"),
    ("split_digits", {}, "atom_swapping"),
    ("split_fmnist", {}, "naive"),
    ("split_fmnist", {}, "atom_swapping"),
    ("split_cifar100", {}, "naive"),
    ("split_cifar100", {}, "atom_swapping"),
    ("split_cifar100", {"model.name": "avalanche:SlimResNet18", "model.args": "{}"}, "naive"),
    ("split_cifar100", {"model.name": "avalanche:SlimResNet18", "model.args": "{}"}, "atom_swapping"),
)


def measure(quick: bool, data: str | None = None, device: str = "cpu") -> dict[str, Any]:
    """Rows with images per second (median and quartiles) of the three contenders, and their ratios in each round."""
    rows, skipped = [], []
    for name, changes, learner in CASES:
        settings = [f"{key}={value}" for key, value in changes.items()]
        benchmark, strategy = with_overrides(load_benchmark(name), load_strategy(learner), settings)
        if find_data(benchmark.data.name, data) is None:
            skipped.append(f"{name}: its images are missing")
            continue
        slow = "SlimResNet18" in benchmark.model.name and device == "cpu"
        images = (320 if slow else 1280) if quick else (640 if slow else 2500)
        rows.append(_row(benchmark, strategy, data, device, images, rounds=5 if quick else 11))
    return {"threads": torch.get_num_threads(), "device": device, "rows": rows, "skipped": skipped}


def _row(
    benchmark: BenchmarkRecipe, strategy: Any, data: str | None, device: str, most: int, rounds: int
) -> dict[str, Any]:
    train, test = load_images(benchmark.data.name, data, benchmark.data.image_size)
    train = _first(train, most * benchmark.split.tasks // len(train.classes))
    augment = {"crop_padding": benchmark.augment.crop_padding, "flip": benchmark.augment.flip}
    stream = split_classes(train, test, benchmark.split.tasks, **augment)
    n = len(stream.train_stream[1].dataset)
    calls = {
        "bare": _Bare(benchmark, strategy, stream, device),
        "fscl": _Fscl(benchmark, strategy, stream, device),
        "avalanche": _Stock(benchmark, stream, device),
    }
    seconds = alternately(calls, rounds)
    return {
        "benchmark": benchmark.name,
        "network": benchmark.model.name,
        "learner": strategy.name,
        "precision": Acceleration(benchmark.training.precision).resolved(torch.device(device)),
        "batch_size": benchmark.training.batch_size,
        "images": n,
        "images_per_second": {name: asdict(quartiles([n / s for s in taken])) for name, taken in seconds.items()},
        "fscl_over_bare": asdict(ratio(seconds["bare"], seconds["fscl"])),
        "avalanche_over_bare": asdict(ratio(seconds["bare"], seconds["avalanche"])),
        "fscl_over_avalanche": asdict(ratio(seconds["avalanche"], seconds["fscl"])),
    }


class _Bare:
    """A plain PyTorch loop for one network and tensors in memory. It is the upper limit of the speed."""

    def __init__(self, benchmark: BenchmarkRecipe, strategy: Any, stream: Stream, device: str) -> None:
        training = benchmark.training
        self.device, self.batch_size = torch.device(device), training.batch_size
        model = build_network(benchmark.model.name, stream.image_shape, stream.classes_per_task, benchmark.model.args)
        body, head = model.model, getattr(model, model.classifier_name).classifiers["0"].classifier
        self.model: nn.Module = nn.Sequential(body, nn.Flatten(), head)
        if strategy.name == "atom_swapping":
            self.model = decompose(self.model, strategy.args.get("num_atoms", 9)).model
            freeze_coefficients(self.model)
            own = entry_kinds(self.model)
            for name, parameter in self.model.named_parameters():
                parameter.requires_grad_(name in own)  # as in atom swapping: shared parameters are frozen
        self.model.to(self.device)
        self.channels_last = training.channels_last
        if self.channels_last:
            self.model.to(memory_format=torch.channels_last)  # also the filters, whose layout fscl does not change
        precision = Acceleration(training.precision).resolved(self.device)
        self.dtype = None if precision == "float32" else getattr(torch, precision)
        trained = [p for p in self.model.parameters() if p.requires_grad]
        self.optimizer = torch.optim.SGD(
            trained, training.lr, training.momentum, weight_decay=training.weight_decay, nesterov=True, fused=True
        )
        self.criterion = nn.CrossEntropyLoss()
        task = _task(stream, 1)
        self.images, self.targets = task.images.to(self.device), task.targets.to(self.device)
        self.transform = task.transform

    def __call__(self) -> float:
        began = time.perf_counter()
        order = torch.randperm(len(self.images)).to(self.device)
        for index in order.split(self.batch_size):
            x = self.transform(self.images[index])
            if self.channels_last:
                x = channels_last(x)
            self.optimizer.zero_grad()
            with torch.autocast(self.device.type, self.dtype, enabled=self.dtype is not None):
                outputs = self.model(x)
            loss = self.criterion(outputs.float(), self.targets[index])
            loss.backward()
            self.optimizer.step()
        synchronise(self.device)
        return time.perf_counter() - began


class _Epoch(SupervisedPlugin):
    """Times an epoch. The set-up of the experience is not timed, because the bare loop has none."""

    supports_distributed = False

    def __init__(self) -> None:
        super().__init__()
        self.began = self.seconds = 0.0

    def before_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        self.began = time.perf_counter()

    def after_training_epoch(self, strategy: Any, **kwargs: Any) -> None:
        synchronise(strategy.device)
        self.seconds = time.perf_counter() - self.began


class _Fscl:
    """Training as in ``fscl run``."""

    def __init__(self, benchmark: BenchmarkRecipe, strategy: Any, stream: Stream, device: str) -> None:
        training = benchmark.training.model_copy(update={"epochs": 1})
        learner = Learner(strategy.class_path, strategy.args)
        self.trainer = Trainer(stream, learner, training, benchmark.model, device=device)
        self.stream, self.epoch = stream, _Epoch()
        self.trainer.strategy.plugins.append(self.epoch)
        self.trainer.strategy.train(stream.train_stream[0])  # coefficients are frozen after the first task

    def __call__(self) -> float:
        self.trainer.strategy.train(self.stream.train_stream[1])
        return self.epoch.seconds


class _Stock:
    """Training with Avalanche alone: PIL images, torchvision's transforms, Naive."""

    def __init__(self, benchmark: BenchmarkRecipe, stream: Stream, device: str) -> None:
        channels, size, _ = stream.image_shape
        steps: list[Any] = []
        if benchmark.augment.crop_padding:
            steps.append(tv.RandomCrop(size, padding=benchmark.augment.crop_padding))
        if benchmark.augment.flip:
            steps.append(tv.RandomHorizontalFlip())
        steps += [tv.ToTensor(), tv.Normalize([0.5] * channels, [0.25] * channels)]
        parts = []
        for label in (0, 1):
            data = _Pictures(_task(stream, label))
            parts.append(labelled(data, data.targets, label, tv.Compose(steps), tv.Compose(steps[-2:])))
        tasks = with_task_labels(with_classes_timeline(benchmark_from_datasets(train=parts)))
        for experience in tasks.train_stream:
            experience.classes_in_this_experience = sorted(experience.classes_in_this_experience)
        training, model = benchmark.training, benchmark.model
        network = build_network(model.name, stream.image_shape, stream.classes_per_task, model.args)
        self.epoch = _Epoch()
        self.strategy = Naive(
            model=network,
            optimizer=torch.optim.SGD(
                network.parameters(), training.lr, training.momentum, weight_decay=training.weight_decay, nesterov=True
            ),
            criterion=nn.CrossEntropyLoss(),
            train_mb_size=training.batch_size,
            train_epochs=1,
            device=torch.device(device),
            plugins=[self.epoch],
            evaluator=None,
        )
        self.stream = tasks.train_stream

    def __call__(self) -> float:
        self.strategy.train(self.stream[1])
        return self.epoch.seconds


class _Pictures(Dataset[tuple[Image.Image, int]]):
    """PIL images, as torchvision's CIFAR and MNIST data sets return them."""

    def __init__(self, task: InMemoryBatches) -> None:
        self.arrays = np.ascontiguousarray(task.images.permute(0, 2, 3, 1).squeeze(-1).numpy())
        self.targets = task.targets.tolist()

    def __len__(self) -> int:
        return len(self.targets)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(self.arrays[index]), self.targets[index]


def _task(stream: Stream, label: int) -> InMemoryBatches:
    """The training images of a task, with targets and transform."""
    return InMemoryBatches(DataLoader(stream.train_stream[label].dataset), torch.device("cpu"))


def _first(images: ImageSet, per_class: int) -> ImageSet:
    keep = torch.cat([(images.labels == c).nonzero()[:per_class, 0] for c in range(len(images.classes))])
    return ImageSet(images.images[keep], images.labels[keep], images.classes)
