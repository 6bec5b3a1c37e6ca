"""Training processes are identified, watched and ended; nothing else is touched."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from airflow_amt.local import processes
from airflow_amt.local.processes import MARKER, TrainingProcess
from tests.local.support import training_processes, wait_until

pytestmark = pytest.mark.local


def start(tmp_path: Path, command: str, marker: str = "test/one") -> TrainingProcess:
    environment = {**os.environ, MARKER: marker}
    return processes.start(
        ["sh", "-c", command], environment=environment, folder=tmp_path, log=tmp_path / "log"
    )


@pytest.mark.parametrize("with_pidfd", [True, False])
def test_an_exit_is_noticed_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_pidfd: bool
) -> None:
    if not with_pidfd:
        monkeypatch.delattr(os, "pidfd_open", raising=False)

    async def run() -> float:
        exited = asyncio.Event()
        process = start(tmp_path, "sleep 0.3; exit 7")
        processes.when_exited(process.pid, exited.set, loop=asyncio.get_running_loop())
        began = time.monotonic()
        await asyncio.wait_for(exited.wait(), 10)
        waited = time.monotonic() - began
        assert process.exit_status is None
        assert process.reap() == 7
        return waited

    assert 0.2 < asyncio.run(run()) < 5


def test_reaping_kills_what_is_left_of_the_group(tmp_path: Path) -> None:
    process = start(tmp_path, "sleep 300 & echo started; exit 0", "test/group")
    wait_until(lambda: "started" in (tmp_path / "log").read_text(), "the child")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert len(training_processes("test/group")) == 1

    assert process.reap() == 0

    wait_until(lambda: not training_processes("test/group"), "the end of the group")
    process.signal(signal.SIGKILL)  # after the end it reaches nobody


def test_output_goes_to_the_log_and_standard_input_is_empty(tmp_path: Path) -> None:
    process = start(tmp_path, "cat; pwd; echo problem >&2; ps -o sid= -p $$")
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    process.reap()

    folder, problem, session = (tmp_path / "log").read_text().split()
    assert (folder, problem) == (str(tmp_path), "problem")
    assert int(session) == process.pid


def test_a_leftover_is_killed_by_id_and_start_time(tmp_path: Path) -> None:
    process = start(tmp_path, "exec sleep 300")
    started = processes.start_time(process.pid)
    assert started is not None
    try:
        # Another process has the id by now, as far as the start time tells.
        assert processes.kill_leftover(process.pid, started - 100) is False
        assert processes.kill_leftover(process.pid, None) is False
        assert len(training_processes("test/one")) == 1
        assert processes.kill_leftover(process.pid, started) is True
    finally:
        process.signal(signal.SIGKILL)
        assert process.reap() == -signal.SIGKILL
    assert processes.kill_leftover(process.pid, started) is False


def test_only_processes_with_the_marker_of_the_folder_are_killed(tmp_path: Path) -> None:
    ours = start(tmp_path, "exec sleep 300", "ours/us-east-1/job")
    others = start(tmp_path, "exec sleep 300", "theirs/us-east-1/job")
    bare = subprocess.Popen(["sleep", "300"])
    try:
        assert processes.kill_marked("ours") == 1
        assert ours.reap() == -signal.SIGKILL
        assert len(training_processes("theirs/")) == 1
        assert bare.poll() is None
    finally:
        others.signal(signal.SIGKILL)
        others.reap()
        bare.kill()
        bare.wait()


def test_what_may_not_be_killed_is_left_alone_with_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A process that has become another user's, say."""
    ours = start(tmp_path, "exec sleep 300", "forbidden/us-east-1/job")

    def refuse_psutil(process: psutil.Process) -> None:
        raise psutil.AccessDenied(process.pid)

    def refuse(pid: int, number: int) -> None:
        raise PermissionError(pid, number)

    try:
        with monkeypatch.context() as patch:
            patch.setattr(psutil.Process, "kill", refuse_psutil)
            patch.setattr(os, "kill", refuse)
            patch.setattr(processes, "children", lambda: [ours.pid])
            assert processes.kill_marked("forbidden") == 0
            assert processes.kill_orphans() == 0
    finally:
        ours.signal(signal.SIGKILL)
        ours.reap()
    assert [record.args for record in caplog.records] == [(ours.pid,), (ours.pid,)]


def test_what_is_adopted_while_its_parent_is_reaped_is_not_missed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    parent = os.posix_spawn("/bin/sh", ["sh", "-c", "exit 0"], {})
    os.waitid(os.P_PID, parent, os.WEXITED | os.WNOWAIT)
    orphan = start(tmp_path, "exec sleep 300")
    looks = iter([[parent], [orphan.pid]])
    monkeypatch.setattr(processes, "children", lambda: next(looks))
    try:
        assert processes.kill_orphans() == 1
    finally:
        orphan.signal(signal.SIGKILL)
        assert orphan.reap() == -signal.SIGKILL


