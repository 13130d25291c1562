"""What recipes may say: typed sections that refuse what they do not know."""

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
    "TAGS",
    "WRONG_SPLIT",
    "BenchmarkRecipe",
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
            "name", "{fault}; a name is that of one folder, such as 'split_digits'", {"fault": fault}
        )
    return name


def _printable(name: str) -> str:
    if not (name.isprintable() and 0 < len(name) <= 200):
        raise PydanticCustomError("name", "a task's name has 1 to 200 characters, all of them printable")
    return name


Name = Annotated[str, AfterValidator(_one_folder)]
TaskName = Annotated[str, AfterValidator(_printable)]
Tasks = Annotated[int, Field(ge=1, le=MOST_TASKS)]
Side = Annotated[int, Field(ge=1, le=4096)]
Angle = Annotated[float, Field(allow_inf_nan=False)]
Values = Annotated[list[Any], Field(min_length=1)]
WRONG_SPLIT = "wrong_split"
WAYS = ("tasks", "rotations", "permutations")  # of making tasks; a split has one
TAGS = ("number", "numbers", "classes", "named")  # of split.tasks


class Recipe(Settings):
    # the file of a stranger, whose constructors are held against the list of those that a file may name
    _stranger: str = PrivateAttr("")


class DataRecipe(Recipe):
    """Which images, see ``fscl.continual.load_images``."""

    name: Text
    """A known data set, an image folder ``<data>/<name>/{train,test}/<class>/*``, or several joined by ``+``."""
    image_size: Side | None = None
    """Pixels of a side, to which images are scaled; by default as they are."""


def _kind_of_tasks(value: Any) -> str:
    if isinstance(value, dict):
        return "named"
    if isinstance(value, list):
        return "numbers" if all(isinstance(item, int) for item in value) else "classes"
    return "number"


class SplitRecipe(Recipe):
    """How images become tasks: by ``tasks``, ``rotations`` or ``permutations``; and what is known of a task."""

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
    """Disjoint classes: a number of equal tasks; of joined data sets a list of such numbers, one for each; the classes
    of each task, as a list of lists; or a table of such lists by what each task is called."""
    rotations: Tasks | Annotated[list[Angle], Field(min_length=1, max_length=MOST_TASKS)] | None = None
    """All classes, rotated: angles in degrees, or how many that are evenly spaced."""
    permutations: Tasks | None = None
    """All classes, with their pixels permuted: how many tasks, the first as it is."""
    shuffle: bool = True
    """Whether the order of classes follows the seed; named classes are taken as they are given."""
    scenario: Literal["task", "domain", "class"] = "task"
    """``task``: task labels, and a head for each. ``domain``: the same classes in all tasks, one head. ``class``: one
    head over all classes so far."""

    @model_validator(mode="after")
    def _one_way(self) -> "SplitRecipe":
        given = [f"split.{name}" for name in WAYS if getattr(self, name) is not None]
        wrong = None
        if not given:
            wrong = "'split.tasks' is missing, or split.rotations or split.permutations in its place"
        elif len(given) > 1:
            wrong = f"{' and '.join(given)} exclude each other"
        elif self.scenario == "class" and self.tasks is None:
            wrong = f"split.scenario is 'class', but {given[0]} have the same classes; use 'domain' or 'task'"
        if wrong:
            raise PydanticCustomError(WRONG_SPLIT, "{wrong}", {"wrong": wrong})
        return self


class AugmentRecipe(Recipe):
    """What training images go through."""

    crop_padding: Annotated[int, Field(ge=0, le=512)] = 0
    """Pixels that are added on each side before an image of the old size is cut out at random."""
    flip: bool = False
    """Whether half of the images are mirrored."""


class Override(Recipe):
    """What a benchmark changes for one strategy."""

    training: dict[str, Any] = {}
    """Keys of ``[training]``."""
    args: dict[str, Any] = {}
    """The learner's arguments."""


class BenchmarkRecipe(Recipe):
    """A stream as data: images, split into tasks, network and budget."""

    name: Name = ""
    """What its folder is called; by default as the file."""
    title: Text = ""
    description: Text = ""
    data: DataRecipe
    split: SplitRecipe
    augment: AugmentRecipe = AugmentRecipe()
    model: Network = Network()
    training: Training = Training()
    strategies: dict[Name, Override] = {}
    """By strategy, what is changed for it."""


class TuneRecipe(Recipe):
    """The grid that ``fscl tune`` searches."""

    args: dict[str, Values] = {}
    """Values of the strategy's arguments."""
    training: dict[str, Values] = {}
    """Values of keys of ``[training]``."""


class StrategyRecipe(Recipe):
    """A learner as data: an Avalanche strategy class, its arguments, and which values of them are worth a try."""

    name: Name = ""
    """What its folder is called; by default as the file."""
    title: Text = ""
    description: Text = ""
    paper: Text = ""
    bound: Literal["upper", "lower"] | None = None
    """Marks what is no learner of a stream, but a bound of what learners can reach. None is compared with it."""
    class_path: Text = Field(..., alias="class")
    """The dotted path of an Avalanche strategy."""
    args: dict[str, Any] = {}
    """Its keyword arguments."""
    training: dict[str, Any] = {}
    """Keys of ``[training]`` that it changes in every benchmark."""
    tune: TuneRecipe = TuneRecipe()

    @field_validator("name")
    @classmethod
    def _no_reports_folder(cls, name: str) -> str:
        if name.casefold() == "report":
            raise PydanticCustomError("name", "reports are written to a folder of this name; another would do")
        return name
