"""A forked training process is no different from a fresh one, but for the time its imports take."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import RunningServer, ServerDidNotStartError, fork_server, images, running
from airflow_amt.local.fork_server import THREAD_VARIABLES, ForkServer, check_modules
from airflow_amt.local.launcher import start
from airflow_amt.local.processes import MARKER
from tests.local.support import (
    client_of,
    create_request,
    training_jobs,
    training_processes,
    unique,
    wait_for_end,
    wait_until,
)

pytestmark = [
    pytest.mark.local,
    pytest.mark.skipif(sys.platform != "linux", reason="there is a fork server on Linux only"),
]

ROOT = Path(__file__).parents[2]
#: What training processes have in common, without the thread counts a developer may have set.
ENVIRONMENT = {
    **{name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES},
    "PYTHONUNBUFFERED": "1",
    MARKER: "test/us-east-1/job",
}

#: Small scripts, each run fresh and forked: the exit status and every byte of output have to be the same.
SCRIPTS: Mapping[str, str] = {
    "ends": "print('trained')",
    "exit status": "import sys; sys.exit(3)",
    "exit status beyond a byte": "import sys; sys.exit(256 + 7)",
    "negative exit status": "import sys; sys.exit(-1)",
    "exit with words": "import sys; sys.exit('no data')",
    "exit with nothing": "import sys; print('a'); sys.exit()",
    "exit in a function": "def leave():\n    raise SystemExit(4)\nleave()",
    "hard exit": "import os; print('a', end='', flush=True); os._exit(5)",
    "uncaught": "def fail(x):\n    return 1 / x\n\nprint('a')\nfail(0)",
    "uncaught, chained": (
        "try:\n    {}['a']\nexcept KeyError as error:\n    raise ValueError('no a') from error\n"
    ),
    "uncaught of a class of its own": "class Mine(Exception):\n    pass\nraise Mine('x')",
    "group of exceptions": "raise ExceptionGroup('two', [ValueError(1), TypeError(2)])",
    "syntax error": "print('never'\nx = = 1\n",
    "tab error": "if True:\n\tx = 1\n        y = 2\n",
    "missing module": "import no_such_module_here",
    "recursion": (
        "import sys\nsys.tracebacklimit = 3\ndef down():\n    down()\ntry:\n    down()\n"
        "except RecursionError as e:\n    print(e)\n"
    ),
    "interrupt": "import atexit; atexit.register(print, 'bye'); raise KeyboardInterrupt",
    "interrupt by signal": "import os, signal, time; os.kill(os.getpid(), signal.SIGINT); time.sleep(60)",
    "terminated": "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
    "killed": "import os, signal; os.kill(os.getpid(), signal.SIGKILL)",
    "aborted": "import os; os.abort()",
    "broken pipe": "import os\nr, w = os.pipe()\nos.close(r)\nos.write(w, b'x')",
    "at exit": (
        "import atexit, sys\natexit.register(print, 'one')\natexit.register(lambda: 1 / 0)\n"
        "atexit.register(print, 'three')\nsys.exit(6)"
    ),
    "not flushed": "import sys; sys.stdout.write('a'); sys.stderr.write('b'); sys.stdout.write('c')",
    "flush at exit": "handle = open('out.txt', 'w'); handle.write('kept'); print('written')",
    "threads": (
        "import threading, time\n"
        "threading.Thread(target=lambda: (time.sleep(0.2), print('late'))).start()\n"
        "threading.Thread(target=time.sleep, args=(60,), daemon=True).start()\n"
        "print(len(threading.enumerate()), threading.current_thread() is threading.main_thread())"
    ),
    "error in a thread": (
        "import threading\nt = threading.Thread(target=lambda: 1 / 0, name='t')\nt.start()\nt.join()"
    ),
    "excepthook": "import sys\nsys.excepthook = lambda *a: print('hooked', a[0].__name__)\n1 / 0",
    "error in a finaliser": "class A:\n    def __del__(self): 1 / 0\na = A()\ndel a\nprint('on')",
    "warning": "import warnings\ndef f():\n    warnings.warn('old')\nf()",
    "logging": "import logging; logging.warning('one'); logging.getLogger('x').error('two')",
    "main module": (
        "import __main__, sys\n"
        "print(sorted(vars()), __name__, __file__, __spec__, __package__, __doc__)\n"
        "print(type(__builtins__).__name__, type(__loader__).__name__, __main__ is sys.modules['__main__'])\n"
        "x = 1\nprint(__main__.x)"
    ),
    "docstring and annotations": "'''Words.'''\nx: int = 1\nprint(__doc__, __annotations__)",
    "future statements do not leak in": "def f(x: UndefinedName) -> None: ...",
    "what it is told": (
        "import os, sys\n"
        "print(sys.argv, sys.orig_argv, sys.path, os.getcwd(), sys.executable, sys.prefix, sys.flags)\n"
        "print(sorted(os.environ.items()), os.getenv('GREETING'))\n"
        "import subprocess\n"
        "out = subprocess.run(['env'], capture_output=True, text=True).stdout\n"
        "print(sorted(out.splitlines()))"
    ),
    "standard streams": (
        "import os, sys\n"
        "for s in (sys.stdin, sys.stdout, sys.stderr):\n"
        "    print(s.name, s.mode, s.encoding, s.errors, s.line_buffering, s.write_through, s.isatty())\n"
        "print(repr(sys.stdin.read()), sys.stdout is sys.__stdout__)\n"
        "print('\\u00e9\\u4e2d', '\\udc80'.encode(errors='surrogateescape'))\n"
        "os.write(1, b'raw\\n'); os.write(2, b'raw too\\n')\n"
        "print(sorted(os.listdir('/proc/self/fd'))[:-1])"
    ),
    "process": (
        "import os, signal, threading\n"
        "print(os.getsid(0) == os.getpid(), os.getpgid(0) == os.getpid(), oct(os.umask(0)))\n"
        "print(len(os.listdir('/proc/self/task')), threading.active_count())\n"
        "print([(n.name, str(signal.getsignal(n))) for n in sorted(signal.valid_signals())\n"
        "       if isinstance(n, signal.Signals)])\n"
        "print(signal.pthread_sigmask(signal.SIG_BLOCK, []))\n"
        "import resource; print([resource.getrlimit(n) for n in range(16)])"
    ),
    "encoding of the source": "# -*- coding: latin-1 -*-\nprint('plain')",
    "source of itself": "import inspect\ndef f():\n    return 1\nprint(inspect.getsource(f))",
    "pickles its own classes": (
        "import pickle\nclass A:\n    def __init__(self): self.x = 1\n"
        "print(pickle.loads(pickle.dumps(A())).x, A)"
    ),
    "multiprocessing": (
        "import multiprocessing, os\n"
        "def square(x):\n    return x * x\n"
        "if __name__ == '__main__':\n"
        "    for method in ('fork', 'spawn', 'forkserver'):\n"
        "        with multiprocessing.get_context(method).Pool(2) as pool:\n"
        "            print(method, pool.map(square, [1, 2, 3]))\n"
    ),
    "process pool": (
        "from concurrent.futures import ProcessPoolExecutor\n"
        "def double(x):\n    return 2 * x\n"
        "if __name__ == '__main__':\n"
        "    with ProcessPoolExecutor(2) as pool:\n        print(list(pool.map(double, [1, 2])))\n"
    ),
    "neighbour": "import neighbour; print(neighbour.__file__, neighbour.VALUE)",
    "preloaded module": "import preloaded; print(preloaded.VALUE, preloaded.__name__)",
    "preloaded module at exit": "import preloaded; print('end')",
    "asyncio": "import asyncio\nasync def f():\n    await asyncio.sleep(0.01)\n    1 / 0\nasyncio.run(f())",
}
#: Command lines that are not just ``python <script>.py``.
COMMANDS: Mapping[str, list[str]] = {
    "dot": ["./train.py", "a b", "--x", "é"],
    "sub-folder": ["sub/train.py"],
    "up and down": ["sub/../train.py"],
    "absolute": ["{folder}/sub/train.py"],
    "link": ["link.py"],
    "without folder": ["-P", "train.py", "-P"],
    "unbuffered": ["-u", "train.py"],
}
WHERE = "import sys\nprint(__file__, sys.argv, sys.path)\n1 / 0\n"


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What became of each script and command line, fresh and forked."""
    folder = tmp_path_factory.mktemp("scripts")
    modules = folder / "modules"
    modules.mkdir()
    (modules / "preloaded.py").write_text(
        "import atexit, logging, random, sys, threading\nVALUE = 7\n"
        # At the end of scripts that use it: it is imported in all that are forked.
        "atexit.register(lambda: 'preloaded' in vars(sys.modules['__main__']) and print('preloaded: bye'))\n"
    )
    environment = {**ENVIRONMENT, "PYTHONPATH": str(modules), "GREETING": "hé"}
    cases = {}
    for number, (name, text) in enumerate(SCRIPTS.items()):
        place = folder / str(number)
        place.mkdir()
        (place / "train.py").write_text(text)
        (place / "neighbour.py").write_text("VALUE = 'next door'\n")
        command = [sys.executable, "train.py", "--rate", "0.5", "x y"]
        cases[name] = {"command": command, "environment": environment, "folder": str(place)}
    place = folder / "commands"
    (place / "sub").mkdir(parents=True)
    (place / "elsewhere").mkdir()
    for path in ("train.py", "sub/train.py", "elsewhere/linked.py"):
        (place / path).write_text(WHERE)
    (place / "link.py").symlink_to(place / "elsewhere" / "linked.py")
    for name, words in COMMANDS.items():
        command = [sys.executable, *(word.format(folder=place) for word in words)]
        cases[name] = {"command": command, "environment": environment, "folder": str(place)}
    order = {"modules": ["preloaded"], "folder": str(folder), "cases": list(cases.values())}
    done = subprocess.run(
        [sys.executable, "-m", "tests.local.fork_driver"],
        cwd=ROOT,
        env=environment,
        input=json.dumps(order),
        capture_output=True,
        text=True,
        timeout=180,
    )
    assert done.returncode == 0, done.stderr
    assert (folder / "fork-server.log").read_text() == ""
    return dict(zip(cases, json.loads(done.stdout), strict=True))


