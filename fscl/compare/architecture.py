"""A network by name that checkpoints are held against: whether a state fits it, and the order of its layers."""

import copy
import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor, nn

from fscl.atoms.entries import within
from fscl.compare.convolutions import Convolutions, LeftOut, convolutions, misfit_of_kind
from fscl.compare.effective import effective_state
from fscl.errors import FsclError
from fscl.factories import current_folder, fresh, in_words, network_factory
from fscl.networks import ConvNet, argument_names

__all__ = ["Architecture"]


class Architecture:
    """A network that is built once it is known for how many classes and channels: those of the first state.

    Args:
        name: ``torchvision:resnet18``, ``pytorchcv:resnet20_cifar10``, ``avalanche:SlimResNet18``, ``convnet``, or
            ``package.module:callable`` or ``folder/file.py:callable`` of your own that returns a module, installed or
            in the current folder.

    Raises:
        FsclError: there is no such network, or it cannot be built.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._make = ConvNet if name == "convnet" else network_factory(name)
        self._network: nn.Module | None = None
        self._found: Convolutions | None = None
        self._default = self._call()

    @property
    def network(self) -> nn.Module:
        """The network, with values of its own that mean nothing.

        Raises:
            FsclError: no state was held against it yet.
        """
        if self._network is None:
            raise FsclError(f"{self.name}: not built yet; hold a state against it first")
        return self._network

    @property
    def layers(self) -> list[str]:
        """The spatial convolutions that can be compared, in the order in which the network registers them."""
        return list(self._convolutions.filters)

    @property
    def left_out(self) -> dict[str, LeftOut]:
        """The spatial convolutions that cannot, and why."""
        return self._convolutions.left_out

    @property
    def _convolutions(self) -> Convolutions:
        if self._found is None:
            self._found = convolutions(self.name, self.network)
        return self._found

    def computed_filters(self, state: Mapping[str, Tensor], layers: Sequence[str]) -> dict[str, Tensor]:
        """The filters of layers whose parametrisations only the network knows, as these compute them in evaluation."""
        found: dict[str, Tensor] = {}
        for layer in layers:
            module = copy.deepcopy(self.network.get_submodule(layer)).eval()
            own = {name.removeprefix(f"{layer}."): t for name, t in state.items() if name.startswith(f"{layer}.")}
            try:
                module.load_state_dict(own)
                found[layer] = module.weight.detach()  # type: ignore[operator]
            except Exception as error:  # a user's own parametrisation can fail in any way
                raise FsclError(f"layer {layer!r} of {self.name} cannot be computed: {in_words(error)}") from error
        return found

    def misfit(self, state: Mapping[str, Tensor]) -> str:
        """Why a state does not fit, in a phrase; empty if it does. Heads may differ in size.

        Both are held against each other as :func:`effective_state` has them.
        """
        network = self._network or self._built(state)
        expected = self._entries(network)
        head = _head(network)
        for name, tensor in expected.items():
            shape = tuple(tensor.shape)
            if name not in state:
                if not name.endswith("num_batches_tracked"):  # which old files lack
                    return f"entry {name!r} {shape} of {self.name} is missing"
            elif (found := tuple(state[name].shape)) != shape and not (within(name, [head]) and found[1:] == shape[1:]):
                return f"entry {name!r} has shape {found}, and {shape} in {self.name}"
            elif why := misfit_of_kind(state[name], tensor):
                return f"entry {name!r} {why} in {self.name}"
        if strange := next((name for name in state if name not in expected), None):
            return f"entry {strange!r} {tuple(state[strange].shape)} is none of {self.name}"
        self._network = network
        return ""

    def entries_in_common(self, state: Mapping[str, Tensor]) -> int:
        """How many entries a state and the network have by the same names."""
        return len(self._entries(self._network or self._default).keys() & state.keys())

    @staticmethod
    def _entries(network: nn.Module) -> dict[str, Tensor]:
        return effective_state({name: t for name, t in network.state_dict().items() if isinstance(t, Tensor)})

    def _built(self, state: Mapping[str, Tensor]) -> nn.Module:
        """The network for as many classes and channels as the state's ends have, where these can be found."""
        network = self._default
        stem = next((n for n, module in network.named_modules() if isinstance(module, nn.Conv2d)), "")
        first, last = state.get(f"{stem}.weight"), state.get(f"{_head(network)}.weight")
        if first is None or first.ndim != 4 or last is None:
            return network  # it will not fit
        try:
            return self._call(len(last), first.shape[1])  # images come ungrouped
        except FsclError:  # some are for so many classes only; heads may differ in size
            return network

    def _call(self, classes: int | None = None, channels: int | None = None) -> nn.Module:
        """The network, with its own numbers of classes and channels, or any where it has none, by default."""
        taken = inspect.signature(self._make).parameters
        options: dict[str, Any] = argument_names(self.name, classes or 10, (channels or 3, 0, 0))
        options.pop("in_size", None)  # pytorchcv's networks know the size that they are for
        options |= {key: channels or 3 for key in ("in_channels", "in_chans") if key in taken}
        if classes is None:
            options = {k: v for k, v in options.items() if k in taken and taken[k].default is inspect.Parameter.empty}
        elif not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values()):
            options = {key: value for key, value in options.items() if key in taken}
        options |= fresh(self._make)
        try:
            with current_folder():  # it may import more of them
                network = self._make(**options)
        except Exception as error:  # a user's own callable can fail in any way
            raise FsclError(f"network {self.name!r} cannot be built with {options}: {in_words(error)}") from error
        if not isinstance(network, nn.Module):
            raise FsclError(f"network {self.name!r} is {type(network).__name__}; a torch.nn.Module would do")
        return network


def _head(network: nn.Module) -> str:
    """The last linear layer; or the owner of the last entry, for networks that end in a convolution."""
    linear = [name for name, module in network.named_modules() if isinstance(module, nn.Linear)]
    return linear[-1] if linear else list(network.state_dict())[-1].rpartition(".")[0]
