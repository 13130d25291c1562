"""Builds the stream and the trainer of a run. Recipes that cannot or may not be built are refused before training."""

import warnings
from typing import Any

import psutil

from fscl.errors import FsclError
from fscl.runs.resume import line
from fscl.runs.schema import BenchmarkRecipe, SplitRecipe
from fscl.runs.spec import Progress, RunSpec
from fscl.runs.trust import check_names
from fscl.text import brief

__all__ = ["build_trainer", "check_runnable", "check_trusted", "load_stream"]


def load_stream(spec: RunSpec) -> Any:
    """The stream of a run.

    Raises:
        FsclError: the data is missing or damaged, or cannot be split as the recipe says.
    """
    from fscl.continual.domains import permuted_stream, rotated_stream
    from fscl.continual.stream import split_classes
    from fscl.data.datasets import load_images

    assert isinstance(spec.benchmark, BenchmarkRecipe)
    data, split, augment = spec.benchmark.data, spec.benchmark.split, spec.benchmark.augment
    train, test = load_images(data.name, spec.data, data.image_size)
    _check_memory(split, train.images.nbytes + test.images.nbytes)
    options: Any = {
        "seed": spec.seed,
        "crop_padding": augment.crop_padding,
        "flip": augment.flip,
        "validation": spec.validation,
        "scenario": split.scenario,
    }
    if split.rotations is not None:
        stream = rotated_stream(train, test, split.rotations, **options)
    elif split.permutations is not None:
        stream = permuted_stream(train, test, split.permutations, **options)
    else:
        assert split.tasks is not None  # a split has exactly one of the three
        stream = split_classes(train, test, split.tasks, shuffle=split.shuffle, **options)
    return stream if spec.first is None else stream.first(spec.first)


def check_trusted(spec: RunSpec) -> None:
    """Checks a recipe file that is not trusted, see :func:`fscl.runs.trust.check_names`.

    Raises:
        FsclError: it names a network or a learner that it may not name.
    """
    from fscl.continual.learner import check_learner

    check_names(spec, check_learner)


def check_runnable(spec: RunSpec, stream: Any) -> None:
    """Checks, before anything is trained, that the learner and the network can be built and take the images.

    Raises:
        FsclError: the learner or its network is unknown or does not take its arguments, the network does not take
            images of the stream's shape, or it has no spatial convolutions.
    """
    import torch

    from fscl.compare.filter_history import FilterHistory

    check_trusted(spec)
    network = f"network {spec.benchmark.model.name!r}"
    try:
        model = build_trainer(spec, stream, None).strategy.model
        FilterHistory().add(model)
    except FsclError as error:
        raise FsclError(f"{spec.strategy.name} with {network}: {error}") from error
    except Exception as error:  # a class or network may raise anything for arguments that it does not take
        arguments = ", ".join(f"{k}={brief(v)}" for k, v in (spec.benchmark.model.args | spec.strategy.args).items())
        raise FsclError(
            f"{spec.strategy.name} with {network} cannot be built with {arguments}: {line(error)}"
        ) from error
    try:
        with torch.no_grad():
            model.to(spec.device).eval()(torch.zeros(2, *stream.image_shape, device=spec.device), 0)
    except Exception as error:  # a user's own network can fail in any way
        raise FsclError(f"{network} does not take images of shape {stream.image_shape}: {line(error)}") from error


def build_trainer(spec: RunSpec, stream: Any, progress: Progress | None) -> Any:
    """The trainer of a run, before its first experience.

    Raises:
        FsclError: as :func:`check_trusted`, or the learner or its network cannot be built.
    """
    check_trusted(spec)
    from fscl.continual.learner import Learner
    from fscl.continual.training.trainer import Trainer

    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="No loggers specified")  # a run writes its own record
        return Trainer(
            stream,
            Learner(spec.strategy.class_path, spec.strategy.args),
            spec.benchmark.training,
            spec.benchmark.model,
            seed=spec.seed,
            device=spec.device,
            loader=spec.loader,
            progress=progress,
        )


def _check_memory(split: SplitRecipe, size: int) -> None:
    """Rotated and permuted tasks each hold a copy of all images, which must fit into memory together."""
    copies = split.permutations or split.rotations or 1
    count, free = copies if isinstance(copies, int) else len(copies), psutil.virtual_memory().available
    if count > 1 and count * size > free:
        raise FsclError(
            f"{count} tasks of all images take {count * size / 1e9:.1f} GB of memory, and {free / 1e9:.1f} GB are free"
        )
