"""The types of recipes. Unknown keys and wrong values are refused."""

from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    Discriminator,
    Field,
    PrivateAttr,
    Tag,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticCustomError

from fscl.plain import name_fault
from fscl.settings import Network, Settings, Text, Training

__all__ = [
    "SPLITS",
    "TAGS",
    "WAYS",
    "WRONG_SPLIT",
    "BenchmarkRecipe",
    "ClientsRecipe",
    "FederationRecipe",
    "Override",
    "Recipe",
    "SplitRecipe",
    "StrategyRecipe",
    "TuneRecipe",
]

MOST_TASKS = 2000


def _one_folder(name: str) -> str:
    if fault := name_fault(name):
        raise PydanticCustomError(
            "name", "{fault}; a name must be the name of one folder, such as 'split_digits'", {"fault": fault}
        )
    return name


def _printable(name: str) -> str:
    if not (name.isprintable() and 0 < len(name) <= 200):
        raise PydanticCustomError("name", "a task's name has 1 to 200 characters, all of them printable")
    return name


Name = Annotated[str, AfterValidator(_one_folder)]
TaskName = Annotated[str, AfterValidator(_printable)]
Clients = Annotated[int, Field(ge=1, le=100_000)]
Tasks = Annotated[int, Field(ge=1, le=MOST_TASKS)]
Side = Annotated[int, Field(ge=1, le=4096)]
Angle = Annotated[float, Field(allow_inf_nan=False)]
Values = Annotated[list[Any], Field(min_length=1)]
WRONG_SPLIT = "wrong_split"
WAYS = ("tasks", "rotations", "permutations")  # keys of [split] that make tasks; a split has exactly one
SPLITS = ("classes_per_client", "dirichlet", "groups")  # keys of [federation] that divide images among clients
TAGS = ("number", "numbers", "classes", "named")  # the types that split.tasks may have


class Recipe(Settings):
    # The file, if it is not trusted. Its networks and learners must then be on the list of those that a file may name.
    _stranger: str = PrivateAttr("")


class DataRecipe(Recipe):
    """The images, see ``fscl.continual.load_images``."""

    name: Text
    """A known data set, an image folder ``<data>/<name>/{train,test}/<class>/*``, or several joined by ``+``."""
    image_size: Side | None = None
    """Side in pixels to which images are scaled; by default they keep their size."""


def _kind_of_tasks(value: Any) -> str:
    if isinstance(value, dict):
        return "named"
    if isinstance(value, list):
        return "numbers" if all(isinstance(item, int) for item in value) else "classes"
    return "number"


class SplitRecipe(Recipe):
    """How images are split into tasks: by ``tasks``, ``rotations`` or ``permutations``; and the scenario."""

    tasks: (
        Annotated[
            Annotated[Tasks, Tag("number")]
            | Annotated[list[Tasks], Field(min_length=1, max_length=MOST_TASKS), Tag("numbers")]
            | Annotated[list[list[str]], Field(max_length=MOST_TASKS), Tag("classes")]
            | Annotated[dict[TaskName, list[str]], Field(min_length=1, max_length=MOST_TASKS), Tag("named")],
            Discriminator(_kind_of_tasks),
        ]
        | None
    ) = None
    """Tasks of disjoint classes. One of: the number of equal tasks; for joined data sets a list with such a number for
    each; a list with the list of classes of each task; a table from task names to lists of classes."""
    rotations: Tasks | Annotated[list[Angle], Field(min_length=1, max_length=MOST_TASKS)] | None = None
    """Each task has all classes, rotated: a list of angles in degrees, or the number of evenly spaced angles."""
    permutations: Tasks | None = None
    """Each task has all classes, with permuted pixels: the number of tasks. The first task is not permuted."""
    shuffle: bool = True
    """Whether the seed decides the order of classes. Classes that are named keep their order."""
    scenario: Literal["task", "domain", "class"] = "task"
    """``task``: task labels are given, each task has a head. ``domain``: all tasks have the same classes, one head.
    ``class``: one head over all classes so far."""

    @model_validator(mode="after")
    def _one_way(self) -> "SplitRecipe":
        ways = [f"split.{name}" for name in WAYS if getattr(self, name) is not None]
        fault = None
        if not ways:
            fault = "'split.tasks' is missing, or split.rotations or split.permutations in its place"
        elif len(ways) > 1:
            fault = f"{' and '.join(ways)} exclude each other"
        elif self.scenario == "class" and self.tasks is None:
            fault = f"split.scenario is 'class', but {ways[0]} have the same classes; use 'domain' or 'task'"
        if fault:
            raise PydanticCustomError(WRONG_SPLIT, "{fault}", {"fault": fault})
        return self


class AugmentRecipe(Recipe):
    """The augmentation of training images."""

    crop_padding: Annotated[int, Field(ge=0, le=512)] = 0
    """Pixels that are added on each side; a random crop then restores the old size."""
    flip: bool = False
    """Whether a random half of the images is mirrored."""


