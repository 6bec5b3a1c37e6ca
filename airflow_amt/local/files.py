"""Files that others have made: they may be anything that a file system knows, and must block nobody."""

from __future__ import annotations

import errno
import fcntl
import logging
import os
import shutil
import stat
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

#: What opening says where no file is or may be read, of links in a circle, of names that are too long, of
#: sockets (macOS: the last one), and of devices that are none.
_NO_FILE = frozenset(
    {
        errno.ENOENT,
        errno.ENOTDIR,
        errno.EACCES,
        errno.EPERM,
        errno.ELOOP,
        errno.ENAMETOOLONG,
        errno.ENXIO,
        errno.ENODEV,
        errno.EOPNOTSUPP,
    }
)

#: Linux's request to let one file have the blocks of another one (``linux/fs.h``).
_FICLONE = 0x40049409
_CHUNK = 1024 * 1024
_MOST_FOLDER_LINKS = 10_000


def is_file(path: Path) -> bool:
    """Whether a path leads to a regular file, as far as this machine says."""
    return stat.S_ISREG(_mode(path))


def is_folder(path: Path) -> bool:
    """Whether a path leads to a folder, as far as this machine says."""
    return stat.S_ISDIR(_mode(path))


def _mode(path: Path) -> int:
    # pathlib's own questions raise what the path's owner can cause: a name too long, a folder closed to us.
    try:
        return path.stat().st_mode
    except OSError:
        return 0


def open_file(path: Path) -> IO[bytes]:
    """Open a regular file, or a link to one, to be read.

    :raises OSError: there is none, it may not be read, or it is a folder, named pipe, socket or device.
    """
    # A named pipe that nobody writes to would be waited for otherwise.
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.ENXIO, "It is no regular file", str(path))
    return os.fdopen(descriptor, "rb")


def open_regular(path: Path) -> IO[bytes] | None:
    """Open a regular file, or a link to one, to be read; ``None`` if there is none that can be read.

    Named pipes, sockets, devices and folders are none, nor is what nobody may read or lies below a file.

    :raises OSError: this machine refuses for reasons of its own.
    """
    try:
        return open_file(path)
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise


def remove_special(folder: Path) -> None:
    """Remove the named pipes, sockets and devices below a folder; links are not followed."""
    if folder.is_symlink():
        return
    for found in _each_folder(folder):
        for entry in found:
            try:
                if is_special(entry.stat(follow_symlinks=False).st_mode):
                    Path(entry.path).unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                # In a folder that the trainer has made read-only; whoever reads it must take care anyway.
                logger.warning("%s cannot be removed: %s", entry.path, error)


def _each_folder(folder: Path) -> Iterator[list[os.DirEntry[str]]]:
    """Yield the entries of a folder and of each folder below it, however deep; links are not followed.

    A folder that cannot be read has none.
    """
    waiting = [str(folder)]
    while waiting:
        try:
            with os.scandir(waiting.pop()) as entries:
                found = list(entries)
        except OSError:
            continue
        yield found
        waiting += [entry.path for entry in found if entry.is_dir(follow_symlinks=False)]


def is_special(mode: int) -> bool:
    """Whether a file's mode is that of a named pipe, socket or device."""
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)


def walk(
    folder: Path,
    *,
    allows: Callable[[Path], bool],
    refused: Callable[[Path, Path], None],
    strict: bool,
    prefix: str = "",
    after: str = "",
) -> Iterator[tuple[str, Path]]:
    """Yield key and path of the regular files below a folder, in the order of their keys.

    Links are followed if ``allows`` says so; a link that leads back to a folder it is in is not. Folders are
    read one by one, so a caller that stops early does not pay for the rest.

    :param folder: the folder; the key of a file is its path below it, with slashes.
    :param allows: whether a path without links may be reached.
    :param refused: told of each link that may not be followed, and of where it leads.
    :param strict: raise what a folder that cannot be read says, instead of leaving it out.
    :param prefix: leave out keys that do not begin so.
    :param after: leave out keys up to this one.
    :raises OSError: a folder cannot be read, or links make a maze of more than 10,000 folders.
    """
    start = Path(os.path.realpath(folder))
    followed = 0
    open_folders = {start}
    stack = [(start, _entries(folder, strict), "")]
    while stack:
        real, entries, head = stack[-1]
        entry = next(entries, None)
        if entry is None:
            stack.pop()
            open_folders.discard(real)
            continue
        path, is_folder, is_link = entry
        key = f"{head}{path.name}"
        if is_folder:
            key += "/"
            if not (key.startswith(prefix) or prefix.startswith(key)):
                continue
            if key <= after and not after.startswith(key):
                continue
        elif key <= after or not key.startswith(prefix):
            continue
        target = Path(os.path.realpath(path)) if is_link else real / path.name
        # Folders are asked for as well without a link: one of them may be the server's own.
        if (is_link or is_folder) and not allows(target):
            if is_link:
                refused(path, target)
            continue
        if not is_folder:
            yield key, path
        elif target not in open_folders:
            followed += is_link
            if followed > _MOST_FOLDER_LINKS:
                if strict:
                    raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(folder))
                return
            open_folders.add(target)
            stack.append((target, _entries(path, strict), key))


def _entries(folder: Path, strict: bool) -> Iterator[tuple[Path, bool, bool]]:
    """Return the folders and regular files in a folder: path, whether it is a folder, whether a link."""
    found = []
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                try:
                    is_folder = entry.is_dir()
                    if is_folder or entry.is_file():
                        found.append((folder / entry.name, is_folder, entry.is_symlink()))
                except OSError:
                    continue  # a link that leads nowhere
    except OSError:
        if strict:
            raise
    # A key that goes on behind a folder's name comes after "name-" and before "name0".
    return iter(sorted(found, key=lambda one: f"{one[0].name}/" if one[1] else one[0].name))


def copy(source: Path, target: Path) -> None:
    """Copy a regular file; where the file system can, both share their blocks until one is changed.

    :raises OSError: it is none, or cannot be read or written.
    """
    with open_file(source) as opened:
        make_folder(target.parent)
        with target.open("wb") as copied:
            _copy(opened, copied)


def _copy(source: IO[bytes], target: IO[bytes]) -> None:
    if sys.platform == "linux":
        try:
            fcntl.ioctl(target.fileno(), _FICLONE, source.fileno())
            return
        except OSError as error:
            # The file system cannot, or they are on two of them.
            logger.debug("%s is copied in full: %s", source.name, error)
    shutil.copyfileobj(source, target, _CHUNK)


def make_folder(path: Path) -> None:
    """Make a folder and those above it, however deep; it may be there already.

    :raises OSError: this machine refuses.
    """
    missing = []
    while not path.is_dir():
        missing.append(path)
        path = path.parent
    for one in reversed(missing):
        one.mkdir(exist_ok=True)


def remove(path: Path) -> None:
    """Remove a folder with all that is in it, however deep, or a link; nothing if it is missing.

    :raises OSError: this machine refuses.
    """
    if path.is_symlink() or is_file(path):
        path.unlink()
        return
    folders = [path] if path.is_dir() else []
    for folder in folders:
        # A trainer may have taken its own rights away.
        if not os.access(folder, os.R_OK | os.W_OK | os.X_OK):
            folder.chmod(stat.S_IRWXU)
        with os.scandir(folder) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    folders.append(Path(entry.path))
                else:
                    Path(entry.path).unlink()
    for folder in reversed(folders):
        folder.rmdir()
