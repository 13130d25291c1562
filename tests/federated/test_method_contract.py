"""What the server asks of a method fits together in all methods, and their arguments have the same defaults."""

import inspect

import pytest
import torch

pytest.importorskip("flwr", reason="fscl.federated needs Flower")

import fscl.federated
from fscl.federated import CFL, Atoms, AtomStrategy, HeadFirst, Method, mixing_weights
from fscl.federated.methods.mixture import Mixture

METHODS = [kind for name in dir(fscl.federated) if inspect.isclass(kind := getattr(fscl.federated, name))
           and issubclass(kind, Method) and kind not in (Method, HeadFirst)]  # fmt: skip


@pytest.mark.parametrize("kind", METHODS, ids=lambda kind: kind.__name__)
def test_what_a_method_knows_of_clients_fits_together(kind, small):
    has_atoms = issubclass(kind, Atoms)
    method = small(lambda: kind(coefficient_rounds=0) if has_atoms else kind()).run(1).method
    compared, similarity = method.compared(), method.similarity()
    assert compared == ([0, 1, 2] if issubclass(kind, Mixture) else [])
    assert similarity.shape == (len(compared), len(compared))
    assert torch.allclose(similarity.diag(), torch.ones(len(compared)))
    bank = method.bank()
    assert (bank.tasks if bank is not None else []) == (compared if has_atoms else [])
    assert sorted(method.groups()) == ([0, 1, 2] if has_atoms or kind is CFL else [])


def test_head_first_passes_each_question_on():
    """What it did not pass on would be answered by the base class, without an error."""
    questions = {name for name, value in vars(Method).items() if inspect.isfunction(value)}
    assert {"groups", "bank", "similarity", "combine"} <= questions <= vars(HeadFirst).keys()


def test_an_argument_has_one_default_in_all_classes():
    defaults = {}
    for kind in (*METHODS, AtomStrategy, mixing_weights):
        for name, parameter in inspect.signature(kind).parameters.items():
            if parameter.default is not parameter.empty:
                defaults.setdefault(name, {})[kind.__name__] = parameter.default
    for name in ("num_atoms", "coefficient_rounds", "mix", "nearest", "sharpness"):
        assert {"Atoms", "AtomStrategy"} <= defaults[name].keys()
        assert len(set(defaults[name].values())) == 1, defaults[name]
