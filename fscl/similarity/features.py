"""Collects the features of a network's layers over a data set."""

import contextlib
import difflib
import operator
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from fscl.errors import FsclError
from fscl.modes import evaluating
from fscl.similarity.matrices import Maps, check_maps, flatten_maps

__all__ = ["channels_first", "collect_features"]


def collect_features(
    model: nn.Module,
    loader: Iterable[Any],
    layers: str | Iterable[str] | None = None,
    *,
    maps: Maps | None = None,
    positions: int | None = None,
    samples: int | None = None,
    call: Callable[[nn.Module, Any], object] | None = None,
    device: torch.device | str | None = None,
    progress: bool = True,
    seed: int = 0,
) -> dict[str, Tensor]:
    """The outputs of a network's layers for the images of a loader, in the loader's order.

    Networks are compared on the same images in the same order, so the loader must not shuffle. The network runs in
    evaluation mode without gradients. Afterwards, also after an error, every module has its former mode and all hooks
    are removed.

    Args:
        model: any network.
        loader: an iterable of batches, such as a DataLoader. A batch is a tensor, or a tuple, list or mapping whose
            first tensor is the input.
        layers: dotted names of layers, or one dotted name; None takes all convolution and linear layers that every
            pass calls exactly once.
        maps: how (n, c, h, w) is flattened as it arrives, see `flatten_maps`; None does not flatten. Linear layers,
            `nn.LayerNorm` and attention give (n, tokens, c) or (n, h, w, c); then tokens are positions.
        positions: number of positions drawn at random from each image's map, or all if the map has fewer. Needs
            `maps="positions"`. Layers and networks with the same `seed` and map size get the same positions, at any
            batch size.
        samples: stop after this many images.
        call: makes the pass from (model, batch), if `model(input)` does not, such as
            `lambda model, batch: model(batch[0], batch[2])` for a multi-head model and batches (x, y, task labels).
        device: the device that batches are moved to; the device of the model's parameters by default. The model is not
            moved.
        progress: show a progress bar on stderr, if that is a terminal.
        seed: seed of the draw of positions.

    Returns:
        Features by layer, on the CPU, in the dtype of the layer's output (pooled features in float32 at least).

    Raises:
        FsclError: a layer is unknown, is called never or several times in a pass, or does not give a tensor with a row
            for each image; the loader has no batches, or a batch has no tensor; options do not fit.

    >>> net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(4 * 6 * 6, 5))
    >>> batches = torch.zeros(10, 3, 8, 8).split(4)
    >>> {name: tuple(x.shape) for name, x in collect_features(net, batches).items()}
    {'0': (10, 4, 6, 6), '3': (10, 5)}
    >>> collect_features(net, batches, "0", maps="positions", positions=9, samples=8)["0"].shape
    torch.Size([72, 4])
    """
    _check_options(loader, maps, positions, samples)
    modules = dict(model.named_modules(remove_duplicate=False))
    taps = {name: _Tap(name, maps, positions, seed) for name in _chosen(model, modules, layers)}
    target_device = _device_of(model) if device is None else torch.device(device)
    console = Console(stderr=True)
    num_seen = 0
    with contextlib.ExitStack() as stack, torch.no_grad():
        bar = Progress(console=console, transient=True)
        if progress and console.is_terminal:  # rich before 14.3 writes a line even for a bar that is disabled
            stack.enter_context(bar)
        task = bar.add_task("features", total=samples or operator.length_hint(loader) or None)
        stack.enter_context(evaluating(model))
        for name, tap in taps.items():
            tap.handle = modules[name].register_forward_hook(tap)
            stack.callback(tap.handle.remove)
        for batch in loader:
            first = next(_tensors(batch), None)
            if first is None:
                raise FsclError(
                    f"a batch of type {type(batch).__name__} holds no tensor of images; a tensor, or a tuple, list or "
                    "mapping with one would do"
                )
            take = len(first) if samples is None else min(len(first), samples - num_seen)
            for tap in taps.values():
                tap.images, tap.take, tap.calls = len(first), take, 0
            if call is None:
                model(first.to(target_device))
            else:
                call(model, _moved(batch, target_device))
            for name in [name for name, tap in taps.items() if tap.calls != 1]:
                if layers is not None:
                    raise FsclError(_ill_called(name, taps[name].calls))
                taps.pop(name).handle.remove()
            if not taps:
                raise FsclError(
                    f"no convolution or linear layer of {type(model).__name__} is called exactly once in every pass; "
                    "name other layers, as model.named_modules() does, or give a `call` that passes once, with task "
                    "labels if the network has several heads"
                )
            num_seen += take
            bar.advance(task, take if samples else 1)
            if num_seen == samples:
                break
    if not num_seen:
        raise FsclError("the loader gave no images; one batch or more would do")
    return {name: torch.cat(tap.parts) for name, tap in taps.items()}


def channels_first(module: nn.Module, output: Any) -> Any:
    """The output of a layer as (n, c, positions, 1) if the layer gives channels in the last dimension, else as it is.

    Linear layers, layer normalisation and attention do so, for tokens and for maps of positions.
    """
    if isinstance(module, nn.MultiheadAttention) and isinstance(output, tuple):
        output = output[0]  # beside the weights of attention
    elif type(module).forward not in (nn.Linear.forward, nn.LayerNorm.forward):
        return output
    is_tokens = isinstance(output, Tensor) and output.ndim > 2
    return output.flatten(1, -2).mT[..., None] if is_tokens else output