@pytest.mark.parametrize("name", [*SCRIPTS, *COMMANDS])
def test_exit_status_and_output_are_those_of_a_fresh_process(outcomes: dict[str, Any], name: str) -> None:
    fresh, forked = outcomes[name]

    assert forked is not None
    assert _without_addresses(forked) == _without_addresses(fresh)


def _without_addresses(outcome: list[Any]) -> tuple[int, str]:
    return outcome[0], re.sub(r" at 0x[0-9a-f]+>", ">", outcome[1])


def test_the_table_is_not_of_one_kind(outcomes: dict[str, Any]) -> None:
    statuses = {fresh[0] for fresh, _ in outcomes.values()}
    assert {0, 1, 3, 4, 5, 6, 7, 255, -signal.SIGINT, -signal.SIGTERM, -signal.SIGKILL} <= statuses
    assert "Traceback (most recent call last):" in outcomes["uncaught"][0][1]
    assert "preloaded: bye" in outcomes["preloaded module at exit"][0][1]


# --- what can be forked ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def imported(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ForkServer]:
    """A fork server that forks nothing."""
    with pytest.MonkeyPatch.context() as patch:
        # What other tests have imported may have set variables in this process (scikit-learn sets KMP_...).
        for name in os.environ.keys() - ENVIRONMENT.keys():
            patch.delenv(name)
        server = ForkServer(
            ["json", "email.message"],
            environment=os.environ,
            identity="test",
            log=tmp_path_factory.mktemp("log") / "fork-server.log",
        )
    yield server
    server.close()


