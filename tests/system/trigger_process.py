"""A trigger in a process of its own, as in a triggerer that somebody kills."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Mapping
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import Any

# Each process is forked from one that has imported everything, or a campaign would do nothing but import.
_PRELOAD = [__name__, "tests.unit.tasks", "airflow_amt.triggers.guarded", "airflow_amt.hooks.tuning"]


def prepare() -> None:
    """Start what processes are forked from, while nothing else runs here."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(_PRELOAD)
    first = context.Process(target=_import)
    first.start()
    first.join()


def _import() -> None:
    from importlib import import_module

    for name in _PRELOAD:
        import_module(name)


class TriggerProcess:
    """Runs a stored trigger; its only event comes back.

    :param stored: class path and arguments, as the metadata database keeps them.
    :param environment: what the process's environment has beside this one's.
    """

    def __init__(self, stored: tuple[str, dict[str, Any]], environment: Mapping[str, str]) -> None:
        context = multiprocessing.get_context("forkserver")
        self._reader, writer = context.Pipe(duplex=False)
        self._process: BaseProcess = context.Process(
            target=_run, args=(stored, dict(environment), writer), daemon=True
        )
        self._process.start()
        writer.close()

    def kill(self) -> None:
        """End it with SIGKILL, and wait until it is gone."""
        self._process.kill()
        self._process.join()

    @property
    def is_running(self) -> bool:
        """Whether it runs."""
        return self._process.is_alive()

    def payload(self, seconds: float) -> dict[str, Any]:
        """Return the payload of its event.

        :raises TimeoutError: there was none in time; the process is killed.
        """
        if not self._reader.poll(seconds):
            self.kill()
            raise TimeoutError(f"the trigger has not fired within {seconds:g} s")
        payload: dict[str, Any] = self._reader.recv()
        self._process.join()
        return payload

    def close(self) -> None:
        """End it if it still runs."""
        if self._process.is_alive():
            self.kill()
        self._reader.close()


def _run(stored: tuple[str, dict[str, Any]], environment: Mapping[str, str], writer: Connection) -> None:
    os.environ.update(environment)
    from importlib import import_module

    from tests.unit.tasks import fired

    path, arguments = stored
    module, _, name = path.rpartition(".")
    writer.send(fired(getattr(import_module(module), name)(**arguments)))
