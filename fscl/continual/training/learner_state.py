"""Turns the state of a learner into plain data and back. No code is pickled, and none is executed on reading.

Exemplars are written as positions in the stream, copies of the network as their tensors, banks as their contents, and
the helper objects of Avalanche's plugins as a class name and attributes. The result holds only tensors, numbers, text,
lists, tuples and dicts. Every version of torch reads these with ``weights_only``.
"""

import copy
import functools
import importlib
import warnings
from collections import defaultdict
from collections.abc import Callable, Collection, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType
from typing import Any

import torch
from avalanche.benchmarks.utils import AvalancheDataset, make_avalanche_dataset
from avalanche.benchmarks.utils.data_attribute import TensorDataAttribute
from avalanche.benchmarks.utils.flat_data import FlatData
from avalanche.benchmarks.utils.utils import concat_datasets
from avalanche.training.plugins import EvaluationPlugin
from avalanche.training.regularization import RegularizationMethod
from avalanche.training.storage_policy import ExemplarsBuffer, ExemplarsSelectionStrategy
from avalanche.training.templates import SupervisedTemplate
from avalanche.training.utils import ParamData
from torch import Tensor, nn
from torch.optim import SGD

from fscl.atoms.bank import AtomBank
from fscl.continual.avalanche_private import attributes_of
from fscl.continual.learner import transient_names
from fscl.continual.loader import Unservable, samples_behind
from fscl.continual.stream import Stream
from fscl.errors import FsclError

__all__ = ["Codec", "is_code", "plugin_state", "restore_plugins", "restore_strategy", "stored_bytes", "strategy_state"]

# helper objects of plugins that can be made again from their class and attributes
HELPERS = (ExemplarsBuffer, ExemplarsSelectionStrategy, RegularizationMethod)
PARAM, SAMPLES, NETWORK, OBJECT, DEFAULTS, AS_BUILT, BANK, SET, DEVICE = (
    f"fscl: {mark}"
    for mark in ("parameter", "samples", "network", "object", "defaults", "as built", "bank", "set", "device")
)
# entries that synaptic intelligence (Zenke et al. 2017) writes anew at each step: they are not counted as stored
WRITTEN_EACH_STEP = ("old_theta", "new_theta", "grad", "trajectory")
FACTORIES = {factory.__name__: factory for factory in (dict, list, set, int, float)}


