"""The fork server's own program: import modules once, then fork a training process for each request.

It is run as a script by :class:`airflow_amt.local.fork_server.ForkServer`, in a process that has nothing of
this package but this file, and imports little of the standard library, because whatever is imported here is
already imported in every training script. The arguments are the socket's file descriptor, the id of the
server process, the name of the marker variable, and the modules.

A training process is forked twice. The one in between leaves at once, so that the training process becomes
a child of the server (the reaper of its descendants), which waits for it as for any other. It does nothing
until the server says so: a request that the server gave up never runs. The script then runs as the
interpreter itself runs scripts, by the same function of the C API: tracebacks, ``SystemExit``, interrupts
and what happens at exit are not imitated but the same.
"""

from __future__ import annotations

import builtins
import ctypes
import gc
import importlib
import json
import os
import signal
import socket
import struct
import sys
import traceback
from types import ModuleType
from typing import Any

_PR_SET_PDEATHSIG = 1
#: Fields 50 and 51 of /proc/<pid>/stat, counted after the command's closing parenthesis.
_ENV_START = 47
_PADDING = b"AIRFLOW_AMT_PADDING="


def main() -> None:
    """Import, serve until the server is gone; in a forked process, run its script."""
    descriptor, server, marker, *modules = sys.argv[1:]
    if not sys.flags.safe_path:
        # The folder of this file: its modules are nobody's business.
        del sys.path[0]
    _end_with(int(server))
    with socket.socket(fileno=int(descriptor)) as control:
        problem = _import(modules)
        if problem:
            _send(control, {"problem": problem})
            os._exit(1)
        slot = _slot(marker)
        _send(control, {"modules": sorted({name.partition(".")[0] for name in sys.modules})})
        # What was imported is never garbage; not looking at it keeps its pages shared.
        gc.collect()
        gc.freeze()
        request = _serve(control, marker, slot)
    _run(request)