def test_process_1_leaves_alone_what_it_cannot_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    marked = start(tmp_path, "exec sleep 300", "container/job")
    bare = subprocess.Popen(["sleep", "300"])
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: 1)
            patch.setattr(processes, "children", lambda: [marked.pid, bare.pid])
            assert processes.kill_orphans() == 1
        assert marked.reap() == -signal.SIGKILL
        assert bare.poll() is None
    finally:
        bare.kill()
        bare.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_without_a_marker_are_killed_when_no_running_training_job_can_be_theirs() -> None:
    """In a process of its own: being a reaper is for life."""
    code = (
        "import subprocess, time\n"
        "from airflow_amt.local import processes\n"
        "from tests.local.support import wait_until\n"
        "assert processes.become_reaper()\n"
        "def run():\n"
        "    before = set(processes.children())\n"
        "    command = '(setsid env -i sleep 300 &) ; exec sleep 300'\n"
        "    leader = subprocess.Popen(['sh', '-c', command], env={processes.MARKER: 's/job'})\n"
        "    def adopted():\n"
        "        new = set(processes.children()) - before - {leader.pid}\n"
        "        return [one for one in new if processes._marker_of(one) is None]\n"
        "    (orphan,) = wait_until(adopted, 'the orphan')\n"
        "    time.sleep(0.05)  # some ticks of the kernel, in which the starts of processes are told\n"
        "    return leader, orphan\n"
        "def kill(*leaders):\n"
        "    known = frozenset([bystander.pid, *(one.pid for one in leaders)])\n"
        "    rounds = 0\n"
        "    while killed := processes.kill_orphans(lambda marker: False, known=known,\n"
        "                                           leaders=[one.pid for one in leaders]):\n"
        "        rounds += 1; time.sleep(0.01)\n"
        "    return rounds > 0\n"
        "bystander = subprocess.Popen(['sleep', '300'])\n"
        "first, orphan_1 = run()\n"
        "second, orphan_2 = run()\n"
        "assert not kill(first, second)\n"
        "first.kill(); first.wait()\n"
        "assert kill(second)\n"
        "assert set(processes.children()) == {bystander.pid, second.pid, orphan_2}\n"
        "second.kill(); second.wait()\n"
        "assert kill()\n"
        "assert processes.children() == [bystander.pid]\n"
        "third, orphan_3 = run()\n"
        "third.kill(); third.wait()\n"
        "while processes.kill_orphans(known=frozenset([bystander.pid])): time.sleep(0.01)\n"
        "assert processes.children() == [bystander.pid]\n"
        "bystander.kill(); bystander.wait()\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=90,
    )
    assert done.returncode == 0, done.stderr


@pytest.mark.skipif(sys.platform != "linux", reason="orphans are adopted on Linux only")
def test_orphans_are_adopted_and_killed_when_their_training_job_is_over() -> None:
    """In a process of its own: being a reaper is for life."""
    code = (
        "import os, subprocess, time\n"
        "from airflow_amt.local import processes\n"
        "assert processes.become_reaper()\n"
        "def run(marker):\n"
        "    environment = {**os.environ, processes.MARKER: marker}\n"
        "    command = 'setsid sh -c \"sleep 300 & sleep 300; true\" & sleep 0.2'\n"
        "    subprocess.run(['sh', '-c', command], env=environment, check=True)\n"
        "run('s/over'); run('s/running')\n"
        "bystander = subprocess.Popen(['sleep', '300'])\n"
        "over = lambda marker: marker == 's/over'\n"
        "rounds = []\n"
        "while killed := processes.kill_orphans(over, known=frozenset([bystander.pid])):\n"
        "    rounds.append(killed); time.sleep(0.05)\n"
        "import psutil\n"
        "left = [child for child in psutil.Process().children(recursive=True)\n"
        "        if child.status() != psutil.STATUS_ZOMBIE]\n"
        "print(sum(rounds), len(left), bystander.poll())\n"
        "while processes.kill_orphans(known=frozenset([bystander.pid])): time.sleep(0.05)\n"
        "bystander.kill(); bystander.wait()\n"
        "print(len(psutil.Process().children(recursive=True)))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
        timeout=60,
    )
    # Of the job that is over: the shell and its two children; of the other, three and the bystander stay.
    assert done.stdout.split("\n")[:2] == ["3 4 None", "0"]


@pytest.mark.skipif(sys.platform != "linux", reason="processes carry a tag on Linux only")
def test_a_tag_is_found_where_the_environment_was_cleared() -> None:
    """In a process of its own: what it starts afterwards carries the tag too."""
    code = (
        "import os, resource, subprocess, sys\n"
        "from airflow_amt.local import processes\n"
        "from tests.local.support import wait_until\n"
        "bystander = subprocess.Popen(['sleep', '300'])\n"
        "assert processes.tag_descendants('ours')\n"
        "children = [subprocess.Popen(['setsid', 'sleep', '300'], env={}) for _ in range(3)]\n"
        # The one that kills carries it too, and so does this one, from which it descends.
        "kill = 'from airflow_amt.local import processes; print(processes.kill_marked({!r}))'\n"
        "def killed(identity):\n"
        "    command = [sys.executable, '-c', kill.format(identity)]\n"
        "    done = subprocess.run(command, capture_output=True, text=True)\n"
        "    assert done.returncode == 0, done.stderr\n"
        "    return int(done.stdout)\n"
        "assert killed('theirs') == 0\n"
        "assert killed('ours') == 3\n"
        # They are zombies now, which still carry it.
        "wait_until(lambda: all(os.waitid(os.P_PID, one.pid, os.WEXITED | os.WNOWAIT) for one in children),\n"
        "           'the end')\n"
        "assert killed('ours') == 0\n"
        "assert [one.wait() for one in children] == [-9, -9, -9]\n"
        "assert bystander.poll() is None\n"
        "bystander.kill(); bystander.wait()\n"
        # Where the hard limit is lower there is no tag.
        "resource.setrlimit(resource.RLIMIT_RTTIME, (1000, 1000))\n"
        "print(processes.tag_descendants('ours'))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "False\n"