class Codec:
    """Encodes and decodes the state of one strategy and its plugins on one stream.

    Args:
        stream: the stream. Exemplars must be training images of it.
        model: returns the strategy's network. A learner may keep former states of it.
        with_samples: False writes exemplars as if there were none.
    """

    def __init__(self, stream: Stream, model: Callable[[], nn.Module], with_samples: bool = True) -> None:
        self.stream, self._model, self._with_samples = stream, model, with_samples

    def encode(self, value: Any, owner: str) -> Any:
        """The value as tensors, numbers, text and containers of these.

        Raises:
            FsclError: the value holds anything that cannot be written so. The message begins with ``owner``.
        """
        if value is None or isinstance(value, Tensor | bool | int | float | str):
            return value
        if isinstance(value, AtomBank):
            return {BANK: self.encode(value.__getstate__(), owner)}
        if isinstance(value, torch.device):
            return {DEVICE: str(value)}
        if isinstance(value, Mapping):
            plain = {self._key(k, owner): self.encode(v, owner) for k, v in value.items()}
            if isinstance(value, defaultdict) and (name := getattr(value.default_factory, "__name__", "")) in FACTORIES:
                return {DEFAULTS: name, "items": plain}
            return plain
        if isinstance(value, set):
            return {SET: [self._key(item, owner) for item in value]}
        if isinstance(value, list | tuple):
            return type(value)([self.encode(item, owner) for item in value])
        if isinstance(value, ParamData):
            return {PARAM: value.name, "data": value.data}
        if isinstance(value, AvalancheDataset):
            return self._samples(value, owner)
        if isinstance(value, nn.Module):
            return self._network(value, owner)
        if isinstance(value, HELPERS):
            helper = type(value)
            attributes = {n: self.encode(v, f"{owner}.{n}") for n, v in vars(value).items() if not is_code(v)}
            return {OBJECT: f"{helper.__module__}:{helper.__qualname__}", "attributes": attributes}
        raise FsclError(
            f"{owner} is a {type(value).__name__}, which a checkpoint cannot hold as plain data; if it is made anew "
            "for each experience, name it in the class attribute `transient`"
        )

    def decode(self, value: Any, device: Any, as_built: Any = None) -> Any:
        """The value that :meth:`encode` was given, on a device.

        Args:
            value: the result of :meth:`encode`.
            device: where its tensors go.
            as_built: the value that a newly built strategy has in this place.
        """
        if isinstance(value, Tensor):
            return value.to(device)
        if isinstance(value, dict):
            for mark, read in (
                (PARAM, self._param_of), (SAMPLES, self._samples_of), (NETWORK, self._network_of),
                (OBJECT, self._object_of), (DEFAULTS, self._defaults_of), (BANK, self._bank_of),
            ):  # fmt: skip
                if mark in value:
                    return read(value, device)
            if AS_BUILT in value:
                return as_built
            if SET in value:
                return set(value[SET])
            if DEVICE in value:
                return torch.device(value[DEVICE])
            return {k: self.decode(v, device) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return type(value)([self.decode(item, device) for item in value])
        return value

    def _key(self, value: Any, owner: str) -> Any:
        if isinstance(value, Tensor) and value.numel() == 1:
            return value.item()  # equal labels are equal keys
        if not isinstance(value, bool | int | float | str | tuple | None):
            raise FsclError(
                f"{owner} has a {type(value).__name__} as a key, which a checkpoint cannot hold as plain data"
            )
        return value

    def _param_of(self, value: dict[str, Any], device: Any) -> ParamData:
        return ParamData(value[PARAM], init_tensor=value["data"].to(device), device=device)

    def _defaults_of(self, value: dict[str, Any], device: Any) -> defaultdict[Any, Any]:
        return defaultdict(FACTORIES[value[DEFAULTS]], self.decode(value["items"], device))

    def _bank_of(self, value: dict[str, Any], device: Any) -> AtomBank:
        bank = AtomBank.__new__(AtomBank)
        bank.__setstate__(self.decode(value[BANK], device))
        return bank

    def _object_of(self, value: dict[str, Any], device: Any) -> Any:
        module, _, name = value[OBJECT].partition(":")
        if not f"{module}.".startswith(("avalanche.training.", "fscl.continual.")):
            raise FsclError(f"a checkpoint names {value[OBJECT]!r}, which is not a helper class of a learner")
        helper = getattr(importlib.import_module(module), name, None)
        if not (isinstance(helper, type) and issubclass(helper, HELPERS)):
            raise FsclError(f"a checkpoint names {value[OBJECT]!r}, which is not a helper class of a learner")
        instance: Any = object.__new__(helper)
        vars(instance).update({n: self.decode(v, device) for n, v in value["attributes"].items()})
        return instance

    # former states of the network

    def _network(self, module: nn.Module, owner: str) -> dict[str, Any]:
        state = module.state_dict()
        if not state:
            return {AS_BUILT: type(module).__name__}
        if type(module) is not type(self._model()) or state.keys() - self._model().state_dict().keys():
            raise FsclError(
                f"{owner} is a {type(module).__name__} other than the strategy's network, "
                "which a checkpoint cannot hold as plain data"
            )
        trains = [name for name, parameter in module.named_parameters() if parameter.requires_grad]
        # clones, because training goes on to change the tensors
        return {NETWORK: {n: t.clone() for n, t in state.items()}, "training": module.training, "trains": trains}

    def _network_of(self, value: dict[str, Any], device: Any) -> nn.Module:
        network = copy.deepcopy(self._model())
        network.load_state_dict(value[NETWORK])
        for name, parameter in network.named_parameters():
            parameter.requires_grad_(name in value["trains"])
        return network.train(value["training"]).to(device)

    # exemplars

    def _samples(self, data: AvalancheDataset, owner: str) -> dict[str, Any]:
        """The experience and position of each sample, in order, and the notes that a learner attached to it."""
        if not len(data) or not self._with_samples:
            return {SAMPLES: torch.empty(0, 2, dtype=torch.int64), "notes": {}, "bytes": 0}
        try:
            sources, source, index = samples_behind(data)
        except Unservable as reason:
            raise FsclError(f"{owner} holds a data set that a checkpoint cannot hold, because {reason}") from reason
        experiences = torch.tensor([self._experience(images, owner) for images in sources])
        places = torch.stack([experiences[source], index], 1)
        notes = {
            name: torch.stack([torch.as_tensor(attribute[i]) for i in range(len(data))])
            for name, attribute in _extra_attributes(data)
        }
        size = len(data) * (sources[0].images[:1].nbytes + sources[0].targets[:1].nbytes)
        return {SAMPLES: places, "notes": notes, "bytes": size + sum(t.nbytes for t in notes.values())}

    def _experience(self, images: Any, owner: str) -> int:
        for number, experience in enumerate(self.stream.train_stream):
            if samples_behind(experience.dataset)[0][0] is images:
                return number
        raise FsclError(
            f"{owner} holds images that are not training images of the stream, so a checkpoint cannot hold them"
        )

    def _samples_of(self, value: dict[str, Any], device: Any) -> AvalancheDataset:
        places = value[SAMPLES]
        if not len(places):
            return concat_datasets([])
        all_rows, parts = [], []
        for number in places[:, 0].unique().tolist():
            rows = (places[:, 0] == number).nonzero()[:, 0]
            all_rows.append(rows)
            parts.append(self.stream.train_stream[number].dataset.subset(self._positions(number, places[rows, 1])))
        data = concat_datasets(parts).subset(torch.cat(all_rows).argsort().tolist())
        notes = [
            TensorDataAttribute(
                FlatData([list(values)], discard_elements_not_in_indices=True), name=name, use_in_getitem=True
            )
            for name, values in value["notes"].items()
        ]
        return make_avalanche_dataset(data, data_attributes=notes) if notes else data

    def _positions(self, experience: int, index: Tensor) -> list[int]:
        """The positions, in an experience's data set, of the images with these indices in memory."""
        _, _, in_memory = samples_behind(self.stream.train_stream[experience].dataset)
        position_of = torch.full((int(in_memory.max()) + 1,), -1)
        position_of[in_memory] = torch.arange(len(in_memory))
        return position_of[index].tolist()


def stored_bytes(value: Any) -> int:
    """The bytes of encoded data: its tensors, and its exemplars with their labels and notes."""
    if isinstance(value, Tensor):
        return value.nbytes
    if isinstance(value, Mapping):
        if SAMPLES in value:
            return int(value["bytes"])
        if BANK in value:  # the learner itself counts its bank, by kind
            return 0
        return sum(stored_bytes(item) for name, item in value.items() if name not in WRITTEN_EACH_STEP)
    if isinstance(value, list | tuple | set):
        return sum(map(stored_bytes, value))
    return 0


def is_code(value: Any) -> bool:
    return isinstance(value, type | FunctionType | BuiltinFunctionType | MethodType)


def _extra_attributes(data: AvalancheDataset) -> Iterator[tuple[str, Any]]:
    """The attributes that samples carry besides image, target and task label."""
    for attribute in attributes_of(data).values():
        if attribute.use_in_getitem and attribute.name not in ("targets", "targets_task_labels"):
            yield attribute.name, attribute


def plugin_state(strategy: Any, codec: Codec, left_out: Collection[Any] = ()) -> list[dict[str, Any]]:
    """The attributes of each plugin, encoded. Functions and transient attributes are left out.

    Args:
        strategy, codec: of the learner.
        left_out: plugins without state.

    Raises:
        FsclError: a plugin holds a value that cannot be written as plain data.
    """
    return [
        {}
        if isinstance(plugin, EvaluationPlugin) or any(plugin is other for other in left_out)
        else _attributes(plugin, frozenset(), codec)
        for plugin in strategy.plugins
    ]


def strategy_state(strategy: Any, codec: Codec) -> dict[str, Any]:
    """The attributes that a strategy's class adds to those of every Avalanche strategy, encoded.

    Raises:
        FsclError: an attribute cannot be written as plain data.
    """
    plugin_attributes = {
        name for name, value in vars(strategy).items() if any(value is plugin for plugin in strategy.plugins)
    }
    return _attributes(strategy, _common_attributes() | plugin_attributes, codec)


def restore_plugins(strategy: Any, state: list[dict[str, Any]], codec: Codec, device: Any) -> None:
    """Gives each plugin the attributes that :func:`plugin_state` wrote."""
    for plugin, attributes in zip(strategy.plugins, state, strict=True):
        _restore(plugin, attributes, codec, device)


def restore_strategy(strategy: Any, state: dict[str, Any], codec: Codec, device: Any) -> None:
    """Gives the strategy the attributes that :func:`strategy_state` wrote."""
    _restore(strategy, state, codec, device)


def _attributes(owner: Any, left_out: frozenset[str], codec: Codec) -> dict[str, Any]:
    left_out |= transient_names(owner)
    return {
        name: codec.encode(value, f"{type(owner).__name__}.{name}")
        for name, value in vars(owner).items()
        if name not in left_out and not is_code(value)
    }


def _restore(owner: Any, attributes: dict[str, Any], codec: Codec, device: Any) -> None:
    for name, value in attributes.items():
        setattr(owner, name, codec.decode(value, device, getattr(owner, name, None)))


@functools.cache
def _common_attributes() -> frozenset[str]:
    model = nn.Linear(1, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        plain = SupervisedTemplate(model=model, optimizer=SGD(model.parameters(), 0.1), evaluator=None)
    return frozenset(vars(plain))
