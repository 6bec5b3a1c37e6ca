"""Starting, watching and ending training processes so that none is ever left behind.

Each training process leads a session of its own, and carries a marker in its environment. What it starts is
found again in three ways: by its process group; as an adopted child, with its marker or without, because this
process is made the reaper of its orphans (Linux); and, when a server starts on a state folder that another
one left, by the marker, or by a tag that outlives a cleared environment (Linux). The exit of a training
process is seen at once (a pidfd in the event loop; a waiting thread where there is none), and its group is
killed while the leader is still a zombie, so that its id cannot have been given to anybody else.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import hashlib
import logging
import os
import resource
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import psutil

logger = logging.getLogger(__name__)

#: Environment variable that says which state folder and training job a process belongs to.
MARKER = "AIRFLOW_AMT_TRAINING_PROCESS"

_PR_SET_CHILD_SUBREAPER = 36
#: The tag of a state folder is this and 60 bits of its identity: microseconds, and no limit for anybody.
_TAG = 2**61
#: Position of ``starttime`` in ``/proc/<pid>/stat``, counted from behind the name.
_STARTED = 19


def become_reaper() -> bool:
    """Make orphans of training processes children of this process; say whether that worked (Linux)."""
    if sys.platform != "linux":
        return False
    libc = ctypes.CDLL(None, use_errno=True)
    return bool(libc.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0)


def tag_descendants(identity: str) -> bool:
    """Tag this process and all that it will start as a state folder's; say whether that worked (Linux).

    The tag is a soft limit on the CPU time of real-time processes, which nobody else sets as a rule. Unlike
    an environment variable it is inherited through ``env -i``, and unlike a session through ``setsid``.
    """
    if sys.platform != "linux":
        return False
    _, hard = resource.getrlimit(resource.RLIMIT_RTTIME)
    try:
        resource.setrlimit(resource.RLIMIT_RTTIME, (_tag_of(identity), hard))
    except (ValueError, OSError) as error:
        logger.info("Training processes carry no tag but their environment: %s", error)
        return False
    return True


def _tag_of(identity: str) -> int:
    return _TAG + int.from_bytes(hashlib.sha256(identity.encode()).digest()[:8]) % 2**60


class TrainingProcess:
    """A started training process.

    :param pid: its id, which is also its process group's; it is a child of this process.
    :param wait: waits for its exit, reaps it and returns its exit status.
    """

    def __init__(self, pid: int, wait: Callable[[], int]) -> None:
        self.pid = pid
        self._wait = wait
        #: Exit status once it is over: 0 to 255, or minus the number of the signal that ended it.
        self.exit_status: int | None = None

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the whole process group, if the leader has not been reaped yet."""
        if self.exit_status is None:
            signal_group(self.pid, number)

    def reap(self) -> int:
        """Kill what is left of the group and collect the exit status of the leader, which has exited."""
        # The leader is a zombie: its id, and so the group's, still belongs to it.
        signal_group(self.pid, signal.SIGKILL)
        self.exit_status = self._wait()
        return self.exit_status


def start(
    command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
) -> TrainingProcess:
    """Start a command in a session of its own, with its output going to a log file.

    :raises OSError: the command cannot be executed.
    """
    with log.open("ab") as output:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    return TrainingProcess(process.pid, process.wait)


def when_exited(pid: int, callback: Callable[[], None], *, loop: asyncio.AbstractEventLoop) -> None:
    """Call back once, in the event loop, when a child has exited; it is not reaped."""
    if not hasattr(os, "pidfd_open"):
        threading.Thread(target=_wait, args=(pid, callback, loop), name=f"wait-{pid}", daemon=True).start()
        return
    descriptor = os.pidfd_open(pid)

    def exited() -> None:
        loop.remove_reader(descriptor)
        os.close(descriptor)
        callback()

    loop.add_reader(descriptor, exited)


def _wait(pid: int, callback: Callable[[], None], loop: asyncio.AbstractEventLoop) -> None:
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    loop.call_soon_threadsafe(callback)


