"""Python training processes forked from one that has imported their libraries already.

A trainer that imports a large library spends most of a short training on that import. The fork server, a
process of its own (:mod:`airflow_amt.local.fork_main`), imports such modules once; a training process forked
from it has them from the start. For everybody else nothing changes: the forked process is a child of this
one, leads a session of its own, and shows the marker of its training job in ``/proc/<pid>/environ``.

Not every command can be run that way, and what cannot is started fresh: :meth:`ForkServer.obstacle` decides.
If the fork server dies, everything is.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import select
import signal
import socket
import struct
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import processes
from airflow_amt.local.processes import MARKER, TrainingProcess

logger = logging.getLogger(__name__)

#: Longest real time that the imports may take; the server answers nobody meanwhile.
IMPORT_SECONDS = 50.0
#: Longest real time that a fork may take, some milliseconds as a rule. A fork server that is stopped or
#: starved is given up after it, as the server's event loop waits.
FORK_SECONDS = 5.0

#: Variables that the common numerical libraries read when they are loaded, for the size of a thread pool.
#: Threads do not survive a fork, so in the fork server they are all 1.
THREAD_VARIABLES = (
    "BLIS_NUM_THREADS",
    "GOTO_NUM_THREADS",
    "MKL_NUM_THREADS",
    "NUMEXPR_NUM_THREADS",
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
)
#: Variables that Python, the loader or a library reads only once have to be those of the fork server.
_READ_ONCE = (
    "BLIS_",
    "CUDA_",
    "GOMP_",
    "GOTO_",
    "JAX_",
    "KMP_",
    "LANG",
    "LC_",
    "LD_",
    "MALLOC_",
    "MKL_",
    "NUMEXPR_",
    "NVIDIA_",
    "OMP_",
    "OPENBLAS_",
    "PYTHON",
    "PYTORCH_",
    "TF_",
    "TORCH_",
    "TZ",
    "VECLIB_",
    "XLA_",
)
#: Options of the interpreter that a forked process can honour: unbuffered output (training processes have it
#: anyway), and no folder of the script on the module path.
_OPTIONS = frozenset({"-u", "-P"})
#: Bytes for a marker, with room to spare, in the memory that ``/proc/<pid>/environ`` shows.
_LONGEST_MARKER = 400
_MAIN = Path(__file__).with_name("fork_main.py")


class _LostError(Exception):
    """The fork server does not answer."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Script:
    """A command line of the Python interpreter, taken apart."""

    script: str
    arguments: Sequence[str]
    with_folder: bool


def check_modules(modules: Sequence[str]) -> None:
    """Refuse module names that cannot be imported, and platforms without what a fork server needs.

    :raises AmtFieldError: the platform is not Linux, or a name is no module's.
    """
    if modules and sys.platform != "linux":
        raise AmtFieldError(
            "fork-server",
            ",".join(modules),
            f"Linux; this is {sys.platform}",
            "leave it out: training processes are then started fresh",
        )
    for module in modules:
        if not all(part.isidentifier() for part in module.split(".")):
            raise _refusal(modules, f"names of modules; {module!r} is none")


