"""Run commands fresh and forked, and tell what became of them; a process of its own, as a reaper is for life.

Reads from standard input: modules, and a list of cases (command, environment, folder). Writes a list of
``[fresh, forked]``: exit status and log of each, ``null`` for a command that was not forked.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

from airflow_amt.local import processes
from airflow_amt.local.fork_server import ForkServer
from airflow_amt.local.processes import TrainingProcess


def main() -> None:
    order = json.load(sys.stdin)
    if not processes.become_reaper():
        raise RuntimeError("orphans are not adopted here")
    folder = Path(order["folder"])
    server = ForkServer(
        order["modules"], environment=os.environ, identity="test", log=folder / "fork-server.log"
    )
    results = []
    for number, case in enumerate(order["cases"]):
        pair: list[Any] = []
        for kind, start in (("fresh", processes.start), ("forked", server.start)):
            log = folder / f"{number}.{kind}.log"
            process = start(
                case["command"], environment=case["environment"], folder=Path(case["folder"]), log=log
            )
            pair.append(None if process is None else outcome(process, log))
        results.append(pair)
    server.close()
    json.dump(results, sys.stdout)


def outcome(process: TrainingProcess, log: Path) -> list[Any]:
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    return [process.reap(), log.read_text(encoding="utf-8", errors="surrogateescape")]


if __name__ == "__main__":
    main()
