"""How a file enters the store: written in private, forced to disk, and only then given its name.

A name is given by a hard link, which the system grants to one process only: whoever comes second finds the name taken
and leaves what is there. So a published file is whole and never changes, whoever dies when. What a killed process left
unfinished (`.NAME.….part`) is removed by the next that publishes there.
"""

from __future__ import annotations

import errno
import hashlib
import os
import re
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from vkvdb.errors import StoreFailed
from vkvdb.processes import is_dead, this_process

Write = Callable[[Path], None]

PRIVATE = ".part"
_SIGNED = re.compile(r"\.(\w+-\d+-\d+)\.\w{8}\.part$")
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS}


def publish(files: Mapping[Path, Write]) -> bool:
    """Publish files together: all are written and forced to disk before the first is seen, and the last is named last.

    Each `write` is given the path of its private file. False when a name was taken meanwhile: then the files before it
    (in order) are published, it and those after it are not. Raises StoreFailed when the system refuses; then no file
    and no folder of this call remains.
    """
    private: dict[Path, Path] = {}
    named: list[Path] = []
    made: list[Path] = []
    final = Path()
    try:
        for final, write in files.items():
            private[final] = _reserve(final, made)
            write(private[final])
            _force(private[final])
        for final, path in private.items():
            if not _name(path, final):
                return False
            named.append(final)
            path.unlink()
        for folder in sorted({path.parent for path in (*files, *made)}):
            _force(folder)
    except OSError as error:
        _remove(named)
        raise StoreFailed(path=final, why=_why(error, final)) from error
    finally:
        _remove(private.values())
        for folder in reversed(made):
            with suppress(OSError):  # published files, or another process's, keep it
                folder.rmdir()
    return True


def sha256(path: Path) -> str:
    """The SHA-256 of a file's bytes, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sweep(private: Iterable[Path]) -> None:
    """Remove those private files whose process is known to have ended."""
    _remove(path for path in private if is_abandoned(path))


def private_files(root: Path) -> Iterator[Path]:
    """All private files below a folder; folders may come and go meanwhile."""
    for folder, _, names in os.walk(root):
        yield from (Path(folder, name) for name in sorted(names) if name.startswith(".") and name.endswith(PRIVATE))


def is_abandoned(path: Path) -> bool:
    """Whether the process that wrote a private file is known to have ended."""
    signed = _SIGNED.search(path.name)
    return signed is not None and is_dead(signed[1])


def _reserve(final: Path, made: list[Path]) -> Path:
    """Create the private file and the folders that it takes; those are appended to `made`, the outermost first."""
    path = final.with_name(f".{final.name}.{this_process().signature()}.{uuid.uuid4().hex[:8]}{PRIVATE}")
    for last in (False, False, True):
        made += [folder for folder in reversed(final.parents) if folder not in made and not folder.exists()]
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            break
        except FileNotFoundError:  # another process failed just now, and removed a folder that it had made
            if last:
                raise
    sweep(final.parent.glob(f".*{PRIVATE}"))
    return path


def _force(path: Path) -> None:
    """Force a file, or a folder's list of names, to disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _name(private: Path, final: Path) -> bool:
    """Give a file its name; False when it is taken."""
    try:
        os.link(private, final)
    except FileExistsError:
        if final.is_file():
            return False
        raise
    except OSError as error:
        if error.errno in _NO_LINKS:
            raise OSError(
                "this file system has no hard links, which publishing stands on; set VKVDB_STORE to a folder on another"
            ) from error
        raise
    return True


def _remove(paths: Iterable[Path]) -> None:
    for path in paths:
        # Called in the course of something else, whose own failure is what must be told; what stays, `verify` finds.
        with suppress(OSError):
            path.unlink(missing_ok=True)


def _why(error: OSError, final: Path) -> str:
    """The system's reason, in one line."""
    if error.errno in (errno.EEXIST, errno.ENOTDIR, errno.EISDIR):
        if final.is_dir():
            return "a folder has this name"
        if file := next((folder for folder in final.parents if folder.is_file()), None):
            return f"{file} is a file, where a folder is needed"
    return os.strerror(error.errno) if error.errno else " ".join(str(error).split())