class ForkServer:
    """Starts the fork server and has it fork training processes.

    :param modules: what it imports.
    :param environment: variables that all training processes have in common, and its own ``HOME``.
    :param identity: of the state folder.
    :param log: the file that gets what it and the imports write.
    :raises AmtFieldError: a module cannot be imported, starts threads, or takes too long.
    """

    def __init__(
        self, modules: Sequence[str], *, environment: Mapping[str, str], identity: str, log: Path
    ) -> None:
        self._environment = {
            **environment,
            **dict.fromkeys(THREAD_VARIABLES, "1"),
            # As trainer.prepare() sets it for every training process.
            "PYTHONUNBUFFERED": "1",
            # Long enough that the marker of a training job can take its place.
            MARKER: processes.marker_value(identity, "fork-server/").ljust(_LONGEST_MARKER, "."),
        }
        self._obstacles: set[str] = set()
        self._loaded: frozenset[str] = frozenset()
        self._control, theirs = socket.socketpair()
        with theirs, log.open("ab") as output:
            command = [sys.executable, str(_MAIN), str(theirs.fileno()), str(os.getpid()), MARKER, *modules]
            self._process = subprocess.Popen(
                command,
                env=self._environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                pass_fds=[theirs.fileno()],
                start_new_session=True,
            )
        self.pid = self._process.pid
        self._alive = True
        began = time.monotonic()
        try:
            answer = self._receive(IMPORT_SECONDS)
        except _LostError as error:
            self.close()
            raise _refusal(
                modules,
                f"modules that can be imported within {IMPORT_SECONDS:g} s; {error}; see {log}",
            ) from None
        except BaseException:
            self.close()
            raise
        if "problem" in answer:
            self.close()
            raise _refusal(modules, f"modules to fork training processes with; {answer['problem']}")
        self._loaded = frozenset(answer["modules"])
        logger.info(
            "The fork server has imported %s in %.1f s; its process is %d",
            ", ".join(modules),
            time.monotonic() - began,
            self.pid,
        )

    def watch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Notice its end at once, not only when the next training process is to be forked."""
        processes.when_exited(self.pid, lambda: self._lost("it exited"), loop=loop)

    def close(self) -> None:
        """End it; training processes that were forked live on."""
        if self._alive:
            self._alive = False
            # It may be stopped, or importing still.
            processes.signal_group(self.pid, signal.SIGKILL)
            self._process.wait()
            self._control.close()

    def start(
        self, command: Sequence[str], *, environment: Mapping[str, str], folder: Path, log: Path
    ) -> TrainingProcess | None:
        """Fork a training process that runs a Python script.

        The parameters are those of :func:`airflow_amt.local.processes.start`.

        :return: ``None`` if the command has to be started fresh; why is logged, each reason once.
        :raises OSError: the process cannot be forked, or its folder cannot be entered.
        """
        if not self._alive:
            return None
        script = self._taken_apart(command, environment, folder)
        if isinstance(script, str):
            if script not in self._obstacles:
                self._obstacles.add(script)
                logger.info("Not every training process can be forked: %s", script)
            return None
        request = {
            "command": list(command),
            "script": script.script,
            "arguments": list(script.arguments),
            "with_folder": script.with_folder,
            "folder": str(folder),
            "environment": dict(environment),
        }
        go_read, go = os.pipe()
        try:
            with os.fdopen(go_read, "rb") as theirs, log.open("ab") as output:
                answer = self._ask(request, [output.fileno(), theirs.fileno()])
            if "pid" not in answer:
                raise OSError(answer["errno"], answer["error"], answer["filename"])
            pid: int = answer["pid"]
            _check_is_child(pid)
            # The process may have been killed already; SIGPIPE is ignored in Python.
            with contextlib.suppress(BrokenPipeError):
                os.write(go, b"!")
        except _LostError as error:
            self._lost(str(error))
            return None
        finally:
            # Without the word to go, whatever was forked ends here.
            os.close(go)
        return TrainingProcess(pid, lambda: os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]))

    def obstacle(self, command: Sequence[str], environment: Mapping[str, str], folder: Path) -> str | None:
        """Say why a command cannot be forked, ``None`` if it can.

        It has to be a Python script, run by this very interpreter with no option but ``-u`` and ``-P``, in
        an environment that does not differ in anything that is read only once: when Python starts, or when
        a library is loaded. And no module next to it may have the name of one that is imported already.
        """
        taken_apart = self._taken_apart(command, environment, folder)
        return taken_apart if isinstance(taken_apart, str) else None

    def _taken_apart(
        self, command: Sequence[str], environment: Mapping[str, str], folder: Path
    ) -> _Script | str:
        program, *words = command
        if not _is_this_interpreter(program):
            return f"{program} is not {sys.executable}"
        options = []
        while words and words[0].startswith("-"):
            options.append(words.pop(0))
        refused = sorted(set(options) - _OPTIONS)
        if refused:
            return f"the interpreter's option {refused[0]}"
        script = words.pop(0) if words else ""
        path = folder / script
        if path.suffix != ".py" or not path.is_file() or not os.access(path, os.R_OK):
            return f"{script or 'nothing'} is not a Python script that can be read"
        obstacle = self._obstacle_in(environment)
        if obstacle is not None:
            return obstacle
        if any("\0" in word for word in command):
            return "a NUL character in an argument"
        with_folder = "-P" not in options and not environment.get("PYTHONSAFEPATH")
        if with_folder:
            own = path.resolve().parent
            for name in sorted(_top_level_modules(own) & self._loaded):
                return f"the script's own module {name!r}, as another {name!r} is imported already"
        return _Script(script=script, arguments=words, with_folder=with_folder)

    def _obstacle_in(self, environment: Mapping[str, str]) -> str | None:
        for name in sorted(environment.keys() | self._environment.keys()):
            if not name.startswith(_READ_ONCE):
                continue
            theirs, ours = environment.get(name), self._environment.get(name)
            if theirs != ours and not (theirs is None and name in THREAD_VARIABLES):
                return f"{name} is {theirs!r}, and {ours!r} in the fork server"
        if len(environment.get(MARKER, "")) > _LONGEST_MARKER // 2:
            return "a very long name of a training job"
        for name, value in environment.items():
            if not name or "=" in name or "\0" in name + value:
                return f"the name or value of the variable {name!r}"
        return None

    def _ask(self, request: Mapping[str, Any], descriptors: Sequence[int]) -> dict[str, Any]:
        body = json.dumps(request).encode()
        try:
            self._control.settimeout(FORK_SECONDS)
            socket.send_fds(self._control, [struct.pack(">I", len(body))], descriptors)
            self._control.sendall(body)
        except OSError as error:
            raise _LostError(f"it takes no request: {error}") from None
        return self._receive(FORK_SECONDS)

    def _receive(self, seconds: float) -> dict[str, Any]:
        """Return its next answer."""
        deadline = time.monotonic() + seconds
        received = b""
        while len(received) < 4 or len(received) < 4 + struct.unpack(">I", received[:4])[0]:
            ready, _, _ = select.select([self._control], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise _LostError(f"it said nothing for {seconds:g} s")
            try:
                chunk = self._control.recv(65_536)
            except OSError as error:
                raise _LostError(f"it said nothing: {error}") from None
            if not chunk:
                raise _LostError("it died")
            received += chunk
        answer: dict[str, Any] = json.loads(received[4:])
        return answer

    def _lost(self, how: str) -> None:
        if self._alive:
            logger.warning("The fork server is lost: %s; training processes are started fresh", how)
            self.close()


def _check_is_child(pid: int) -> None:
    try:
        os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        raise _LostError("what it forks is not adopted by this process") from None


def _refusal(modules: Sequence[str], limit: str) -> AmtFieldError:
    return AmtFieldError(
        "fork-server", ",".join(modules), limit, "as in --fork-server sklearn.svm,sklearn.ensemble"
    )


def _is_this_interpreter(program: str) -> bool:
    """Whether a program is the interpreter that runs this, by whatever name, in the same environment."""
    # A virtual environment's interpreter is a link to one outside: what counts is the folder of the link.
    theirs, ours = Path(program), Path(sys.executable)
    try:
        return theirs.samefile(ours) and theirs.parent.samefile(ours.parent)
    except OSError:
        return False


def _top_level_modules(folder: Path) -> set[str]:
    """Return the names of the modules and packages in a folder."""
    names = set()
    for entry in folder.iterdir():
        if entry.suffix in (".py", ".pyc", ".so"):
            names.add(entry.name.partition(".")[0])
        elif (entry / "__init__.py").is_file():
            names.add(entry.name)
    return names
