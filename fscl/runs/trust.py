"""A recipe that is not trusted may name only networks and learners that are known to run no code of a stranger."""

from collections.abc import Callable, Mapping
from typing import Any

from fscl.errors import FsclError
from fscl.runs.spec import RunSpec

__all__ = ["check_names"]


def check_names(spec: RunSpec, check_class: Callable[[str, Mapping[str, Any]], None]) -> None:
    """Checks, before anything is imported, that a recipe file that is not trusted names only what it may name.

    Args:
        spec: the run.
        check_class: refuses a class and its arguments in a strategy's recipe. It raises ``NotTrustedError`` where trust
            in the file would help.

    Raises:
        FsclError: such a file names a network or a class that is not on the list, see
            :func:`fscl.runs.recipe.load_benchmark`.
    """
    from fscl.factories import NotTrustedError, check_network  # it imports torch

    model, learner = spec.benchmark.model, spec.strategy
    checks = (
        (spec.benchmark._stranger, check_network, model.name, model.args),
        (spec.strategy._stranger, check_class, learner.class_path, learner.args),
    )
    for file, check, name, arguments in checks:
        try:
            if file:
                check(name, arguments)
        except NotTrustedError as error:
            raise FsclError(f"{file}: {error}; if you trust the file, --trust lets it run any code") from error
        except FsclError as error:
            raise FsclError(f"{file}: {error}") from error