def environment_of(**more: str) -> dict[str, str]:
    return {**ENVIRONMENT, **more}


@pytest.mark.parametrize(
    ("command", "environment", "obstacle"),
    [
        (["{python}", "train.py", "--a", "1"], {}, None),
        (["{python}", "-u", "-P", "train.py"], {}, None),
        (["{python}", "train.py"], {"GREETING": "hello", "OMP_NUM_THREADS": "1"}, None),
        (["sh", "train.py"], {}, "sh is not"),
        (["/bin/sh", "train.sh"], {}, "/bin/sh is not"),
        (["{base}", "train.py"], {}, "is not"),
        (["{python}"], {}, "nothing is not a Python script"),
        (["{python}", "-m", "train"], {}, "option -m"),
        (["{python}", "-c", "print()"], {}, "option -c"),
        (["{python}", "-O", "train.py"], {}, "option -O"),
        (["{python}", "missing.py"], {}, "missing.py is not a Python script"),
        (["{python}", "train"], {}, "train is not a Python script"),
        (["{python}", "train.py", "a\0b"], {}, "NUL"),
        (["{python}", "shadow/train.py"], {}, "'email'"),
        (["{python}", "-P", "shadow/train.py"], {}, None),
        (["{python}", "train.py"], {"PYTHONUNBUFFERED": ""}, "PYTHONUNBUFFERED is ''"),
        (["{python}", "train.py"], {"PYTHONHASHSEED": "1"}, "PYTHONHASHSEED is '1'"),
        (["{python}", "train.py"], {"OMP_NUM_THREADS": "4"}, "OMP_NUM_THREADS is '4'"),
        (["{python}", "train.py"], {"LD_PRELOAD": "x.so"}, "LD_PRELOAD is 'x.so'"),
        (["{python}", "train.py"], {MARKER: "x" * 300}, "very long name"),
        (["{python}", "train.py"], {"A=B": "c"}, "'A=B'"),
    ],
)
def test_what_can_be_forked(
    imported: ForkServer,
    tmp_path: Path,
    command: list[str],
    environment: dict[str, str],
    obstacle: str | None,
) -> None:
    (tmp_path / "shadow" / "email").mkdir(parents=True)
    (tmp_path / "shadow" / "email" / "__init__.py").write_text("")
    for path in ("train.py", "train.sh", "train", "shadow/train.py"):
        (tmp_path / path).write_text("")
    base = Path(sys.executable).resolve()
    if str(base) == sys.executable and "{base}" in command:
        pytest.skip("this interpreter is in no virtual environment")
    words = [word.format(python=sys.executable, base=base) for word in command]

    found = imported.obstacle(words, environment_of(**environment), tmp_path)

    if obstacle is None:
        assert found is None
    else:
        assert found is not None
        assert obstacle in found


