"""Files that trainers have made: they may be anything that a file system knows, and must block nobody."""

from __future__ import annotations

import errno
import logging
import os
import stat
from pathlib import Path
from typing import IO

logger = logging.getLogger(__name__)

#: What opening says of links in a circle, of sockets (macOS: the last one), and of devices that are none.
_NO_FILE = frozenset({errno.ELOOP, errno.ENXIO, errno.ENODEV, errno.EOPNOTSUPP})


def open_regular(path: Path) -> IO[bytes] | None:
    """Open a regular file, or a link to one, to be read; ``None`` if there is none that can be read.

    Named pipes, sockets, devices and folders are none, nor is what nobody may read or lies below a file.

    :raises OSError: this machine refuses for reasons of its own.
    """
    try:
        # A named pipe that nobody writes to would be waited for otherwise.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return None
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        return None
    return os.fdopen(descriptor, "rb")


def remove_special(folder: Path) -> None:
    """Remove the named pipes, sockets and devices below a folder; links are not followed."""
    if folder.is_symlink():
        return
    for where, _, names in os.walk(folder):
        for name in names:
            path = Path(where, name)
            try:
                if is_special(path.lstat().st_mode):
                    path.unlink()
            except FileNotFoundError:
                continue
            except OSError as error:
                # In a folder that the trainer has made read-only; whoever reads it must take care anyway.
                logger.warning("%s cannot be removed: %s", path, error)


def is_special(mode: int) -> bool:
    """Whether a file's mode is that of a named pipe, socket or device."""
    return stat.S_ISFIFO(mode) or stat.S_ISSOCK(mode) or stat.S_ISCHR(mode) or stat.S_ISBLK(mode)