class _Tap:
    """A forward hook that stores one layer's features and counts its calls in a pass."""

    handle: RemovableHandle

    def __init__(self, name: str, maps: Maps | None, positions: int | None, seed: int) -> None:
        self.name, self.maps, self.positions = name, maps, positions
        self.generator = torch.Generator().manual_seed(seed)
        self.parts: list[Tensor] = []
        self.images = self.take = self.calls = 0  # images in this pass, how many of them to store, calls so far

    def __call__(self, module: nn.Module, inputs: object, output: object) -> None:
        self.calls += 1
        if self.calls > 1:
            return
        output = channels_first(module, output) if self.maps is not None else output
        if not isinstance(output, Tensor):
            raise FsclError(
                f"layer {self.name!r} ({type(module).__name__}) gives {type(output).__name__}; a layer that gives one "
                "tensor would do, perhaps one within it"
            )
        if output.shape[:1] != (self.images,):
            raise FsclError(
                f"layer {self.name!r} gives shape {tuple(output.shape)} for {self.images} images; a layer that gives a "
                "row for each image would do, and for a network with several heads batches of one task"
            )
        features = self._flattened(output[: self.take])
        if self.parts and features.shape[1:] != self.parts[0].shape[1:]:
            raise FsclError(
                f"layer {self.name!r} gives {tuple(features.shape[1:])} after {tuple(self.parts[0].shape[1:])} for "
                "each sample; images of one size or maps='pooled' would do"
            )
        self.parts.append(features.to("cpu", copy=True))  # a copy, because the next layer may change it in place

    def _flattened(self, output: Tensor) -> Tensor:
        if self.maps is None or output.ndim == 2:
            return output
        if output.ndim != 4:
            raise FsclError(
                f"layer {self.name!r} gives shape {tuple(output.shape)}; maps={self.maps!r} takes (n, c, h, w), "
                "(n, p) or tokens of a linear layer; leave maps out, or the layer"
            )
        size = output.shape[2] * output.shape[3]
        if self.positions is None or self.positions >= size:
            return flatten_maps(output, self.maps)
        # one random value for each position, in the order of images: the draw does not depend on the batch size
        scores = torch.rand(len(output), size, generator=self.generator, dtype=torch.float64)
        drawn = scores.topk(self.positions).indices.to(output.device)
        return output.flatten(2).mT[torch.arange(len(output), device=output.device)[:, None], drawn].flatten(0, 1)


def _check_options(loader: object, maps: Maps | None, positions: int | None, samples: int | None) -> None:
    if isinstance(loader, Tensor):
        raise FsclError(f"loader is a tensor {tuple(loader.shape)}; an iterable of batches would do: x.split(256)")
    check_maps(maps)
    if positions is not None and maps != "positions":
        raise FsclError(f"positions is {positions} with maps={maps!r}; positions are drawn only with maps='positions'")
    for option, count in (("positions", positions), ("samples", samples)):
        if count is not None and count < 1:
            raise FsclError(f"{option} is {count}; None for all, or 1 or more would do")


def _chosen(model: nn.Module, modules: Mapping[str, nn.Module], layers: str | Iterable[str] | None) -> list[str]:
    if layers is None:
        return [name for name, module in model.named_modules() if _is_layer(module)]
    names = list(dict.fromkeys([layers] if isinstance(layers, str) else layers))
    if not names:
        raise FsclError("layers is empty; a name, several, or None for all convolution and linear layers would do")
    for name in names:
        if name not in modules:
            near = difflib.get_close_matches(str(name), modules, 3) or [n for n in modules if _is_layer(modules[n])][:8]
            would_do = f"perhaps {', '.join(map(repr, near))}" if near else f"its modules: {list(modules)[:8]}"
            raise FsclError(f"{type(model).__name__} has no layer {name!r}; {would_do}")
    return names


def _is_layer(module: nn.Module) -> bool:
    """Whether a module is a linear layer or a convolution; ``AtomConv2d``, which is no ``nn.Conv2d``, counts, too."""
    return isinstance(module, nn.Linear) or (hasattr(module, "kernel_size") and hasattr(module, "out_channels"))


def _ill_called(name: str, calls: int) -> str:
    if calls:
        return (
            f"layer {name!r} is called {calls} times in a pass; name one that is called once, perhaps around it, or "
            "give a `call` that passes once, with task labels if the network has several heads"
        )
    return f"layer {name!r} is never called in a pass; leave it out, or give a `call` that reaches it"


def _device_of(model: nn.Module) -> torch.device:
    return next((values.device for values in (*model.parameters(), *model.buffers())), torch.device("cpu"))


def _tensors(batch: object) -> Iterator[Tensor]:
    """All tensors of a batch that have a dimension of samples, depth first."""
    if isinstance(batch, Tensor) and batch.ndim:
        yield batch
    elif isinstance(batch, Mapping | tuple | list):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from _tensors(part)


def _moved(batch: Any, device: torch.device) -> Any:
    if isinstance(batch, Tensor):
        return batch.to(device)
    if isinstance(batch, Mapping):
        return {key: _moved(part, device) for key, part in batch.items()}
    if isinstance(batch, tuple | list):
        parts = [_moved(part, device) for part in batch]
        return type(batch)(*parts) if hasattr(batch, "_fields") else type(batch)(parts)
    return batch