def test_the_interpreter_by_another_name(imported: ForkServer, tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    others = [
        path
        for path in Path(sys.executable).parent.glob("python*")
        if path.is_file() and path.samefile(sys.executable)
    ]
    assert others
    for path in others:
        assert imported.obstacle([str(path), "train.py"], ENVIRONMENT, tmp_path) is None


def test_every_bundled_trainer_can_be_forked(imported: ForkServer, tmp_path: Path) -> None:
    for command in images.bundled_commands().values():
        assert imported.obstacle(command, ENVIRONMENT, tmp_path) is None


# --- what cannot be imported -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("modules", "named"),
    [
        ("no_such_module_here", "ModuleNotFoundError"),
        ("json,raising", "raising cannot be imported: ValueError: no licence"),
        ("leaving", "leaving cannot be imported: SystemExit: 3"),
        ("dying", "it died"),
        ("threading_module", "threading_module starts threads"),
        ("not a name", "'not a name' is none"),
        ("json,,math", "'' is none"),
    ],
)
def test_modules_that_cannot_be_used_are_refused_at_the_start(
    tmp_path: Path, modules: str, named: str
) -> None:
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "raising.py").write_text("raise ValueError('no licence')")
    (folder / "leaving.py").write_text("import sys; sys.exit(3)")
    (folder / "dying.py").write_text("import os; os.kill(os.getpid(), 9)")
    (folder / "threading_module.py").write_text(
        "import threading; threading.Thread(target=threading.Event().wait, daemon=True).start()"
    )

    with pytest.raises(ServerDidNotStartError) as refusal:
        start(
            tmp_path / "state",
            options=("--fork-server", modules),
            pass_env=("PYTHONPATH",),
            environment={**os.environ, "PYTHONPATH": str(folder)},
        )

    assert refusal.value.exit_code == 2
    assert "fork-server" in refusal.value.log
    assert named in refusal.value.log
    assert "Fix: " in refusal.value.log


def test_an_import_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "endless.py").write_text("import time; time.sleep(600)")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(fork_server, "IMPORT_SECONDS", 1.0)

    with pytest.raises(AmtFieldError, match="within 1 s"):
        ForkServer(["endless"], environment=os.environ, identity="slow", log=tmp_path / "log")

    assert training_processes("slow/") == []


def test_elsewhere_than_on_linux_it_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "platform", "darwin")
    check_modules([])
    with pytest.raises(AmtFieldError, match=r"Linux; this is darwin"):
        check_modules(["json"])