class Override(Recipe):
    """Changes that a benchmark makes for one strategy."""

    training: dict[str, Any] = {}
    """Changed keys of ``[training]``."""
    args: dict[str, Any] = {}
    """Changed arguments of the learner."""


class BenchmarkRecipe(Recipe):
    """A stream as data: images, their split into tasks, network and training budget."""

    name: Name = ""
    """Name of the folder of its runs; by default the name of the file."""
    title: Text = ""
    description: Text = ""
    data: DataRecipe
    split: SplitRecipe
    augment: AugmentRecipe = AugmentRecipe()
    model: Network = Network()
    training: Training = Training()
    strategies: dict[Name, Override] = {}
    """Changes by the name of the strategy."""


class ClientsRecipe(Recipe):
    """The clients of a federation: how images are divided among them, and how often they train.

    Exactly one of ``classes_per_client``, ``dirichlet`` and ``groups`` is given.
    """

    clients: Clients
    classes_per_client: Annotated[int, Field(ge=1)] | None = None
    """Each client has this number of classes. A class is shared out evenly among the clients that have it."""
    dirichlet: Annotated[float, Field(gt=0)] | None = None
    """The concentration of Dirichlet's distribution, from which the clients' shares of each class are drawn."""
    groups: Annotated[int, Field(ge=1)] | Text | list[list[str]] | None = None
    """Clients of one group have the same classes: the number of groups, the classes of each group, or the name of a
    benchmark whose tasks are the groups. Client i is in group i modulo the number of groups."""
    most_images: Annotated[int, Field(ge=1)] | None = None
    """Most training images of a client."""
    most_test_images: Annotated[int, Field(ge=1)] | None = None
    """Most test images of a client."""
    fraction: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Share of the clients that train in a round."""
    rounds: Annotated[int, Field(ge=1, le=100_000)] = 100
    least: Annotated[int, Field(ge=1)] = 1
    """Answers that a round needs. With fewer, the server keeps its parts and goes on."""
    evaluate_every: Annotated[int, Field(ge=1)] = 10
    """Rounds between two evaluations of all clients."""
    schedule: Literal["constant", "cosine"] = "constant"
    """The learning rate over the rounds: ``cosine`` falls to zero. Within a round it follows ``training.schedule``."""
    own_classes: bool = False
    """Whether a client's network chooses among the client's own classes alone, in training and in answers."""
    start: Text = ""
    """The network from which all methods start: a checkpoint, or the folder of a finished run on a stream. By default
    it is freshly initialised."""
    start_digest: Text = ""
    """The first 16 hexadecimal digits of the SHA-256 of the start's file. A run's record names it; another file is then
    refused."""

    @model_validator(mode="after")
    def _one_way(self) -> "ClientsRecipe":
        ways = [f"federation.{name}" for name in SPLITS if getattr(self, name) is not None]
        if len(ways) != 1:
            known = ", ".join(f"federation.{name}" for name in SPLITS)
            fault = f"{' and '.join(ways)} exclude each other" if ways else f"one of {known} is missing"
            raise PydanticCustomError(WRONG_SPLIT, "{fault}", {"fault": fault})
        return self


class FederationRecipe(Recipe):
    """A federation as data: images, their split among clients, network, and the training of a client in a round."""

    name: Name = ""
    """Name of the folder of its runs; by default the name of the file."""
    title: Text = ""
    description: Text = ""
    data: DataRecipe
    federation: ClientsRecipe
    augment: AugmentRecipe = AugmentRecipe()
    model: Network = Network()
    training: Training = Training()
    strategies: dict[Name, Override] = {}
    """Changes by the name of the strategy."""


class TuneRecipe(Recipe):
    """The grid that ``fscl tune`` searches."""

    args: dict[str, Values] = {}
    """Values of the strategy's arguments."""
    training: dict[str, Values] = {}
    """Values of keys of ``[training]``."""


class StrategyRecipe(Recipe):
    """A learner as data: an Avalanche strategy class, its arguments, and the grid in which to tune them."""

    name: Name = ""
    """Name of the folder of its runs; by default the name of the file."""
    title: Text = ""
    description: Text = ""
    paper: Text = ""
    bound: Literal["upper", "lower"] | None = None
    """Marks an upper or lower bound. A bound is shown with the learners but is never the best of them."""
    class_path: Text = Field(..., alias="class")
    """Dotted path of an Avalanche strategy."""
    args: dict[str, Any] = {}
    """Keyword arguments of the class."""
    training: dict[str, Any] = {}
    """Keys of ``[training]`` that the strategy changes in every benchmark."""
    tune: TuneRecipe = TuneRecipe()

    @field_validator("name")
    @classmethod
    def _no_reports_folder(cls, name: str) -> str:
        if name.casefold() == "report":
            raise PydanticCustomError("name", "reports are written to a folder of this name; choose another name")
        return name
