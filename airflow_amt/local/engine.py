"""The loop of the embedded AMT: decide a combination, train it, look at the result, decide again.

The engine owns what all tuning jobs share: state, clock, options, the thread of the search, and the care
that no process is left behind. Everything runs on one event loop. The exit of a training process wakes its
tuning job (:mod:`airflow_amt.local.tuning_run`) at once; nothing polls for results.
"""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import processes, trainer
from airflow_amt.local.clock import AmtClock
from airflow_amt.local.metrics import compile_definitions
from airflow_amt.local.search import create_search
from airflow_amt.local.storage import FolderStorage, Storage
from airflow_amt.local.store import Row, Store
from airflow_amt.local.tuning_run import TuningRun, objective_of, space_of
from airflow_amt.tuning.criteria import ObjectiveType

logger = logging.getLogger(__name__)

#: Longest real time that training processes get to end by themselves when the server ends.
_CLOSING_GRACE_SECONDS = 2.0
_HOUSEKEEPING_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineOptions:
    """How the engine works.

    :param state_dir: the folder that holds everything.
    :param s3_root: the folder that stands for S3, unless ``storage`` says otherwise.
    :param storage: where ``s3://`` is; ``s3_root`` if left out.
    :param images: commands that stand for training images.
    :param account: 12-digit AWS account id, for ARNs.
    :param stop_grace: most real seconds between SIGTERM and SIGKILL (AMT's 120 s where that is less).
    :param log_limit: bytes; a training job whose log grows beyond it is failed.
    """

    state_dir: Path
    s3_root: Path
    images: Mapping[str, Sequence[str]]
    account: str = "000000000000"
    stop_grace: float = 10.0
    log_limit: int = 256 * 1024 * 1024
    storage: Storage | None = None


