"""The checkpoint from which an unfinished run goes on: one file with a checksum. A damaged file is refused."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_atomically
from fscl.runs.records.record import Record
from fscl.runs.results import read_record
from fscl.runs.spec import RunSpec

__all__ = ["CHECKPOINT", "line", "load_into", "read_checkpoint", "write_checkpoint"]

CHECKPOINT = "checkpoint.pt"  # file in a run's folder while it is unfinished
FORMAT = 2  # raise it whenever the layout of a checkpoint changes
# The comment at the end of the zip archive: this mark and the checksum, in hexadecimal, of all bytes before it.
MARK = b"fscl sha256 "
COMMENT = len(MARK) + 64
ANEW = "delete this file, and only this run begins anew from its first task"


def write_checkpoint(path: Path, record: Record, state: dict[str, Any]) -> None:
    """Writes the record and the trainer's state with ``torch.save``, and adds a checksum.

    Args:
        path: the file.
        record: the run's record.
        state: the trainer's state: plain values and tensors.

    Raises:
        FsclError: the file cannot be written. A file that was there before is unchanged.
    """
    import torch

    def write(temporary: Path) -> None:
        try:
            torch.save({"format": FORMAT, "record": json.dumps(record.to_json()), "trainer": state}, temporary)
        except RuntimeError as error:  # torch raises this for a full disk
            raise OSError(None, str(error).splitlines()[0]) from error
        with open(temporary, "r+b") as file:
            file.seek(-2, io.SEEK_END)  # the length of an archive's comment, which torch leaves empty
            file.write(COMMENT.to_bytes(2, "little"))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.write(MARK + digest.encode())

    write_atomically(path, write)


def read_checkpoint(path: Path, spec: RunSpec) -> tuple[Record, dict[str, Any]]:
    """The record and the trainer's state that :func:`write_checkpoint` wrote for this run.

    Raises:
        FsclError: a bit of the file has changed, it belongs to another run, or these versions cannot read it.
    """
    import torch

    try:
        content = path.read_bytes()
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror or error})") from error
    body, comment = content[:-COMMENT], content[-COMMENT:]
    if comment != MARK + hashlib.sha256(body).hexdigest().encode():
        raise FsclError(f"{path}: damaged (its checksum does not match its contents); {ANEW}")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version = saved["format"]
        data, state = json.loads(saved["record"]), saved["trainer"]
    except Exception as error:  # another version of torch may raise anything
        raise FsclError(
            f"{path}: undamaged, but torch {torch.__version__} cannot read it ({line(error)}); go on with the versions "
            "in the run.json beside it"
        ) from error
    if version != FORMAT:
        raise FsclError(
            f"{path}: undamaged, but its format is {version}, and this fscl reads format {FORMAT}; go on with the fscl "
            "version in the run.json beside it"
        )
    record = read_record(path, data)
    if (record.recipe_hash, record.seed) != (spec.hash, spec.seed):
        raise FsclError(
            f"{path}: belongs to another run (recipe {record.recipe_hash}, seed {record.seed}; this run has recipe "
            f"{spec.hash}, seed {spec.seed}); move it to the folder of that run, or {ANEW}"
        )
    return record, state


def load_into(target: Any, state: dict[str, Any], file: Path, of: str) -> None:
    """Loads the state of a checkpoint into what goes on from it.

    Args:
        target: has a method ``load_state_dict``.
        state: what :func:`read_checkpoint` returned.
        file: the checkpoint.
        of: what the state must fit, in a word.

    Raises:
        FsclError: it does not fit.
    """
    try:
        target.load_state_dict(state)
    except Exception as error:  # another version of a learner or method, or of torch, may raise anything
        raise FsclError(
            f"{file}: undamaged, but it does not fit this version of its {of} ({line(error)}); go on "
            "with the versions in the run.json beside it"
        ) from error


def line(error: BaseException) -> str:
    """The text of an exception on one line. It is cut, because messages of torch can fill a page."""
    text = " ".join(str(error).split())
    if not isinstance(error, FsclError):
        text = f"{type(error).__name__}: {text[:200]}".removesuffix(": ")
    return text
