"""Builds the clients and the server of a federation from its recipes."""

from collections.abc import Mapping
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Any, get_type_hints

import torch
from pydantic import ConfigDict, TypeAdapter, ValidationError
from pydantic.errors import PydanticSchemaGenerationError
from torch import Tensor, nn

from fscl.data.class_split import Groups
from fscl.data.client_split import ClientSplit, split_clients
from fscl.data.datasets import load_images
from fscl.data.images import ImageSet
from fscl.data.transforms import ImageTransform, channel_statistics
from fscl.errors import FsclError
from fscl.factories import NotTrustedError, import_named, in_words, is_within
from fscl.federated import FederatedStrategy, Federation, HeadFirst, LabelledImages, Method
from fscl.federated.wire import BITS
from fscl.networks import make_network
from fscl.runs.recipe import FEDERATED, load_benchmark
from fscl.runs.resume import line
from fscl.runs.schema import ClientsRecipe, FederationRecipe, StrategyRecipe
from fscl.runs.spec import RunSpec, digest_of_start, file_of_start
from fscl.runs.trust import check_names
from fscl.text import brief

__all__ = ["build_clients", "build_method", "build_server", "check_federation", "images_of", "split_of"]


OF_ALL_METHODS = ("bits", "head_rounds")  # arguments that every method takes


def recipe_of(spec: RunSpec) -> FederationRecipe:
    assert isinstance(spec.benchmark, FederationRecipe)
    return spec.benchmark


@cache  # the server and the clients of a process share the images
def images_of(name: str, data: str | None, image_size: int | None) -> tuple[ImageSet, ImageSet]:
    """The training and test images of a federation."""
    return load_images(name, data, image_size)


def split_of(spec: RunSpec) -> ClientSplit:
    """The images of each client.

    Raises:
        FsclError: the data is missing or damaged, or cannot be divided as the recipe says.
    """
    data, clients = recipe_of(spec).data, recipe_of(spec).federation
    train, test = images_of(data.name, spec.data, data.image_size)
    return split_clients(
        train.labels.numpy(),
        test.labels.numpy(),
        train.classes,
        clients.clients,
        classes_per_client=clients.classes_per_client,
        dirichlet=clients.dirichlet,
        groups=_groups(clients),
        most_images=clients.most_images,
        most_test_images=clients.most_test_images,
        validation=spec.validation,
        seed=spec.seed,
    )


def _groups(clients: ClientsRecipe) -> Groups | None:
    if not isinstance(clients.groups, str):
        return clients.groups
    tasks = load_benchmark(clients.groups).split.tasks
    if tasks is None:
        raise FsclError(
            f"federation.groups = {brief(clients.groups)}: the tasks of this benchmark have the same classes"
        )
    return tasks


def build_clients(spec: RunSpec, folder: Path | None = None) -> Federation:
    """The clients of a federation. They keep what stays at them in a folder, or else in Flower's contexts.

    Raises:
        FsclError: the data, the method or the network cannot be had, or a file that is not trusted names them.
    """
    check_names(spec, _check_method)
    recipe = recipe_of(spec)
    train, test = images_of(recipe.data.name, spec.data, recipe.data.image_size)
    split = split_of(spec)
    mean, std = channel_statistics(train.images)
    augment = recipe.augment
    method = build_method(spec.strategy)
    tested = train if spec.validation else test
    return Federation(
        method=method,
        network=method.prepare(build_network(spec)),
        training=recipe.training,
        train=_labelled(train, split.train),
        test=_labelled(tested, split.test),
        augmented=ImageTransform(mean, std, augment.crop_padding, augment.flip),
        plain=ImageTransform(mean, std),
        own_classes=recipe.federation.own_classes,
        rounds=recipe.federation.rounds if recipe.federation.schedule == "cosine" else None,
        seed=spec.seed,
        folder=folder,
    )


def _labelled(images: ImageSet, chosen: Any) -> list[LabelledImages]:
    return [LabelledImages(images.images, images.labels, torch.from_numpy(indices)) for indices in chosen]


def build_server(spec: RunSpec) -> FederatedStrategy:
    """The server of a federation.

    Raises:
        FsclError: the method or the network cannot be built, or a file that is not trusted names them.
    """
    check_names(spec, _check_method)
    clients = recipe_of(spec).federation
    return FederatedStrategy(
        build_method(spec.strategy),
        build_network(spec),
        clients.clients,
        fraction=clients.fraction,
        least=clients.least,
        evaluate_every=clients.evaluate_every,
        most_images=clients.most_images,
        seed=spec.seed,
    )


def _check_method(class_path: str, arguments: Mapping[str, Any]) -> None:
    """Refuses a method that is not fscl's, before it is imported.

    Raises:
        NotTrustedError: it is not.
    """
    if not is_within(class_path, (FEDERATED,)):
        raise NotTrustedError(f"class = {class_path!r}: a recipe may name methods of {FEDERATED}")


