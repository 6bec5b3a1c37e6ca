"""The folder that holds everything of one embedded AMT: private to the user who runs it.

Whoever may write there can change what training processes run, and whoever may read there can call the
server (:mod:`airflow_amt.local.credentials`).
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
import os
import stat
import time
from pathlib import Path
from typing import IO

from airflow_amt.exceptions import AmtFieldError

logger = logging.getLogger(__name__)

#: The SQLite file with all jobs.
DATABASE = "amt.sqlite3"
#: File that the server locks while it runs.
LOCK = "lock"
_ENDPOINT = "endpoint"
#: All that lies in a state folder.
_OWN = frozenset(
    {
        DATABASE,
        f"{DATABASE}-shm",
        f"{DATABASE}-wal",
        LOCK,
        _ENDPOINT,
        "credentials",
        "fork-server-home",
        "fork-server.log",
        "s3",
        "server.log",
        "training-jobs",
    }
)
#: How long a server waits for who only looks whether one runs.
_LOOK_SECONDS = 0.5


def prepare(state_dir: Path) -> None:
    """Make the folder, or check that it belongs to this user alone; take reading from everybody else.

    :raises AmtFieldError: it is no folder, somebody else owns it, or others may write to it.
    :raises OSError: it cannot be made.
    """
    with contextlib.suppress(FileExistsError):
        state_dir.mkdir(mode=0o700, parents=True)
    status = state_dir.stat()
    if not stat.S_ISDIR(status.st_mode):
        raise _refusal(state_dir, "a folder", "choose another path")
    if status.st_uid != os.geteuid():
        raise _refusal(
            state_dir,
            f"a folder of the user who runs the server; user {status.st_uid} owns this one, "
            f"user {os.geteuid()} runs the server",
            "choose another --state-dir, or run the server as the owner",
        )
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise _refusal(
            state_dir,
            "a folder that nobody else may write to, because training processes run what lies in it "
            f"(mode {stat.S_IMODE(status.st_mode):04o})",
            f"look at what lies in it, then: chmod 700 {state_dir}",
        )
    _check_parents(state_dir)
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        if any(entry.name not in _OWN for entry in state_dir.iterdir()):
            raise _refusal(
                state_dir,
                "a new or empty folder, or one that an embedded AMT has made; this one holds other things, "
                "and would be closed to everybody else",
                "choose another --state-dir",
            )
        state_dir.chmod(0o700)


def _check_parents(state_dir: Path) -> None:
    """Refuse a folder in whose place others can put another one."""
    for parent in state_dir.resolve().parents:
        mode = parent.stat().st_mode
        if mode & stat.S_IWOTH and not mode & stat.S_ISVTX:
            raise _refusal(
                state_dir,
                f"a folder below folders that not everybody may write to; {parent} has mode "
                f"{stat.S_IMODE(mode):04o}",
                "choose another --state-dir, or take the right to write from others there",
            )


def lock(handle: IO[str]) -> None:
    """Take the lock of a folder for a server.

    :raises BlockingIOError: another server has it.
    """
    until = time.monotonic() + _LOOK_SECONDS
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except BlockingIOError:
            # endpoint_of_running() may have it for a moment.
            if time.monotonic() > until:
                raise
            time.sleep(0.02)


def forget_endpoint(state_dir: Path) -> None:
    """Forget where an earlier server listened."""
    (state_dir / _ENDPOINT).unlink(missing_ok=True)


def note_endpoint(state_dir: Path, endpoint: str) -> None:
    """Note where the server of a folder listens, as far as the disk has room for it."""
    note = state_dir / _ENDPOINT
    try:
        note.write_text(endpoint, encoding="ascii")
    except OSError as error:
        forget_endpoint(state_dir)
        logger.warning(
            "'airflow-amt local credentials' cannot tell the address: %s: %s", note, error.strerror
        )


def endpoint_of_running(state_dir: Path) -> str | None:
    """Return where the server of a folder listens, ``None`` if none runs on it."""
    try:
        with (state_dir / LOCK).open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        with contextlib.suppress(FileNotFoundError):
            return (state_dir / _ENDPOINT).read_text(encoding="ascii")
    except FileNotFoundError:
        pass
    return None


def _refusal(state_dir: Path, limit: str, fix: str) -> AmtFieldError:
    return AmtFieldError("state-dir", str(state_dir), limit, fix)
