"""Writes files so that a crash, a kill or a full disk leaves the old file whole. Temporary files are removed later."""

import contextlib
import errno
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from pathlib import Path

from filelock import FileLock, Timeout

from fscl.errors import FsclError

__all__ = ["remove_stale", "write_atomically", "write_text_atomically", "written_together"]

LOCK = "lock"
TEMPORARY = re.compile(r"\..+\.\w+\.tmp(\.\w+)?")
REASONS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "it is larger than a file may be here",
}


def write_atomically(path: str | os.PathLike[str], write: Callable[[Path], object]) -> None:
    """Calls ``write`` with a temporary path, flushes what it wrote to disk and renames it to ``path``.

    Temporary files that killed processes left beside ``path`` are removed.

    Raises:
        FsclError: the folder cannot be written or the disk is full. A file at ``path`` is then unchanged.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_atomically(target, lambda p: p.write_text("kept"))
        >>> target.read_text()
        'kept'
    """
    with written_together():
        drafts = _drafts.get()
        assert drafts is not None
        drafts.append(_Draft(Path(path)))
        drafts[-1].write(write)


def write_text_atomically(path: str | os.PathLike[str], text: str) -> None:
    """Writes text in UTF-8 as :func:`write_atomically` does, and raises the same errors.

    Example:
        >>> import tempfile
        >>> target = Path(tempfile.mkdtemp()) / "note.txt"
        >>> write_text_atomically(target, "kept")
        >>> target.read_text()
        'kept'
    """
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8", errors="backslashreplace"))


@contextlib.contextmanager
def written_together() -> Iterator[Callable[[Path], Path]]:
    """Files written within the block appear at its end, in the order of writing. If the block fails, none appears.

    Yields:
        a function that returns the temporary file with what the block has written for a path.

    Raises:
        FsclError: as :func:`write_atomically`.

    Example:
        >>> import tempfile
        >>> folder = Path(tempfile.mkdtemp())
        >>> with written_together():
        ...     write_text_atomically(folder / "table.csv", "1,2")
        ...     write_text_atomically(folder / "table.md", "1 and 2")
        ...     os.listdir(folder / "table.csv") if (folder / "table.csv").exists() else "not yet"
        'not yet'
        >>> sorted(os.listdir(folder))
        ['table.csv', 'table.md']
    """
    outer = _drafts.get()
    drafts: list[_Draft] = [] if outer is None else outer

    def drafted(path: Path) -> Path:
        return next(draft.file for draft in reversed(drafts) if draft.target == path)

    if outer is not None:  # the outer block publishes the files
        yield drafted
        return
    before = _drafts.set(drafts)
    try:
        yield drafted
        for draft in drafts:
            draft.publish()
    finally:
        _drafts.reset(before)
        for draft in drafts:
            draft.discard()


def remove_stale(folder: Path) -> None:
    """Removes temporary files that killed processes left in a folder. Files of living processes are kept."""
    with contextlib.suppress(OSError):
        for name in os.listdir(folder):
            if TEMPORARY.fullmatch(name):
                with contextlib.suppress(OSError, Timeout):
                    _remove(folder / name)


def _remove(stale: Path) -> None:
    """Removes a temporary file or folder.

    Raises:
        Timeout: the process that writes it is alive.
        OSError: it is a folder with files but without a lock, which fscl did not make.
    """
    if not stale.is_dir() or stale.is_symlink():
        stale.unlink()
    elif not (stale / LOCK).exists():
        stale.rmdir()  # fails unless it is empty
    else:
        lock = FileLock(stale / LOCK)
        lock.acquire(blocking=False)
        shutil.rmtree(stale, ignore_errors=True)
        lock.release()


class _Draft:
    """A file that is being written, in its own folder beside ``target``. Libraries may put further files there.

    The folder has a lock as long as its process lives, so that :func:`remove_stale` does not remove it.
    """

    def __init__(self, target: Path) -> None:
        self.target = target
        self.folder: Path | None = None

    def write(self, write: Callable[[Path], object]) -> None:
        try:
            self.target.parent.mkdir(parents=True, exist_ok=True)
            remove_stale(self.target.parent)
            file = self._begin()
            mode = file.stat().st_mode
            write(file)
            with open(file, "rb") as written:
                os.fsync(written.fileno())
            file.chmod(mode)  # safetensors makes its files unreadable for others
            if self.target.is_dir():  # checked before any file of the block is published
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        except FsclError:
            raise
        except Exception as error:
            if reason := self._reason(error):
                raise FsclError(f"cannot write {self.target}: {reason}") from error
            raise

    def publish(self) -> None:
        try:
            os.replace(self.file, self.target)
        except OSError as error:
            raise FsclError(f"cannot write {self.target}: {_words(error)}") from error

    def discard(self) -> None:
        if self.folder is not None:
            self.lock.release()
            shutil.rmtree(self.folder, ignore_errors=True)

    def _begin(self) -> Path:
        while self.folder is None:
            folder = self.target.with_name(f".{self.target.stem[:40]}.{secrets.token_hex(4)}.tmp")
            folder.mkdir()
            self.lock = FileLock(folder / LOCK)
            # another process may have removed the folder as stale before it was locked
            with contextlib.suppress(Timeout, FileNotFoundError):
                self.lock.acquire(blocking=False)
                self.folder = folder
        # not the target's name, which searches look for; but its suffix, by which libraries choose a format
        self.file = self.folder / f".half{self.target.suffix}"
        self.file.touch()
        return self.file

    def _reason(self, error: Exception) -> str | None:
        """Why the system refused to write; None if it did not refuse, and the error has another cause."""
        if isinstance(error, OSError) and error.errno:
            return _words(error)
        if number := re.search(r"\(os error (\d+)\)", str(error)):  # the wording of safetensors
            return _words(OSError(int(number[1]), os.strerror(int(number[1]))))
        if self.folder is not None:
            try:  # torch and numpy do not report a full disk, so try to write
                with open(self.file, "ab") as file:
                    file.write(bytes(2**16))
                    file.flush()
                    os.fsync(file.fileno())
            except OSError as refusal:
                return _words(refusal)
        return str(error) if isinstance(error, OSError) else None


_drafts: ContextVar[list[_Draft] | None] = ContextVar("drafts", default=None)


def _words(error: OSError) -> str:
    text = error.strerror or str(error)
    return f"{REASONS[error.errno]} ({text})" if error.errno in REASONS else text