def build_method(strategy: StrategyRecipe) -> Method:
    """The method that a recipe names.

    Raises:
        FsclError: the class is unknown, is no method, or does not take the arguments.
    """
    module, _, name = strategy.class_path.rpartition(".")
    kind = import_named(module, name, f"class {strategy.class_path!r}", f"methods of {FEDERATED}", (FEDERATED,))
    if not (isinstance(kind, type) and issubclass(kind, Method)):
        raise FsclError(f"class = {strategy.class_path!r} is no method of federations; a class of {FEDERATED} would do")
    own = {name: value for name, value in strategy.args.items() if name not in OF_ALL_METHODS}
    _check_types(kind, own)
    try:
        method = kind(**own)
    except TypeError as error:
        raise FsclError(f"{strategy.name}: {in_words(error)}") from error
    method.bits = strategy.args.get("bits", method.bits)
    if method.bits not in BITS:
        raise FsclError(f"args.bits is {brief(method.bits)}; known: {', '.join(map(str, BITS))}")
    rounds = strategy.args.get("head_rounds", 0)
    if type(rounds) is not int or rounds < 0:
        raise FsclError(f"args.head_rounds is {brief(rounds)}; a number of rounds would do")
    return HeadFirst(method, rounds) if rounds else method


def _check_types(kind: type[Method], arguments: Mapping[str, Any]) -> None:
    """Checks arguments of a method by their types. Some are used only in a late round, or by clients.

    Raises:
        FsclError: an argument has another type.
    """
    types = get_type_hints(kind.__init__)
    for name, value in arguments.items():
        with suppress(PydanticSchemaGenerationError):  # a type of a user's own method, or Collection
            try:
                TypeAdapter(types.get(name, Any), config=ConfigDict(strict=True)).validate_python(value)
            except ValidationError as error:
                fault = error.errors()[0]["msg"].replace("Input should be", "it must be")
                raise FsclError(f"args.{name} is {brief(value)}; {fault}") from error


def build_network(spec: RunSpec) -> nn.Module:
    """The network from which server and clients start, with the same values in every process.

    Raises:
        FsclError: it cannot be built, or its start cannot be read or does not fit.
    """
    recipe = recipe_of(spec)
    train, _ = images_of(recipe.data.name, spec.data, recipe.data.image_size)
    shape = (train.images.shape[1], train.images.shape[2], train.images.shape[3])
    state = torch.random.get_rng_state()
    torch.manual_seed(spec.seed)
    try:
        network = make_network(recipe.model.name, shape, len(train.classes), recipe.model.args)
    finally:
        torch.random.set_rng_state(state)
    if recipe.federation.start:
        _put_start(network, recipe.federation)
    return network


def _put_start(network: nn.Module, federation: ClientsRecipe) -> None:
    """Puts the weights of the start into a network. A head of other classes stays as it is."""
    from fscl.compare.checkpoints.reading import read_checkpoint
    from fscl.runs.stream.weights import read_weights

    file, digest = file_of_start(federation.start), digest_of_start(federation.start)
    if digest != federation.start_digest:
        raise FsclError(
            f"{file}: its digest is {digest}, and that of the start of this run is {federation.start_digest}; put back "
            "the file, or remove the run's folder"
        )
    saved: dict[str, Tensor]
    if Path(federation.start).is_dir():  # of a run
        # Avalanche's networks with a head for each task keep the network itself under this name
        saved = {name.removeprefix("model."): values for name, values in read_weights(file)["learner"]["model"].items()}
    else:
        saved = read_checkpoint(file)
    own = network.state_dict()
    fits = {name: values for name, values in saved.items() if name in own and own[name].shape == values.shape}
    missing = [name for name, parameter in network.named_parameters() if name not in fits and parameter.ndim == 4]
    if missing:
        raise FsclError(
            f"federation.start = {federation.start}: it has no filters {missing[0]} of shape "
            f"{tuple(own[missing[0]].shape)}"
        )
    network.load_state_dict(fits, strict=False)


def check_federation(spec: RunSpec) -> None:
    """Checks, before anything is trained, that everything can be built and that the network takes the images.

    Raises:
        FsclError: it cannot.
    """
    recipe = recipe_of(spec)
    if recipe.training.precision == "float16" or recipe.training.compile:
        raise FsclError(
            "clients train in float32 or bfloat16, not compiled; set training.precision=auto, training.compile=false"
        )
    clients = build_clients(spec)
    images, _ = clients.test[0].load()
    try:
        with torch.no_grad():
            clients.network.eval()(clients.plain(images[:2]))
    except Exception as error:  # a user's own network can fail in any way
        raise FsclError(
            f"network {recipe.model.name!r} does not take images of shape {tuple(images.shape[1:])}: {line(error)}"
        ) from error
    build_server(spec)
