"""A network by name, against which checkpoints are checked: whether a state fits, and the order of its layers."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fscl.atoms.entries import within
from fscl.catalog import full_name
from fscl.compare.effective import effective_state
from fscl.compare.layers import ComparableLayers, LeftOut, comparable_layers, misfit_of_kind
from fscl.errors import FsclError
from fscl.factories import current_folder, fresh, in_words, network_factory
from fscl.networks import ConvNet, argument_names

__all__ = ["Architecture"]


class Architecture:
    """A network by name. It is built with the classes and channels of the first state that it is checked with.

    Args:
        name: ``resnet18`` or ``torchvision:resnet18``, ``timm:NAME``, ``pytorchcv:resnet20_cifar10``,
            ``avalanche:SlimResNet18``, ``convnet``, or
            ``package.module:callable`` or ``folder/file.py:callable``: your own function that returns a module,
            installed or in the current folder.

    Raises:
        FsclError: the network does not exist, or cannot be built.
    """

    def __init__(self, name: str) -> None:
        self.name = full_name(name)
        self._make = ConvNet if name == "convnet" else network_factory(self.name)
        self._network: nn.Module | None = None
        self._result: ComparableLayers | None = None
        self._default = self._call()

    @property
    def network(self) -> nn.Module:
        """The network. Its values are arbitrary.

        Raises:
            FsclError: no state was checked against it yet.
        """
        if self._network is None:
            raise FsclError(f"{self.name}: not built yet; check a state against it first")
        return self._network

    @property
    def layers(self) -> list[str]:
        """The layers that can be compared, in the order in which the network registers them."""
        return list(self._comparable.weights)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """The layers that cannot be compared, and why."""
        return self._comparable.left_out

    @property
    def _comparable(self) -> ComparableLayers:
        if self._result is None:
            self._result = comparable_layers(self.name, self.network)
        return self._result

    def computed_filters(self, state: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        """The filters of parametrised layers, as the network computes them in evaluation from a state."""
        filters: dict[str, Tensor] = {}
        for layer in layers:
            module = copy.deepcopy(self.network.get_submodule(layer)).eval()
            entries = {name.removeprefix(f"{layer}."): t for name, t in state.items() if name.startswith(f"{layer}.")}
            try:
                module.load_state_dict(entries)
                filters[layer] = module.weight.detach()  # type: ignore[operator]
            except Exception as error:  # a user's own parametrisation can fail in any way
                raise FsclError(f"layer {layer!r} of {self.name} cannot be computed: {in_words(error)}") from error
        return filters

    def misfit(self, state: Mapping[str, Tensor]) -> str:
        """Why a state does not fit the network, in a phrase; empty if it fits. Heads may differ in size.

        Both are compared after :func:`effective_state`.
        """
        network = self._network or self._built(state)
        expected = self._entries(network)
        head = _head(network)
        for name, tensor in expected.items():
            shape = tuple(tensor.shape)
            if name not in state:
                if not name.endswith("num_batches_tracked"):  # old files lack these
                    return f"entry {name!r} {shape} of {self.name} is missing"
            elif (found_shape := tuple(state[name].shape)) != shape and not (
                within(name, [head]) and found_shape[1:] == shape[1:]
            ):
                return f"entry {name!r} has shape {found_shape}, and {shape} in {self.name}"
            elif why := misfit_of_kind(state[name], tensor):
                return f"entry {name!r} {why} in {self.name}"
        if strange := next((name for name in state if name not in expected), None):
            return f"entry {strange!r} {tuple(state[strange].shape)} is not an entry of {self.name}"
        self._network = network
        return ""

    def entries_in_common(self, state: Mapping[str, Tensor]) -> int:
        """How many entry names a state and the network have in common."""
        return len(self._entries(self._network or self._default).keys() & state.keys())

    @staticmethod
    def _entries(network: nn.Module) -> dict[str, Tensor]:
        return effective_state({name: t for name, t in network.state_dict().items() if isinstance(t, Tensor)})

    def _built(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network with the classes and channels of the state's last and first layer, if these can be told."""
        network = self._default
        stem = next((n for n, module in network.named_modules() if isinstance(module, nn.Conv2d)), "")
        first, last = state.get(f"{stem}.weight"), state.get(f"{_head(network)}.weight")
        if first is None or first.ndim != 4 or last is None:
            return network  # `misfit` then says why the state does not fit
        try:
            return self._call(len(last), first.shape[1])  # the first convolution has no groups
        except FsclError:  # some networks have a fixed number of classes; heads may differ in size
            return network

    def _call(self, classes: int | None = None, channels: int | None = None) -> nn.Module:
        """Builds the network. None takes its default for classes or channels, or 10 and 3 if it has no default."""
        parameters = inspect.signature(self._make).parameters
        options: dict[str, Any] = argument_names(self.name, classes or 10, (channels or 3, 0, 0))
        options.pop("in_size", None)  # pytorchcv's networks have their input size by default
        options |= {key: channels or 3 for key in ("in_channels", "in_chans") if key in parameters}
        if classes is None:
            options = {
                k: v for k, v in options.items() if k in parameters and parameters[k].default is inspect.Parameter.empty
            }
        elif not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in parameters.values()):
            options = {key: value for key, value in options.items() if key in parameters}
        options |= fresh(self._make)
        try:
            with current_folder():  # the callable may import further modules from it
                network = self._make(**options)
        except Exception as error:  # a user's own callable can fail in any way
            raise FsclError(f"network {self.name!r} cannot be built with {options}: {in_words(error)}") from error
        if not isinstance(network, nn.Module):
            raise FsclError(f"network {self.name!r} is {type(network).__name__}; a torch.nn.Module would do")
        return network


def _head(network: nn.Module) -> str:
    """The last linear layer, or the owner of the last entry for networks without linear layers."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else list(network.state_dict())[-1].rpartition(".")[0]
