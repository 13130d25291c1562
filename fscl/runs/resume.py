"""What an unfinished run goes on from: one file that is read back exactly as it was written, or not at all."""

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from fscl.errors import FsclError
from fscl.files import write_atomically
from fscl.runs.record import RunRecord, read_record
from fscl.runs.spec import RunSpec

__all__ = ["line", "read_checkpoint", "write_checkpoint"]

FORMAT = 2  # of a checkpoint's layout: one more whenever that changes
MARK = b"fscl sha256 "  # and the checksum of all that comes before, in hexadecimal: the comment that ends a zip archive
COMMENT = len(MARK) + 64
ANEW = "delete this file, and this run alone begins anew from its first task"


def write_checkpoint(path: Path, record: RunRecord, state: dict[str, Any]) -> None:
    """Writes the record and the trainer's state, of plain data, as a file of ``torch.save`` with a checksum.

    Raises:
        FsclError: it cannot be written; what stood there is untouched.
    """
    import torch

    def write(temporary: Path) -> None:
        try:
            torch.save({"format": FORMAT, "record": json.dumps(record.to_json()), "trainer": state}, temporary)
        except RuntimeError as error:  # how torch reports a full disk
            raise OSError(None, str(error).splitlines()[0]) from error
        with open(temporary, "r+b") as file:
            file.seek(-2, io.SEEK_END)  # the length of an archive's comment, which torch leaves empty
            file.write(COMMENT.to_bytes(2, "little"))
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
            file.write(MARK + digest.encode())

    write_atomically(path, write)


def read_checkpoint(path: Path, spec: RunSpec) -> tuple[RunRecord, dict[str, Any]]:
    """The record, and the trainer's state, that :func:`write_checkpoint` wrote of this very run.

    Raises:
        FsclError: a bit of it is not as it was written, it is of another run, or these versions cannot read it.
    """
    import torch

    try:
        content = path.read_bytes()
    except OSError as error:
        raise FsclError(f"{path}: cannot be read ({error.strerror or error})") from error
    body, comment = content[:-COMMENT], content[-COMMENT:]
    if comment != MARK + hashlib.sha256(body).hexdigest().encode():
        raise FsclError(f"{path}: damaged (its checksum is that of other contents); {ANEW}")
    try:
        saved = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
        version = saved["format"]
        data, state = json.loads(saved["record"]), saved["trainer"]
    except Exception as error:  # whatever a torch says to a file of another
        raise FsclError(
            f"{path}: undamaged, but torch {torch.__version__} cannot read it ({line(error)}); go on with the versions "
            "that run.json beside it names"
        ) from error
    if version != FORMAT:
        raise FsclError(
            f"{path}: undamaged, but of format {version}, and this fscl reads {FORMAT}; go on with that fscl"
        )
    record = read_record(path, data)
    if (record.recipe_hash, record.seed) != (spec.hash, spec.seed):
        raise FsclError(
            f"{path}: of another run (recipe {record.recipe_hash}, seed {record.seed}; here {spec.hash}, seed "
            f"{spec.seed}); move it to the folder of that run, or {ANEW}"
        )
    return record, state


def line(error: BaseException) -> str:
    """What an exception says, on one line that is not too long; torch's can fill a page."""
    text = " ".join(str(error).split())
    if not isinstance(error, FsclError):
        text = f"{type(error).__name__}: {text[:200]}".removesuffix(": ")
    return text
