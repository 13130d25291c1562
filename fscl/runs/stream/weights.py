"""What a run learned, on disk: one safetensors file. Each different tensor is in it once.

A tensor's name is a digest of its content. The metadata ``state`` is JSON that refers to tensors by these names, and
the metadata ``digest`` is the digest of this JSON. So every flipped bit is noticed when the file is read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from fscl.atoms.bank_file import copied_tensors, write_safetensors
from fscl.atoms.entries import bytes_of, digest_of
from fscl.errors import FsclError

if TYPE_CHECKING:
    from fscl.continual.training.trainer import Trainer

__all__ = ["read_weights", "save_networks", "write_weights"]

FORMAT = 1
KIND = "fscl.weights"


def save_networks(path: Path, trainer: "Trainer") -> None:
    """Writes what :func:`fscl.load_network` needs besides the run's record.

    Raises:
        FsclError: the file cannot be written.
    """
    transform = trainer.stream.transform
    state = {"image_shape": trainer.stream.image_shape, "scale": transform.scale, "shift": transform.shift}
    write_weights(path, {**state, "learner": trainer.served_state()})


def write_weights(path: Path, state: Mapping[str, Any]) -> None:
    """Writes tensors and plain values, in dictionaries, lists and tuples.

    Raises:
        FsclError: the file cannot be written. A file that was there before is unchanged.
    """
    tensors: dict[str, Tensor] = {}
    text = json.dumps(_described(state, tensors), separators=(",", ":"))
    header = {"format": KIND, "version": str(FORMAT), "state": text, "digest": digest_of(text.encode())}

    write_safetensors(path, tensors, header)


def read_weights(path: Path) -> dict[str, Any]:
    """The tensors and values that :func:`write_weights` wrote. Nothing in the file is executed.

    Raises:
        FsclError: the file does not exist, is damaged, is no such file, or has another format.
    """
    if not path.is_file():
        raise FsclError(f"{path}: no such file; runs with --no-weights have none")
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            header = file.metadata() or {}
            if header.get("format") != KIND:
                raise FsclError(f"{path}: a safetensors file, but not the weights of a run")
            if header.get("version") != str(FORMAT):
                raise FsclError(
                    f"{path}: format {header.get('version', '')[:20]}, and this fscl reads format {FORMAT}; use the "
                    "fscl that wrote it, or do the run again"
                )
            tensors = copied_tensors(file)
        if digest_of(header["state"].encode()) != header["digest"]:
            raise ValueError("its description differs from what was saved")
        if changed := next((name for name, tensor in tensors.items() if _name(tensor) != name), None):
            raise ValueError(f"tensor {changed} differs from what was saved")
        state = _value(json.loads(header["state"]), tensors)
    except FsclError:
        raise
    except (SafetensorError, LookupError, ValueError, TypeError, RuntimeError, RecursionError, OSError) as error:
        reason = str(error).splitlines()[0][:200] if str(error) else type(error).__name__
        raise FsclError(f"{path}: damaged or truncated, not readable as weights ({reason})") from error
    if not isinstance(state, dict):
        raise FsclError(f"{path}: damaged, not readable as weights (it holds no table)")
    return state


def _described(value: Any, tensors: dict[str, Tensor]) -> Any:
    """The value as JSON. Its tensors are added to ``tensors``."""
    if isinstance(value, Tensor):
        name = _name(value)
        if name not in tensors:
            tensors[name] = value.detach().cpu().contiguous().clone()
        return {"parameter" if isinstance(value, nn.Parameter) else "tensor": name}
    if isinstance(value, Mapping):
        return {"table": [[_described(k, tensors), _described(v, tensors)] for k, v in value.items()]}
    if isinstance(value, tuple):
        return {"tuple": [_described(item, tensors) for item in value]}
    if isinstance(value, list):
        return [_described(item, tensors) for item in value]
    if value is None or isinstance(value, bool | int | float | str):
        return value
    raise FsclError(f"weights cannot hold a {type(value).__name__}")


def _value(described: Any, tensors: Mapping[str, Tensor]) -> Any:
    """The inverse of :func:`_described`."""
    if isinstance(described, list):
        return [_value(item, tensors) for item in described]
    if not isinstance(described, dict):
        return described
    [(kind, content)] = described.items()
    if kind == "table":
        return {_value(k, tensors): _value(v, tensors) for k, v in content}
    if kind == "tuple":
        return tuple(_value(item, tensors) for item in content)
    if kind == "parameter":
        return nn.Parameter(tensors[content], requires_grad=False)
    if kind == "tensor":
        return tensors[content]
    raise ValueError(f"its description has an unknown kind {kind!r}")


def _name(tensor: Tensor) -> str:
    return digest_of(f"{tensor.dtype} {tuple(tensor.shape)} ".encode(), bytes_of(tensor))
