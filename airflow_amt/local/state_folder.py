"""The folder that holds everything of one embedded AMT: private to the user who runs it.

Whoever may write there can change what training processes run, and whoever may read there can call the
server (:mod:`airflow_amt.local.credentials`).
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import stat
from pathlib import Path

from airflow_amt.exceptions import AmtFieldError

#: File that the server locks while it runs.
LOCK = "lock"
_ENDPOINT = "endpoint"


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
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        state_dir.chmod(0o700)


def note_endpoint(state_dir: Path, endpoint: str) -> None:
    """Note where the server of a folder listens."""
    (state_dir / _ENDPOINT).write_text(endpoint, encoding="ascii")


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
