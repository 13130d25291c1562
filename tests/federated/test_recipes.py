"""The recipes of federated methods: each makes its method, with all settings of its grid."""

import importlib
import inspect
from itertools import product

import pytest

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

import fscl.federated
from fscl.federated import Method
from fscl.federated.methods.head_first import HeadFirst
from fscl.federated.methods.mixture import Mixture
from fscl.runs.federation.building import build_method
from fscl.runs.recipe import find_recipes, load_strategy

RECIPES = {
    name: recipe
    for name in find_recipes("strategies")
    if (recipe := load_strategy(name)).class_path.startswith("fscl.federated.")
}
METHODS = [kind for name in dir(fscl.federated) if inspect.isclass(kind := getattr(fscl.federated, name))
           and issubclass(kind, Method) and kind not in (Method, HeadFirst)]  # fmt: skip


def class_of(recipe):
    module, name = recipe.class_path.rsplit(".", 1)
    return getattr(importlib.import_module(module), name)


def test_every_method_has_a_recipe():
    assert {class_of(recipe) for recipe in RECIPES.values()} == set(METHODS)
    assert Mixture not in METHODS  # a base class only


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_makes_its_method_with_all_values_of_its_grid(name, network):
    recipe = RECIPES[name]
    grid = [dict(zip(recipe.tune.args, values, strict=True))
            for values in product(*recipe.tune.args.values())]  # fmt: skip
    for settings in grid:
        method = build_method(recipe.model_copy(update={"args": recipe.args | settings}))
        method.begin(method.prepare(network()), clients=2)
        assert set(method.parts_for(0, 1)) >= set(method.travels(1))
        for key, value in settings.items():
            if key == "head_rounds":
                assert method.rounds == value
            else:
                assert getattr(method.method if isinstance(method, HeadFirst) else method, key) == value
    assert recipe.title
    assert recipe.description
    assert recipe.paper or recipe.bound == "lower"
    assert bool(recipe.args) == bool(recipe.tune.args)


def test_what_becomes_of_each_part_is_declared_in_one_place(network):
    """The table of all methods: what stays at clients, what travels, and what travels in the first rounds only."""
    table = {}
    for name, recipe in RECIPES.items():
        if {"also", "head_rounds"} & recipe.args.keys():  # they say so themselves
            continue
        method = build_method(recipe)
        method.begin(method.prepare(network()), clients=2)
        first, later = (set(method.travels(round)) for round in (1, 1000))
        for part in method.packing.entries:
            fate = "stays" if part in method.stays else "travels" if part in later else "until"
            assert (part in first) == (fate != "stays")
            assert (fate == "until") == (part in method.travels_until)
            table[name, part] = fate
    shared = {name: fate for (name, part), fate in table.items() if part == "shared"}
    assert {name for name, fate in shared.items() if fate == "until"} == {n for n in shared if n.startswith("atom")}
    assert {name for name, fate in shared.items() if fate == "stays"} == {"local"}
    heads_stay = {name for (name, part), fate in table.items() if part == "head" and fate == "stays"}
    assert heads_stay == {"local", "fedper", "fedrep"} | {n for n in shared if n.startswith("atom")}
    assert all(fate == "stays" for (_, part), fate in table.items() if part == "normalisation")
