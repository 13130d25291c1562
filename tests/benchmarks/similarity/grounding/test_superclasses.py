"""The superclasses of CIFAR-100, and tasks that share superclasses but no class."""

import pytest

from benchmarks.similarity.grounding.superclasses import SUPERCLASSES, class_numbers, superclass_tasks
from fscl.errors import FsclError


def test_superclasses_are_twenty_of_five():
    assert len(SUPERCLASSES) == 20
    assert {len(members) for members in SUPERCLASSES.values()} == {5}
    assert len({name for members in SUPERCLASSES.values() for name in members}) == 100


def test_tasks_of_a_pair_share_superclasses_and_no_class():
    chosen = list(SUPERCLASSES)[:8]
    tasks = superclass_tasks(chosen, seed=3)
    assert tasks == superclass_tasks(chosen, seed=3) != superclass_tasks(chosen, seed=4)
    above = {member: name for name, members in SUPERCLASSES.items() for member in members}
    used = [member for _, classes in tasks for member in classes]
    assert len(used) == len(set(used)) == 40
    assert {above[member] for member in used} == set(chosen)
    for (name, one), (other_name, other) in zip(tasks[::2], tasks[1::2], strict=True):
        assert name == other_name == " + ".join(dict.fromkeys(above[member] for member in one))
        counts = [sorted(sum(above[m] == s for m in classes) for s in name.split(" + ")) for classes in (one, other)]
        assert counts == [[2, 3], [2, 3]]


def test_an_absent_class_is_named():
    assert class_numbers(["a b", "c_d", "e"], ["e", "a_b", "c_d"]) == [2, 0, 1]
    with pytest.raises(FsclError, match="no class 'bee' among 2: ant, wasp"):
        class_numbers(["ant", "wasp"], ["ant", "bee"])