# --- life and death --------------------------------------------------------------------------------

#: Runs until it is stopped, with an exec'ed child, a forked child and a child in a session of its own.
FAMILY = """
import multiprocessing, os, subprocess, time
print("objective=0.5")
subprocess.Popen(["sleep", "600"])
subprocess.Popen(["sleep", "601"], start_new_session=True)
if os.fork() == 0:
    time.sleep(602)
print("complete")
time.sleep(603)
"""
#: Leaves a daemon behind that was only forked, the way daemons are made.
DAEMON = """
import os, sys, time
print("objective=0.5")
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        for descriptor in range(3):
            os.close(descriptor)
        time.sleep(604)
    os._exit(0)
os.wait()
"""
ENDS = "print('objective=0.5')"
IMPATIENT = ("--stop-grace", "0.3", "--fork-server", "json,email.message")


@contextmanager
def serving(
    folder: Path, script: str, *, options: tuple[str, ...] = IMPATIENT
) -> Iterator[tuple[RunningServer, Any]]:
    """Run a server for an image that is a Python script; give it and a client; nothing may break."""
    source = folder.with_name(folder.name + "-source") / "train.py"
    source.parent.mkdir(exist_ok=True)
    source.write_text(script)
    command = f"{sys.executable} {source}"
    with running(folder, images={"script:1": command}, options=options) as server:
        with client_of(server) as client:
            yield server, client
        assert server.stop() in (0, -signal.SIGKILL)
        assert "Traceback" not in server.log


def fork_server_of(server: RunningServer) -> psutil.Process:
    (found,) = [one for one in training_processes("/fork-server/") if one.ppid() == server.pid]
    return found


def test_a_kill_of_the_server_ends_the_fork_server_and_a_restart_what_was_forked(tmp_path: Path) -> None:
    name = unique("forked")
    with serving(tmp_path / "state", FAMILY) as (first, client):
        client.create_hyper_parameter_tuning_job(**create_request(name, image="script:1", parallel=2, most=9))
        wait_until(lambda: len(training_processes(name)) == 8, "two whole families")
        family = training_processes(name)
        helper = fork_server_of(first)
        # Four of them were never started as programs of their own: only their memory has the marker.
        assert sum("fork_main.py" in " ".join(process.cmdline()) for process in family) == 4
        assert [process.ppid() for process in family].count(first.pid) == 2
        first.kill()

    wait_until(lambda: not helper.is_running(), "the end of the fork server", 10)
    assert all(process.is_running() for process in family)
    with serving(tmp_path / "state", ENDS) as (_, client):
        wait_until(lambda: not any(process.is_running() for process in family), "the end of the families", 10)
        description = wait_for_end(client, name)
    assert description["TrainingJobStatusCounters"]["Completed"] == 7
    assert description["TrainingJobStatusCounters"]["RetryableError"] == 2


def test_stop_reaches_the_whole_family_and_ending_the_server_leaves_nothing(tmp_path: Path) -> None:
    name, other = unique("stopped"), unique("ended")
    with serving(tmp_path / "state", FAMILY) as (server, client):
        for job in (name, other):
            client.create_hyper_parameter_tuning_job(**create_request(job, image="script:1", most=9))
        wait_until(lambda: len(training_processes(name)) == 4, "the family")
        client.stop_hyper_parameter_tuning_job(HyperParameterTuningJobName=name)
        description = wait_for_end(client, name)
        assert description["HyperParameterTuningJobStatus"] == "Stopped"
        assert description["ObjectiveStatusCounters"]["Succeeded"] == 1
        wait_until(lambda: not training_processes(name), "the end of the family", 10)
        wait_until(lambda: len(training_processes(other)) == 4, "the other family")
        helper = fork_server_of(server)

        assert server.stop() == 0

        assert training_processes(other) == []
        assert not helper.is_running()


def test_a_daemon_that_a_forked_trainer_left_is_killed(tmp_path: Path) -> None:
    with serving(tmp_path / "state", DAEMON) as (server, client):
        name = unique("daemon")
        client.create_hyper_parameter_tuning_job(**create_request(name, image="script:1", most=3))
        description = wait_for_end(client, name)
        assert description["TrainingJobStatusCounters"]["Completed"] == 3
        wait_until(lambda: not training_processes(name), "the end of the daemons", 10)
        assert fork_server_of(server).is_running()