def _end_with(server: int) -> None:
    """Have the kernel end this process when the server is gone, however it goes."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != server:
        os._exit(0)


def _import(modules: list[str]) -> str:
    """Import modules; return what stands in the way of forking, empty if nothing does."""
    for name in modules:
        try:
            importlib.import_module(name)
        except BaseException as error:  # noqa: BLE001 - an import may raise anything, SystemExit included
            traceback.print_exc()
            return f"{name} cannot be imported: {type(error).__name__}: {error}"
        threads = len(os.listdir("/proc/self/task"))  # noqa: PTH208 - pathlib is not imported here
        if threads > 1:
            return f"{name} starts threads when it is imported ({threads - 1} here), which a fork would lose"
    return ""


def _slot(marker: str) -> tuple[int, int]:
    """Return where in memory the marker variable is that ``/proc/<pid>/environ`` shows, and its length.

    The kernel shows the memory that held the environment when the program was started. A forked process
    has a copy of that memory, and can write its own marker there.
    """
    with open("/proc/self/stat", encoding="utf-8", errors="replace") as handle:  # noqa: PTH123 - as above
        fields = handle.read().rpartition(")")[2].split()
    start, end = int(fields[_ENV_START]), int(fields[_ENV_START + 1])
    block = b"\0" + ctypes.string_at(start, end - start)
    offset = block.index(b"\0" + marker.encode() + b"=")
    return start + offset, block.index(b"\0", offset + 1) - offset - 1


def _write_marker(slot: tuple[int, int], marker: str, value: str) -> None:
    address, length = slot
    entry = f"{marker}={value}".encode() + b"\0" + _PADDING
    if len(entry) > length:
        raise ValueError(f"the marker is {len(entry) - length} bytes too long: {value}")
    ctypes.memmove(address, entry.ljust(length, b"."), length)


def _serve(control: socket.socket, marker: str, slot: tuple[int, int]) -> dict[str, Any]:
    """Fork for each request, until the server is gone; return, in each forked process, its request."""
    while True:
        header, descriptors, _, _ = socket.recv_fds(control, 4, 2, socket.MSG_CMSG_CLOEXEC)
        if not header:
            # What the imports registered to be done at exit is for those who used them.
            os._exit(0)
        header += _receive(control, 4 - len(header))
        request: dict[str, Any] = json.loads(_receive(control, struct.unpack(">I", header)[0]))
        log, go = descriptors
        answer = _fork(request, log, go, marker, slot)
        if answer is None:
            return request
        os.close(log)
        os.close(go)
        _send(control, answer)


def _fork(
    request: dict[str, Any], log: int, go: int, marker: str, slot: tuple[int, int]
) -> dict[str, Any] | None:
    """Fork a training process; return the answer to the request, ``None`` in the training process."""
    reading, writing = os.pipe()
    between = os.fork()
    if between == 0:
        os.close(reading)
        if _fork_again(request, log, go, writing, marker, slot):
            return None
        os._exit(0)
    os.close(writing)
    # Once it is gone, the training process is a child of the server.
    os.waitpid(between, 0)
    with os.fdopen(reading, "rb") as report:
        text = report.read()
    return (
        dict(json.loads(text)) if text else {"errno": 0, "error": "the forked process died", "filename": None}
    )


def _fork_again(
    request: dict[str, Any], log: int, go: int, report: int, marker: str, slot: tuple[int, int]
) -> bool:
    """Become what the request asks for and fork; return true in the training process, once it may run."""
    try:
        # First, so that whatever goes wrong from here on can be traced to its training job.
        _write_marker(slot, marker, request["environment"][marker])
        os.chdir(request["folder"])
        os.environ.clear()
        os.environ.update(request["environment"])
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.close(log)
        if os.fork() != 0:
            return False
    except (OSError, ValueError) as error:
        # The server raises it as if it had started the process itself.
        number, text = getattr(error, "errno", 0), getattr(error, "strerror", str(error))
        problem = {"errno": number, "error": text, "filename": getattr(error, "filename", None)}
        os.write(report, json.dumps(problem).encode())
        return False
    os.setsid()
    os.write(report, json.dumps({"pid": os.getpid()}).encode())
    os.close(report)
    if not os.read(go, 1):
        # The server has given this request up, or is gone.
        os._exit(1)
    os.close(go)
    return True


def _run(request: dict[str, Any]) -> None:
    """Run the script of a request as ``__main__``, and end as an interpreter that was started with it."""
    script, arguments = request["script"], request["arguments"]
    sys.argv[:] = [script, *arguments]
    sys.orig_argv[:] = request["command"]
    sys.executable = request["command"][0]
    if request["with_folder"]:
        sys.path.insert(0, os.path.dirname(os.path.realpath(script)))  # noqa: PTH120 - as above
    # `random` sees to itself; NumPy does not.
    numpy_random = sys.modules.get("numpy.random")
    if numpy_random is not None:
        numpy_random.seed()
    module = ModuleType("__main__")
    module.__dict__.update(__annotations__={}, __builtins__=builtins)
    sys.modules["__main__"] = module
    # Absolute since Python 3.9, though sys.argv[0] is not.
    path = script if script.startswith("/") else f"{os.getcwd()}/{script}"  # noqa: PTH109
    libc = ctypes.CDLL(None, use_errno=True)
    libc.fopen.restype = ctypes.c_void_p
    file = libc.fopen(os.fsencode(script), b"rbe")
    if not file:
        number = ctypes.get_errno()
        sys.stderr.write(
            f"{sys.executable}: can't open file {path!r}: [Errno {number}] {os.strerror(number)}\n"
        )
        sys.exit(2)
    failed = ctypes.pythonapi.PyRun_SimpleFileExFlags(ctypes.c_void_p(file), os.fsencode(path), 1, None)
    if failed and getattr(sys, "last_type", None) is not KeyboardInterrupt:
        sys.exit(1)
    # After an interrupt the interpreter remembers by itself that it has to end by SIGINT.


def _send(control: socket.socket, answer: dict[str, Any]) -> None:
    body = json.dumps(answer).encode()
    control.sendall(struct.pack(">I", len(body)) + body)


def _receive(control: socket.socket, size: int) -> bytes:
    received = b""
    while len(received) < size:
        chunk = control.recv(size - len(received))
        if not chunk:
            # The server died in the middle of a request.
            os._exit(0)
        received += chunk
    return received


if __name__ == "__main__":
    main()