class Engine:
    """Runs all tuning jobs of one state folder.

    :param store: the state; closed by the caller.
    :param clock: AMT time.
    :param options: see :class:`EngineOptions`.
    """

    def __init__(self, store: Store, clock: AmtClock, options: EngineOptions) -> None:
        self.store = store
        self.clock = clock
        self.options = options
        self.storage: Storage = options.storage or FolderStorage(options.s3_root)
        self.identity = store.identity
        self.closing = False
        self._runs: dict[int, TuningRun] = {}
        self._commit_scheduled = False
        self._orphan_check: asyncio.TimerHandle | None = None
        self._housekeeper: asyncio.TimerHandle | None = None
        # One thread: a search is not made for being asked twice at once.
        self.search_thread = ThreadPoolExecutor(1, thread_name_prefix="search")

    # --- life ------------------------------------------------------------------------------------

    def start(self) -> None:
        """Clean up after an earlier server and go on with its tuning jobs; needs a running event loop."""
        if not processes.become_reaper():
            logger.info("Orphans of training processes cannot be adopted on this platform")
        for row in self.store.unfinished_training_jobs():
            if row["pid"] is not None and processes.kill_leftover(row["pid"], row["pid_started"]):
                logger.warning("Killed the training process of %s, left by an earlier server", row["name"])
        # Again until none is found: what is being killed may have started more.
        while killed := processes.kill_marked(self.identity):
            logger.warning("Killed %d processes left by an earlier server", killed)
            time.sleep(0.01)
        for row in self.store.unfinished_tuning_jobs():
            self._begin(row)
        self.store.commit()
        self._housekeeping()

    async def close(self) -> None:
        """End all training processes, note that they were interrupted, and leave no process behind."""
        self.closing = True
        if self._housekeeper is not None:
            self._housekeeper.cancel()
        runs = list(self._runs.values())
        for run in runs:
            run.interrupt()
        gone = asyncio.gather(*(run.wait_for_processes() for run in runs))
        grace = min(self.options.stop_grace, _CLOSING_GRACE_SECONDS)
        try:
            await asyncio.wait_for(asyncio.shield(gone), grace)
        except TimeoutError:
            for run in runs:
                run.kill()
            await gone
        if self._orphan_check is not None:
            self._orphan_check.cancel()
        # What a killed process had started is adopted when that process is gone.
        while True:
            if not processes.kill_orphans():
                break
            await asyncio.sleep(0.01)
        self.search_thread.shutdown(cancel_futures=True)
        self.store.set_meta("last_seen_ms", str(self.clock.now_ms()))
        self.store.commit()

    # --- what calls do ---------------------------------------------------------------------------

    def check(self, config: Mapping[str, Any], definition: Mapping[str, Any], path: str) -> None:
        """Refuse a tuning job that could not run here.

        :param path: where the definition is in the request.
        :raises AmtFieldError: the first thing that stands in the way.
        """
        create_search(
            config["Strategy"],
            space_of(config, definition, path),
            ObjectiveType(objective_of(config, definition)["Type"]),
            config.get("RandomSeed") or 0,
        )
        specification = definition["AlgorithmSpecification"]
        compile_definitions(
            specification.get("MetricDefinitions") or (), f"{path}.AlgorithmSpecification.MetricDefinitions"
        )
        self._command(definition, path)

    def _command(self, definition: Mapping[str, Any], path: str) -> Sequence[str] | None:
        """Return the command of a definition's image, ``None`` in script mode."""
        static = definition.get("StaticHyperParameters") or {}
        if trainer.is_script_mode(static):
            return None
        image = definition["AlgorithmSpecification"].get("TrainingImage")
        command = self.options.images.get(image) if image else None
        if command is None:
            known = ", ".join(sorted(self.options.images)) or "none"
            raise AmtFieldError(
                f"{path}.AlgorithmSpecification.TrainingImage",
                image,
                "an image that a command stands for, as the embedded AMT runs no containers "
                f"(known here: {known})",
                f"start the server with --image '{image or 'IMAGE'}=COMMAND', or use script mode: the static "
                f"hyperparameters {trainer.PROGRAM} and {trainer.SUBMIT_DIRECTORY}",
            )
        return command

    def create(
        self,
        *,
        region: str,
        name: str,
        arn: str,
        config: Mapping[str, Any],
        definition: Mapping[str, Any],
        definition_as_list: bool,
    ) -> None:
        """Record a checked tuning job and start it."""
        objective = objective_of(config, definition)
        static = dict(definition.get("StaticHyperParameters") or {})
        # AMT adds it, and the SageMaker SDK reads it back from the description.
        static[trainer.TUNING_OBJECTIVE] = objective["MetricName"]
        now = self.clock.now_ms()
        seed = config.get("RandomSeed")
        self.store.insert_tuning_job(
            {
                "region": region,
                "name_key": name.lower(),
                "name": name,
                "arn": arn,
                "status": "InProgress",
                "strategy": config["Strategy"],
                "config": dict(config),
                "definition": {**definition, "StaticHyperParameters": static},
                "definition_as_list": definition_as_list,
                "seed": random.SystemRandom().randrange(2**31) if seed is None else seed,
                "created_ms": now,
                "modified_ms": now,
            }
        )
        self.store.commit()
        row = self.store.tuning_job(region, name)
        if row is None:
            raise RuntimeError(f"tuning job {name!r} vanished while it was created")
        self._begin(row)

    def stop(self, row: Row) -> None:
        """Stop a tuning job that has not ended."""
        run = self._runs.get(row["id"])
        if run is None:
            raise RuntimeError(f"tuning job {row['name']!r} is {row['status']} but is not running")
        run.stop()
        self.store.commit()

    # --- what tuning jobs need -------------------------------------------------------------------

    def commit_soon(self) -> None:
        """Commit at the end of this turn of the event loop, once for all that was written in it."""
        if not self._commit_scheduled:
            self._commit_scheduled = True
            asyncio.get_running_loop().call_soon(self._commit)

    def _commit(self) -> None:
        self._commit_scheduled = False
        self.store.commit()

    def forget(self, job_id: int) -> None:
        """Take note that a tuning job has ended."""
        del self._runs[job_id]

    def check_orphans(self) -> None:
        """Kill what an ended training job left behind; once more a little later.

        What a killed process had started is adopted only when that process is really gone.
        """
        self._kill_orphans()
        if self._orphan_check is None:
            self._orphan_check = asyncio.get_running_loop().call_later(0.2, self._check_orphans_again)

    def _check_orphans_again(self) -> None:
        self._orphan_check = None
        if self._kill_orphans():
            self.check_orphans()

    def _kill_orphans(self) -> int:
        running = [one for run in self._runs.values() for one in run.running.values()]
        markers = {one.spec.marker for one in running}
        known = frozenset(one.process.pid for one in running)
        return processes.kill_orphans(lambda marker: marker not in markers, known=known)

    def _begin(self, row: Row) -> None:
        definition = row["definition"]
        command = None
        try:
            command = self._command(definition, "TrainingJobDefinition")
        except AmtFieldError as error:
            # The server was restarted without the mapping that the job was created with: its training
            # jobs fail with this reason, and after five of them the tuning job does.
            logger.error("Tuning job %s cannot train: %s", row["name"], error)
        run = TuningRun(self, row, command)
        self._runs[row["id"]] = run
        run.begin()

    def _housekeeping(self) -> None:
        # Scheduled first: an error in it, which the event loop logs, must not be its last run.
        self._housekeeper = asyncio.get_running_loop().call_later(_HOUSEKEEPING_SECONDS, self._housekeeping)
        for run in self._runs.values():
            run.check_logs()
        if self._runs:
            self.store.set_meta("last_seen_ms", str(self.clock.now_ms()))
            self.store.commit()
            self._kill_orphans()