def test_without_the_fork_server_training_goes_on_and_the_log_says_so_once(tmp_path: Path) -> None:
    with serving(tmp_path / "state", ENDS) as (server, client):
        fork_server_of(server).kill()
        wait_until(lambda: "lost" in server.log, "the notice")
        name = unique("lost")
        client.create_hyper_parameter_tuning_job(**create_request(name, image="script:1", most=5))
        description = wait_for_end(client, name)
        assert description["TrainingJobStatusCounters"]["Completed"] == 5
        assert server.log.count("fork server is lost: it exited; training processes are started fresh") == 1


def test_why_a_command_is_not_forked_is_logged_once(tmp_path: Path) -> None:
    with serving(tmp_path / "state", ENDS) as (server, client):
        request = create_request(image="script:1", most=4, Environment={"OMP_NUM_THREADS": "2"})
        client.create_hyper_parameter_tuning_job(**request)
        description = wait_for_end(client, request["HyperParameterTuningJobName"])
        assert description["TrainingJobStatusCounters"]["Completed"] == 4
        assert server.log.count("OMP_NUM_THREADS is '2', and '1' in the fork server") == 1


def test_the_bundled_trainer_learns_in_a_forked_process(tmp_path: Path) -> None:
    options = ("--fork-server", "sklearn.svm,sklearn.model_selection")
    with serving(tmp_path / "state", ENDS, options=options) as (server, client):
        ranges = {
            "ContinuousParameterRanges": [
                {"Name": "C", "MinValue": "1", "MaxValue": "100"},
                {"Name": "gamma", "MinValue": "0.0005", "MaxValue": "0.001"},
            ]
        }
        request = create_request(image="airflow-amt.local/sklearn-digits:latest", most=2, ranges=ranges)
        algorithm = request["TrainingJobDefinition"]["AlgorithmSpecification"]
        algorithm["MetricDefinitions"] = [{"Name": "objective", "Regex": r"validation accuracy: ([0-9.]+)"}]
        client.create_hyper_parameter_tuning_job(**request)
        description = wait_for_end(client, request["HyperParameterTuningJobName"])
        best = description["BestTrainingJob"]["FinalHyperParameterTuningJobObjectiveMetric"]["Value"]
        assert best > 0.95, training_jobs(client, request["HyperParameterTuningJobName"])
        assert "Not every training process can be forked" not in server.log
        models = server.state_dir / "s3" / "models" / "out"
        assert len(list(models.glob("*/output/model.tar.gz"))) == 2


