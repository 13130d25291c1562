"""Finds checkpoints on disk, by short names: files, folders of files, and folders as Hugging Face's libraries write.

Nothing slow is imported, so that a mistyped path is told at once.
"""

import glob
import os
import re
from collections import Counter
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

from fscl.errors import FsclError, printable

__all__ = [
    "INDEX",
    "SUFFIXES",
    "check_enough",
    "find_checkpoints",
    "kind_of",
    "shard_of",
    "short_file_names",
    "weights_file",
]

SUFFIXES = (".pt", ".pth", ".bin", ".ckpt", ".pth.tar", ".safetensors")
INDEX = (".safetensors.index.json", ".bin.index.json")  # names the shards of one network, and the entries in each
# what a message looks into: Lightning makes lightning_logs/version_0/checkpoints; a data set may have a million files
DEPTH, LOOKED_AT = 3, 10_000
# of one network in a folder of its own, in the order in which transformers and diffusers prefer them
WEIGHTS = tuple(
    name + suffix
    for name, suffixes in (
        ("model", (".safetensors", INDEX[0])),
        ("pytorch_model", (".bin", INDEX[1])),
        ("diffusion_pytorch_model", (".safetensors", INDEX[0], ".bin", INDEX[1])),
    )
    for suffix in suffixes
)
SHARD = re.compile(r".+-\d{5}-of-(\d{5})\.(?:safetensors|bin)")
# what trainers write beside the weights
BESIDE = re.compile(r"(optimizer|scheduler|scaler|training_args|rng_state.*|random_states.*)\.(pt|pth|bin|safetensors)")


def find_checkpoints(paths: Sequence[str | Path]) -> dict[str, Path]:
    """The checkpoints, by short names: file names, with suffix and folders only where they are needed to differ.

    A checkpoint is a file, an index of shards, or a folder with the weights of one network (``model.safetensors``,
    ``pytorch_model.bin``, or shards with an index). Any other folder stands for the checkpoints in it, sorted by name.

    Raises:
        FsclError: a file does not exist, a folder has no checkpoints, a suffix is unknown, or a checkpoint is given
            twice.
    """
    checkpoints: list[Path] = []
    for path in (expanded for given in paths for expanded in _expanded(Path(given))):
        try:
            checkpoints += _within(path)
        except OSError as error:
            raise FsclError(f"{printable(str(path))}: {error.strerror}") from error
    counts = Counter(os.path.abspath(file) for file in checkpoints)
    if twice := [file for file in checkpoints if counts[os.path.abspath(file)] > 1]:
        raise FsclError(f"{printable(str(twice[0]))}: given twice")
    return dict(zip(short_file_names(checkpoints), checkpoints, strict=True))


def check_enough(count: int, why: str = "") -> None:
    """Raises :class:`FsclError` if there are fewer than two checkpoints to compare."""
    if count < 2:
        raise FsclError(f"{count} checkpoint{'s' * (count != 1)} to compare; it takes at least 2{why}")


def weights_file(folder: Path) -> Path | None:
    """The file with the weights of the one network in a folder, or the index of its shards. None for other folders.

    Raises:
        OSError: the folder cannot be read.
    """
    names = {path.name for path in folder.iterdir() if not path.is_dir()}
    weights = next((name for name in WEIGHTS if name in names), None)
    # further checkpoints make it a folder of checkpoints, unless it has the description of one network
    alone = "config.json" in names or all(
        name in WEIGHTS or SHARD.fullmatch(name) or BESIDE.fullmatch(name) for name in names if kind_of(Path(name))
    )
    return folder / weights if weights and alone else None


def shard_of(path: Path) -> int:
    """The number of shards of a network, if the file's name says that it is one of them; otherwise 0.

    >>> shard_of(Path("model-00001-of-00003.safetensors")), shard_of(Path("model.safetensors"))
    (3, 0)
    """
    match = SHARD.fullmatch(path.name)
    return int(match[1]) if match and int(match[1]) > 1 else 0


def kind_of(path: Path) -> str:
    """The longest of ``SUFFIXES`` and ``INDEX`` that a file name ends with; empty if there is none."""
    return max((suffix for suffix in (*SUFFIXES, *INDEX) if path.name.lower().endswith(suffix)), key=len, default="")


def short_file_names(files: Sequence[Path]) -> list[str]:
    """Names for checkpoints, as short as possible and all different."""
    full = [Path(os.path.abspath(file)) for file in files]
    without_suffix = [p.with_name(p.name[: -len(kind_of(p))] or p.name) for p in full]
    common = Path(os.path.commonpath([p.parent for p in full])) if full else Path()
    for candidates in (
        [p.name for p in without_suffix],
        [p.name for p in full],
        [p.relative_to(common).as_posix() for p in without_suffix],
        [p.relative_to(common).as_posix() for p in full],
    ):
        names = list(map(printable, candidates))
        if len(set(names)) == len(names):
            return names
    # two names differ only in characters that are escaped alike
    return [f"{name} ({number})" for number, name in enumerate(names, 1)]


def _expanded(path: Path) -> list[Path]:
    """The path, or the files that match it as a pattern: quotes and Windows leave patterns unexpanded."""
    return [path] if path.exists() else sorted(map(Path, glob.glob(str(path)))) or [path]


def _within(path: Path) -> list[Path]:
    """The checkpoints that a path stands for."""
    if not path.is_dir():
        if not path.exists():
            raise FsclError(f"{printable(str(path))}: no such file or folder")
        if not kind_of(path):
            raise FsclError(f"{printable(str(path))}: unknown kind of checkpoint; known: {', '.join(SUFFIXES)}")
        return [path]
    if weights_file(path):
        return [path]
    shown = [p for p in sorted(path.iterdir()) if not p.name.startswith(".")]
    inside = [p for p in shown if (_is_network(p) if p.is_dir() else kind_of(p))]
    if any(p.suffix == ".distcp" for p in shown):
        make = "torch.distributed.checkpoint.format_utils.dcp_to_torch_save"
        raise FsclError(f"{printable(str(path))}: a distributed checkpoint; {make} makes one file of it")
    if not inside:
        raise FsclError(
            f"{printable(str(path))}: no checkpoint files in this folder ({', '.join(SUFFIXES)}){_below(path)}"
        )
    return inside


def _below(folder: Path) -> str:
    """The end of a message: what gives the checkpoints in folders below, as training scripts make one for each run."""
    for depth in range(1, DEPTH + 1):
        for file in islice(folder.glob("*/" * depth + "*"), LOOKED_AT):
            if kind_of(file) and file.is_file() and not BESIDE.fullmatch(file.name):
                runs = "*/" * depth + f"*{kind_of(file)}"
                below = "/".join("*" * (depth - 1)) if _is_network(file.parent) else runs
                return f"; '{printable(str(folder))}/{below}' gives those in the folders below it"
    return ""


def _is_network(folder: Path) -> bool:
    try:
        return weights_file(folder) is not None
    except OSError:  # of another user; nobody asked for this folder
        return False