def signal_group(group: int, number: signal.Signals) -> bool:
    """Send a signal to a process group; say whether there was anybody to get it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):  # macOS: EPERM for a group of zombies
        return False
    return True


def start_time(pid: int) -> float | None:
    """Return when a process started, as seconds since the epoch, ``None`` if it is gone."""
    try:
        return psutil.Process(pid).create_time()
    except psutil.NoSuchProcess:
        return None


def marker_value(identity: str, training_job: str) -> str:
    """Return what :data:`MARKER` is set to for a training job of a state folder."""
    return f"{identity}/{training_job}"


def kill_orphans(
    is_over: Callable[[str], bool] | None = None,
    *,
    known: frozenset[int] = frozenset(),
    leaders: Collection[int] = (),
) -> int:
    """Kill adopted children whose training job is over, and reap those that have exited.

    A child without the marker has dropped it from its environment, or does not let it be read. It can belong
    to none of the training jobs that run if all of these were started after it; then it is killed too.
    Only process 1 of a container leaves it alone: that one adopts everybody's orphans, and its end is theirs.

    :param is_over: says of a marker whether its training job is over; all are if left out.
    :param known: children that are watched otherwise, or are none of ours.
    :param leaders: the training processes of the training jobs that are not over.
    :return: how many were found that had to be killed; call again until it is 0, as what they had started
        is adopted when they die.
    """
    adopts_everybody = os.getpid() == 1
    killed: set[int] = set()
    reaped = True
    while reaped:
        # Once more after one was reaped: what it had started may have been adopted just after the look.
        reaped = False
        for pid in children():
            if pid in known:
                continue
            with contextlib.suppress(ChildProcessError):
                if os.waitpid(pid, os.WNOHANG)[0] == pid:
                    reaped = True
                    continue
            marker = _marker_of(pid)
            if marker is not None:
                over = is_over is None or is_over(marker)
            else:
                over = not adopts_everybody and (is_over is None or _is_older(pid, leaders))
            if over and _kill(pid):
                killed.add(pid)
    return len(killed)


def kill_marked(identity: str) -> int:
    """Kill every process of this user that carries the marker or tag of a state folder; return how many.

    This process and those that it descends from are left alone.
    """
    spared = {os.getpid(), *(parent.pid for parent in psutil.Process().parents())}
    killed = 0
    for process in psutil.process_iter():
        if process.pid in spared or not _belongs_to(process, identity):
            continue
        try:
            process.kill()
        except psutil.NoSuchProcess:
            continue
        except psutil.AccessDenied:
            logger.warning("Process %d, left by an earlier server, may not be killed", process.pid)
            continue
        killed += 1
    return killed


def _belongs_to(process: psutil.Process, identity: str) -> bool:
    """Whether a process that has not exited carries the marker or the tag of a state folder."""
    if (_marker_of(process.pid) or "").startswith(f"{identity}/"):
        return True
    if sys.platform != "linux":
        return False
    try:
        tagged = process.rlimit(psutil.RLIMIT_RTTIME)[0] == _tag_of(identity)
        # A zombie still has its limits, but nothing is left of it to be killed.
        return tagged and process.status() != psutil.STATUS_ZOMBIE
    except (psutil.Error, OSError):
        return False


def kill_leftover(pid: int, started: float | None) -> bool:
    """Kill the group of a training process of an earlier server, if the process is still that one.

    :param pid: its id.
    :param started: its start time as :func:`start_time` gave it.
    """
    now = start_time(pid)
    if now is None or started is None or abs(now - started) > 0.05:
        return False
    return signal_group(pid, signal.SIGKILL)


def children() -> list[int]:
    """Return the ids of this process's children."""
    path = Path(f"/proc/self/task/{os.getpid()}/children")
    try:
        # Training processes are started by the main thread; orphans are adopted by it too.
        return [int(pid) for pid in path.read_text(encoding="ascii").split()]
    except OSError:
        return [child.pid for child in psutil.Process().children()]


def _marker_of(pid: int) -> str | None:
    try:
        return psutil.Process(pid).environ().get(MARKER)
    except (psutil.Error, OSError):
        return None


def _is_older(pid: int, others: Collection[int]) -> bool:
    """Whether a process was started before all of some others, so that it descends from none of them."""
    started = _start_ticks(pid)
    if started is None:
        return False
    return all(other is None or started < other for other in map(_start_ticks, others))


def _start_ticks(pid: int) -> int | None:
    """Return when a process was started, in a unit that no change of the system's clock moves (Linux)."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # The name, which comes second and in brackets, may hold anything.
    return int(text.rpartition(")")[2].split()[_STARTED])


def _kill(pid: int) -> bool:
    """Kill a child; say whether that was possible."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    except PermissionError:
        logger.warning("Process %d, left by a training job that is over, may not be killed", pid)
        return False
    return True