def in_a_process_of_its_own(code: str, folder: Path) -> str:
    """Run test code that forks: being a reaper is for life."""
    start_of_all = (
        "import os, signal, sys, time, psutil\n"
        "from pathlib import Path\n"
        "from airflow_amt.local import fork_server, processes\n"
        "from tests.local.support import training_processes, wait_until\n"
        "assert processes.become_reaper()\n"
        "folder = Path(sys.argv[1])\n"
        "environment = {**os.environ, 'PYTHONUNBUFFERED': '1', processes.MARKER: 'own/us-east-1/job'}\n"
        "def serve(module):\n"
        "    return fork_server.ForkServer([module], environment=os.environ, identity='own',\n"
        "                                  log=folder / 'server.log')\n"
        "def launch(server, log='log', folder=folder):\n"
        "    return server.start([sys.executable, 'train.py'], environment=environment,\n"
        "                        folder=folder, log=Path(sys.argv[1]) / log)\n"
        "def finish(process):\n"
        "    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)\n"
        "    return process.reap()\n"
    )
    environment = {name: value for name, value in os.environ.items() if name not in THREAD_VARIABLES}
    done = subprocess.run(
        [sys.executable, "-c", start_of_all + code, str(folder)],
        cwd=ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_fork_server_that_hangs_is_given_up_and_its_request_never_runs(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("print('ran')")
    code = (
        "fork_server.FORK_SECONDS = 0.5\n"
        "server = serve('json')\n"
        "os.kill(server.pid, signal.SIGSTOP)\n"
        "assert launch(server) is None\n"
        "assert launch(server) is None\n"
        "while processes.kill_orphans(): time.sleep(0.01)\n"
        "print(psutil.Process().children(recursive=True))\n"
    )
    assert in_a_process_of_its_own(code, tmp_path) == "[]\n"
    assert (tmp_path / "log").read_text() == ""


def test_what_was_forked_but_not_told_to_go_does_nothing(tmp_path: Path) -> None:
    """The server gives up, or dies, between the fork and its answer."""
    (tmp_path / "train.py").write_text("print('ran')")
    code = (
        "server = serve('json')\n"
        "def give_up(pid): raise fork_server._LostError('not any more')\n"
        "fork_server._check_is_child = give_up\n"
        "assert launch(server) is None\n"
        "wait_until(lambda: (processes.kill_orphans(lambda marker: False), \n"
        "                    psutil.Process().children(recursive=True))[1] == [], 'the end')\n"
    )
    in_a_process_of_its_own(code, tmp_path)
    assert (tmp_path / "log").read_text() == ""


def test_a_folder_that_is_missing_is_an_error_as_it_is_for_a_fresh_process(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("")
    code = (
        "server = serve('json')\n"
        "command = [sys.executable, str(folder / 'train.py')]\n"
        "for start in (processes.start, server.start):\n"
        "    try:\n"
        "        start(command, environment=environment, folder=folder / 'none', log=folder / 'log')\n"
        "    except FileNotFoundError as error:\n"
        "        print(error)\n"
        "server.close()\n"
    )
    fresh, forked = in_a_process_of_its_own(code, tmp_path).splitlines()
    assert forked == f"[Errno 2] No such file or directory: '{tmp_path / 'none'}'"
    assert fresh.startswith("[Errno 2] No such file or directory: ")


def test_random_numbers_differ_between_training_processes(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text(
        "import random, numpy\n"
        "print(random.random(), numpy.random.rand(), numpy.random.default_rng().random())"
    )
    code = (
        "server = serve('numpy')\n"
        "for number in range(3):\n"
        "    assert finish(launch(server)) == 0\n"
        "server.close()\n"
    )
    in_a_process_of_its_own(code, tmp_path)
    lines = [line.split() for line in (tmp_path / "log").read_text().splitlines()]
    assert [len(set(column)) for column in zip(*lines, strict=True)] == [3, 3, 3]


def test_forks_share_memory_and_leave_nothing_in_the_fork_server(tmp_path: Path) -> None:
    (tmp_path / "train.py").write_text("import ballast\nassert len(ballast.WEIGHT) == 64\n")
    (tmp_path / "sleeping").mkdir()
    (tmp_path / "sleeping" / "train.py").write_text("import ballast, time\nprint('up')\ntime.sleep(600)\n")
    modules = tmp_path / "modules"
    modules.mkdir()
    # 64 MiB, of which a training process that does not write to them has none of its own.
    (modules / "ballast.py").write_text("WEIGHT = [bytes([n]) * 1048576 for n in range(1, 65)]\n")
    code = (
        "os.environ['PYTHONPATH'] = environment['PYTHONPATH'] = str(folder / 'modules')\n"
        "server = serve('ballast')\n"
        "helper = psutil.Process(server.pid)\n"
        "assert finish(launch(server)) == 0\n"
        "before = helper.memory_info().rss, helper.num_fds(), len(os.listdir('/proc/self/fd'))\n"
        "for number in range(40):\n"
        "    assert finish(launch(server)) == 0\n"
        "after = helper.memory_info().rss, helper.num_fds(), len(os.listdir('/proc/self/fd'))\n"
        "print(before[0] > 64 * 2**20, after[0] - before[0] < 2**20, after[1:] == before[1:])\n"
        "print(helper.children(), len(psutil.Process().children()))\n"
        "process = launch(server, 'sleeping.log', folder / 'sleeping')\n"
        "wait_until(lambda: 'up' in (folder / 'sleeping.log').read_text(), 'the start')\n"
        "print(psutil.Process(process.pid).memory_full_info().uss < 16 * 2**20)\n"
        "process.signal(signal.SIGTERM)\n"
        "print(finish(process))\n"
        "server.close()\n"
    )
    assert in_a_process_of_its_own(code, tmp_path).splitlines() == [
        "True True True",
        "[] 1",
        "True",
        "-15",
    ]
