"""State of the embedded AMT in SQLite: tuning jobs, training jobs, tags and the clock.

One server owns a state folder (a lock file says so) and one connection does all the work, on the event
loop: statements here take tenths of a millisecond. The database is in WAL mode with ``synchronous=NORMAL``:
what is committed survives the server's death at any moment, and a commit costs no ``fsync``.
As nobody else writes, rows that were read are kept in memory until a statement changes them.
Times are whole milliseconds of AMT time since the epoch.

A call of the API is one transaction (:meth:`Store.transaction`): a disk that is full refuses it as a whole.
The engine's own writes record what has happened, and cannot be refused: those that the disk does not take are
kept in their order, laid over the rows that are read (not over the conditions of lists), and written when the
disk has room.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import IO, Any, TypeVar

import sqlalchemy as sa
from sqlalchemy.dialects import sqlite
from sqlalchemy.exc import DatabaseError, OperationalError

from airflow_amt.exceptions import AmtError, AmtFieldError
from airflow_amt.local import state_folder
from airflow_amt.local.state_folder import DATABASE
from airflow_amt.text import shown_value

logger = logging.getLogger(__name__)

SCHEMA_VERSION = "2"
#: Statuses of tuning and training jobs that have not ended.
GOING_ON = ("InProgress", "Stopping")

_metadata = sa.MetaData()

meta = sa.Table(
    "meta",
    _metadata,
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
)

tuning_jobs = sa.Table(
    "tuning_jobs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    sa.Column("region", sa.String, nullable=False),
    # Names are unique without regard to case; the spelling of the request is kept in `name`. A deleted
    # tuning job keeps its row, as its training jobs stay and are described by it, under a key that is no
    # name, so that the name is free again.
    sa.Column("name_key", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("arn", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("strategy", sa.String, nullable=False),
    sa.Column("config", sa.JSON, nullable=False),
    sa.Column("definitions", sa.JSON, nullable=False),
    # Whether the request had TrainingJobDefinitions (a list), as Describe has to answer in kind.
    sa.Column("definition_as_list", sa.Boolean, nullable=False),
    sa.Column("warm_start", sa.JSON(none_as_null=True)),
    sa.Column("autotune", sa.JSON(none_as_null=True)),
    # What the parents of a warm start had tried ([[hyperparameters, objective], ...]) and their best
    # training job, kept here because parents may be deleted.
    sa.Column("prior", sa.JSON(none_as_null=True)),
    sa.Column("parents_best", sa.String),
    sa.Column("seed", sa.Integer, nullable=False),
    sa.Column("created_ms", sa.Integer, nullable=False),
    sa.Column("modified_ms", sa.Integer, nullable=False),
    sa.Column("ended_ms", sa.Integer),
    sa.Column("failure_reason", sa.String),
    # How the job is going to end once its training processes are gone: Completed, Stopped or Failed.
    sa.Column("ending", sa.String),
    sa.Column("best", sa.String),
    sa.Column("not_improving", sa.Integer, nullable=False, default=0),
    sa.Column("converged_ms", sa.Integer),
    sa.Column("training_in_progress", sa.Integer, nullable=False, default=0),
    sa.Column("training_completed", sa.Integer, nullable=False, default=0),
    sa.Column("training_stopped", sa.Integer, nullable=False, default=0),
    sa.Column("training_retryable", sa.Integer, nullable=False, default=0),
    sa.Column("training_non_retryable", sa.Integer, nullable=False, default=0),
    sa.Column("objective_succeeded", sa.Integer, nullable=False, default=0),
    sa.Column("objective_pending", sa.Integer, nullable=False, default=0),
    sa.Column("objective_failed", sa.Integer, nullable=False, default=0),
    sa.Column("deleted", sa.Boolean, nullable=False, default=False),
    sa.UniqueConstraint("region", "name_key"),
    # The orders of ListHyperParameterTuningJobs: a page costs as much as its rows, not as all rows.
    sa.Index("tuning_jobs_by_name", "region", "name"),
    sa.Index("tuning_jobs_by_creation", "region", "created_ms"),
)

training_jobs = sa.Table(
    "training_jobs",
    _metadata,
    sa.Column("id", sa.Integer, primary_key=True),
    # Absent: it was created by a call of its own, and `request` has that call's parameters.
    sa.Column("tuning_job_id", sa.ForeignKey("tuning_jobs.id")),
    sa.Column("definition_index", sa.Integer, nullable=False, default=0),
    sa.Column("request", sa.JSON(none_as_null=True)),
    sa.Column("region", sa.String, nullable=False),
    sa.Column("name_key", sa.String, nullable=False),
    sa.Column("name", sa.String, nullable=False),
    sa.Column("arn", sa.String, nullable=False),
    sa.Column("status", sa.String, nullable=False),
    sa.Column("hyperparameters", sa.JSON, nullable=False),
    sa.Column("created_ms", sa.Integer, nullable=False),
    sa.Column("started_ms", sa.Integer),
    sa.Column("ended_ms", sa.Integer),
    sa.Column("modified_ms", sa.Integer, nullable=False),
    # Secondary statuses in order, each with its start: [["Starting", ms], ["Training", ms], ...].
    sa.Column("transitions", sa.JSON, nullable=False),
    # How a stopped one ended, in terms of SecondaryStatus: Stopped or MaxRuntimeExceeded.
    sa.Column("secondary_status", sa.String),
    # How often it was started again after a failure of the server itself.
    sa.Column("retries", sa.Integer, nullable=False, default=0),
    sa.Column("objective", sa.Float),
    sa.Column("objective_status", sa.String),
    sa.Column("metrics", sa.JSON(none_as_null=True)),
    # The objective after each epoch, where early stopping needs it.
    sa.Column("curve", sa.JSON(none_as_null=True)),
    sa.Column("failure_reason", sa.String),
    # The process is identified by its id and its start time (seconds since the epoch): ids are reused.
    sa.Column("pid", sa.Integer),
    sa.Column("pid_started", sa.Float),
    sa.UniqueConstraint("region", "name_key"),
    sa.Index("training_jobs_of", "tuning_job_id"),
)

tags = sa.Table(
    "tags",
    _metadata,
    sa.Column("arn", sa.String, primary_key=True),
    sa.Column("key", sa.String, primary_key=True),
    sa.Column("value", sa.String, nullable=False),
    sa.Column("position", sa.Integer, nullable=False),
)

Row = Mapping[str, Any]
T = TypeVar("T")

#: Rows of a table that are kept in memory at most; some kilobytes each.
_KEPT_ROWS = 4096
#: How often a disk that has refused a write is asked again.
_RETRY_SECONDS = 1.0

# Statements of the hot path are built once; SQLAlchemy then reuses their compiled form.
_insert_training = sa.insert(training_jobs)
_insert_tuning = sa.insert(tuning_jobs)
_update_training = sa.update(training_jobs).where(training_jobs.c.id == sa.bindparam("_id"))
_update_tuning = sa.update(tuning_jobs).where(tuning_jobs.c.id == sa.bindparam("_id"))
_insert_tags = sa.insert(tags)
_set_meta = sqlite.insert(meta)
_set_meta = _set_meta.on_conflict_do_update(
    index_elements=[meta.c.key], set_={"value": _set_meta.excluded.value}
)


class StateNotWrittenError(AmtError):
    """The disk refused to write a change; no part of the change was kept.

    :param state_dir: the state folder.
    :param why: SQLite's words.
    """

    def __init__(self, state_dir: Path, why: str) -> None:
        super().__init__(state_dir, why)
        self.state_dir = state_dir
        self.why = why

    def __str__(self) -> str:
        advice = (
            "Another program holds the database: end it" if "locked" in self.why else "Free some space there"
        )
        return (
            f"The state in {self.state_dir} cannot be written: {self.why}. Nothing was changed. {advice}, "
            "and call again."
        )


class DamagedRowError(AmtError):
    """A row of the database holds what the embedded AMT has not written.

    :param database: the database.
    :param table: the table.
    :param key: the row's ``id``.
    :param name: name of the job.
    :param column: the column.
    :param what: what is wrong with it.
    """

    def __init__(self, database: Path, table: str, key: Any, name: Any, column: str, what: str) -> None:
        super().__init__(database, table, key, name, column, what)
        self.database = database
        self.table = table
        self.key = key
        self.name = name
        self.column = column
        self.what = what
        self._way_out = (
            "delete the tuning job: DeleteHyperParameterTuningJob"
            if table == tuning_jobs.name
            else "leave the job as it is: the others go on"
        )

    def __str__(self) -> str:
        return (
            f"Row {self.key} of the table {self.table} in {self.database} (job {self.name}) is damaged: "
            f"column {self.column} {self.what}. Restore a backup of the state folder, or {self._way_out}."
        )


class _Damaged(str):
    """The text of a JSON column that is no JSON."""


_TYPES: Mapping[type[Any], tuple[type[Any], ...]] = {
    sa.Integer: (int,),
    sa.Float: (int, float),
    sa.String: (str,),
    sa.Boolean: (bool, int),
}


#: What JSON columns hold.
_JSON_TYPES: Mapping[str, tuple[type[Any], ...]] = {
    **dict.fromkeys(("config", "warm_start", "autotune", "request", "hyperparameters", "metrics"), (dict,)),
    **dict.fromkeys(("definitions", "prior", "transitions", "curve"), (list,)),
}


class _DamagedRow(dict[str, Any]):
    """A row of which some columns are damaged; reading one of those raises."""

    def __init__(self, values: Mapping[str, Any], errors: Mapping[str, DamagedRowError]) -> None:
        super().__init__(values)
        self._errors = errors

    def __getitem__(self, key: str) -> Any:
        if key in self._errors:
            raise self._errors[key]
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        # Copies are made by way of __getitem__ then, and raise too.
        return super().__iter__()


def derived(row: Row, what: str, make: Callable[[Row], T]) -> T:
    """Return what is made of a row and nothing else, made once for each state of the row.

    :param row: a row as the store returned it.
    :param what: a name for it.
    :param make: makes it.
    """
    if not isinstance(row, _KeptRow):
        return make(row)
    if what not in row.derived:
        row.derived[what] = make(row)
    made: T = row.derived[what]
    return made


class _KeptRow(dict[str, Any]):
    """A row in memory, shared by whoever reads it: it is dropped when the row changes, never changed."""

    __slots__ = ("derived",)

    def __init__(self, values: Mapping[str, Any]) -> None:
        super().__init__(values)
        self.derived: dict[str, Any] = {}


class _KeptRows:
    """The rows of one table that are in memory: the latest used ones, by id and by region and name.

    :param unique: the column that is unique in a region.
    """

    def __init__(self, unique: str) -> None:
        self._unique = unique
        self._rows: OrderedDict[int, _KeptRow] = OrderedDict()
        self._ids: dict[tuple[str, str], int] = {}

    def by_id(self, key: int) -> Row | None:
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def by_name(self, region: str, name: str) -> Row | None:
        key = self._ids.get((region, name))
        return None if key is None else self.by_id(key)

    def keep(self, values: Row) -> Row:
        if isinstance(values, _DamagedRow):
            return values
        row = _KeptRow(values)
        self.drop(row["id"])
        self._rows[row["id"]] = row
        self._ids[(row["region"], row[self._unique])] = row["id"]
        if len(self._rows) > _KEPT_ROWS:
            self.drop(next(iter(self._rows)))
        return row

    def drop(self, key: int) -> None:
        row = self._rows.pop(key, None)
        if row is not None:
            self._ids.pop((row["region"], row[self._unique]), None)

    def clear(self) -> None:
        self._rows.clear()
        self._ids.clear()

    def note_write(self, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Drop what a statement with these parameters has changed: all, if they do not say which row."""
        for values in parameters:
            if "_id" not in values:
                self.clear()
                return
            self.drop(values["_id"])


class StateFolderInUseError(AmtFieldError):
    """Another server owns the state folder."""


class Store:
    """Opens a state folder and reads and writes its tables.

    :param state_dir: the folder; made if missing.
    :raises StateFolderInUseError: a server that runs owns the folder.
    :raises AmtFieldError: the folder was written by a version with another layout, or its database is
        damaged.
    """

    def __init__(self, state_dir: Path) -> None:
        self.state_dir = state_dir
        state_folder.prepare(state_dir)
        self._lock = _locked(state_dir)
        self._engine = sa.create_engine(
            f"sqlite:///{self.database}",
            json_serializer=_compact_json,
            json_deserializer=_read_json,
            # Whoever else writes to the database holds up every call for so long, at most.
            connect_args={"timeout": 0.1},
            future=True,
            poolclass=sa.NullPool,
        )
        # One text that is no UTF-8 would fail every query that meets its row.
        sa.event.listen(self._engine, "connect", _decode_leniently)
        try:
            self._connection = self._engine.connect()
        except BaseException:
            self._lock.close()
            raise
        self._kept = _no_rows()
        self._in_transaction = False
        #: What was written since the last commit, outside transactions.
        self._unsaved: list[tuple[sa.Executable, Any]] = []
        #: Why the disk has refused that, if it has.
        self._why_behind: str | None = None
        self._retry_at = 0.0
        # Whatever writes, by whichever method: no row in memory is older than the database.
        sa.event.listen(self._connection, "after_execute", self._note_write)
        sa.event.listen(self._connection, "rollback", self._note_rollback)
        try:
            self._check_whole()
            self._connection.execute(sa.text("PRAGMA journal_mode=WAL"))
            self._connection.execute(sa.text("PRAGMA synchronous=NORMAL"))
            self._connection.commit()
            _metadata.create_all(self._connection)
            self._connection.commit()
            self._check_version()
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """Commit, close the database and give the folder free."""
        if not self._connection.closed:
            self.commit(at_once=True)
            if self._why_behind is not None:
                logger.error("%d changes of the state are lost: %s", len(self._unsaved), self._why_behind)
            self._connection.close()
        self._engine.dispose()
        self._lock.close()

    @property
    def database(self) -> Path:
        """The SQLite file."""
        return self.state_dir / DATABASE

    @property
    def is_behind(self) -> bool:
        """Whether the disk has refused to write what has happened; it is written as soon as it can be."""
        return self._why_behind is not None

    def commit(self, *, at_once: bool = False) -> None:
        """Make everything written so far last; what the disk refuses is tried again with later commits.

        :param at_once: ask the disk again even if it has just refused.
        """
        if self._why_behind is not None:
            if at_once or time.monotonic() >= self._retry_at:
                self._catch_up()
            return
        try:
            self._connection.commit()
        except OperationalError as error:
            self._fall_behind(error)
        else:
            self._unsaved.clear()

    @contextlib.contextmanager
    def transaction(self) -> Iterator[None]:
        """Write all that is written in a ``with`` block, or nothing of it.

        :raises StateNotWrittenError: the disk refuses.
        """
        self.commit(at_once=True)
        if self._why_behind is not None:
            raise StateNotWrittenError(self.state_dir, self._why_behind)
        self._in_transaction = True
        try:
            yield
            self._connection.commit()
        except OperationalError as error:
            self._roll_back()
            raise StateNotWrittenError(self.state_dir, _words(error)) from None
        except BaseException:
            self._roll_back()
            raise
        finally:
            self._in_transaction = False

    def _write(self, statement: sa.Executable, parameters: Any = None) -> None:
        """Write; outside a transaction, keep what the disk refuses."""
        if self._in_transaction:
            self._connection.execute(statement, parameters)
            return
        if self._why_behind is None:
            try:
                self._connection.execute(statement, parameters)
            except OperationalError as error:
                self._unsaved.append((statement, parameters))
                self._fall_behind(error)
            else:
                self._unsaved.append((statement, parameters))
            return
        self._unsaved.append((statement, parameters))
        self._forget(statement, [parameters])

    def _insert(self, statement: sa.Insert, values: Mapping[str, Any]) -> int:
        """Add a row and return its id; only in a transaction, as a row that is not there has no id."""
        return _inserted(self._connection.execute(statement, dict(values)))

    def _roll_back(self) -> None:
        self._connection.rollback()
        # A commit that fails tells no listener.
        self._note_rollback(self._connection)

    def _fall_behind(self, error: OperationalError) -> None:
        self._roll_back()
        self._retry_at = time.monotonic() + _RETRY_SECONDS
        if self._why_behind is None and self._unsaved:
            self._why_behind = _words(error)
            logger.error(
                "The state in %s cannot be written: %s. Changes are kept in memory until it can be",
                self.state_dir,
                self._why_behind,
            )

    def _catch_up(self) -> None:
        """Write what the disk has refused, in its order."""
        try:
            for statement, parameters in self._unsaved:
                self._connection.execute(statement, parameters)
            self._connection.commit()
        except OperationalError as error:
            self._roll_back()
            self._why_behind = _words(error)
            self._retry_at = time.monotonic() + _RETRY_SECONDS
            return
        self._unsaved.clear()
        self._why_behind = None
        logger.info("The state in %s is written again", self.state_dir)

    def _forget(self, statement: Any, parameters: Sequence[Mapping[str, Any]]) -> None:
        """Drop the rows in memory that a statement changes."""
        kept = self._kept.get(str(statement.table)) if isinstance(statement, (sa.Update, sa.Delete)) else None
        if kept is not None:
            kept.note_write(parameters)

    # --- meta ------------------------------------------------------------------------------------

    def get_meta(self, key: str) -> str | None:
        """Return a value of the meta table, ``None`` if it was never set."""
        value: str | None = self._connection.execute(
            sa.select(meta.c.value).where(meta.c.key == key)
        ).scalar_one_or_none()
        return value

    def set_meta(self, key: str, value: str) -> None:
        """Set a value of the meta table."""
        self._write(_set_meta, {"key": key, "value": value})

    @property
    def identity(self) -> str:
        """A random name of this state folder; training processes carry it in their environment."""
        identity = self.get_meta("identity")
        if identity is None:
            identity = uuid.uuid4().hex
            self.set_meta("identity", identity)
            self.commit()
        return identity

    def last_seen_ms(self) -> int:
        """Return the latest AMT time recorded anywhere, 0 in a new folder."""
        seen = str(self.get_meta("last_seen_ms") or "0")
        # The year 2286 has 13 digits too; more are no time.
        moments = [int(seen) if seen.isascii() and seen.isdecimal() and len(seen) <= 13 else 0]
        for table in (tuning_jobs, training_jobs):
            moment = table.c.modified_ms
            # A damaged row holds anything.
            of_whole_rows = sa.select(sa.func.max(moment)).where(
                sa.func.typeof(moment) == "integer", moment < 10**13
            )
            latest = self._connection.execute(of_whole_rows).scalar()
            moments.append(latest or 0)
        return max(moments)

    def _check_whole(self) -> None:
        """Refuse a database that is none, or that has lost a part.

        :raises AmtFieldError: it is damaged.
        """
        try:
            found = self._connection.exec_driver_sql("PRAGMA quick_check(1)").scalar_one()
        except OperationalError:
            raise
        except DatabaseError as error:
            found = _words(error)
        if found != "ok":
            raise AmtFieldError(
                "state-dir",
                str(self.database),
                f"a database that is whole; this one is damaged ({found})",
                "restore a backup of the state folder, or move this file away to begin with an empty one",
            )

    def _check_version(self) -> None:
        version = self.get_meta("schema")
        if version is None:
            self.set_meta("schema", SCHEMA_VERSION)
            self.commit()
        elif version != SCHEMA_VERSION:
            raise AmtFieldError(
                "state-dir",
                str(self.state_dir),
                f"a folder written with layout {SCHEMA_VERSION}, this one has layout {version}",
                "use another folder, or the version of this package that wrote it",
            )

    # --- tuning jobs -----------------------------------------------------------------------------

    def insert_tuning_job(self, values: Mapping[str, Any]) -> int:
        """Add a tuning job and return its id."""
        return self._insert(_insert_tuning, values)

    def update_tuning_job(self, job_id: int, values: Mapping[str, Any]) -> None:
        """Change columns of a tuning job."""
        self._write(_update_tuning, {"_id": job_id, **values})

    def tuning_job(self, region: str, name: str) -> Row | None:
        """Return a tuning job by its name, in whatever case, or ``None``."""
        kept = self._kept[tuning_jobs.name]
        return kept.by_name(region, name.lower()) or self._keep_one(
            tuning_jobs, tuning_jobs.c.region == region, tuning_jobs.c.name_key == name.lower()
        )

    def tuning_job_by_id(self, job_id: int) -> Row:
        """Return a tuning job by its id."""
        kept = self._kept[tuning_jobs.name]
        row = kept.by_id(job_id) or self._keep_one(tuning_jobs, tuning_jobs.c.id == job_id)
        if row is None:
            raise LookupError(f"there is no tuning job with id {job_id}")
        return row

    def tuning_job_by_arn(self, arn: str) -> Row | None:
        """Return a tuning job by its ARN, or ``None``."""
        return self._one(tuning_jobs, tuning_jobs.c.arn == arn, ~tuning_jobs.c.deleted)

    def delete_tuning_job(self, row: Row) -> None:
        """Take a tuning job out of sight; its training jobs stay, as in SageMaker."""
        self.update_tuning_job(row["id"], {"deleted": True, "name_key": f"{row['id']}/{row['name_key']}"})
        self.set_tags(row["arn"], {})

    def unfinished_tuning_jobs(self) -> list[Row]:
        """Return the tuning jobs that still go on or are being stopped, oldest first."""
        return self._all(tuning_jobs, tuning_jobs.c.status.in_(GOING_ON))

    def count_unfinished(self, region: str) -> int:
        """Return how many tuning jobs of a region still go on."""
        return int(
            self._connection.execute(
                sa.select(sa.func.count())
                .select_from(tuning_jobs)
                .where(tuning_jobs.c.region == region, tuning_jobs.c.status.in_(GOING_ON))
            ).scalar_one()
        )

    def list_tuning_jobs(
        self,
        conditions: Sequence[sa.ColumnElement[bool]],
        order_by: Sequence[sa.ColumnElement[Any]],
        limit: int,
    ) -> list[Row]:
        """Return one page of tuning jobs."""
        return self._page(tuning_jobs, conditions, order_by, limit)

    # --- training jobs ---------------------------------------------------------------------------

    def insert_training_job(self, values: Mapping[str, Any]) -> int:
        """Add a training job and return its id."""
        return self._insert(_insert_training, values)

    def update_training_job(self, job_id: int, values: Mapping[str, Any]) -> None:
        """Change columns of a training job."""
        self._write(_update_training, {"_id": job_id, **values})

    def training_job(self, region: str, name: str) -> Row | None:
        """Return a training job by its name, or ``None``."""
        kept = self._kept[training_jobs.name]
        return kept.by_name(region, name.lower()) or self._keep_one(
            training_jobs, training_jobs.c.region == region, training_jobs.c.name_key == name.lower()
        )

    def training_job_by_id(self, job_id: int) -> Row:
        """Return a training job by its id."""
        kept = self._kept[training_jobs.name]
        row = kept.by_id(job_id) or self._keep_one(training_jobs, training_jobs.c.id == job_id)
        if row is None:
            raise LookupError(f"there is no training job with id {job_id}")
        return row

    def training_job_by_arn(self, arn: str) -> Row | None:
        """Return a training job by its ARN, or ``None``."""
        return self._one(training_jobs, training_jobs.c.arn == arn)

    def training_jobs_of(self, tuning_job_id: int) -> list[Row]:
        """Return all training jobs of a tuning job in the order they were created."""
        return self._all(training_jobs, training_jobs.c.tuning_job_id == tuning_job_id)

    def list_training_jobs(
        self,
        conditions: Sequence[sa.ColumnElement[bool]],
        order_by: Sequence[sa.ColumnElement[Any]],
        limit: int,
    ) -> list[Row]:
        """Return one page of training jobs."""
        return self._page(training_jobs, conditions, order_by, limit)

    def unfinished_training_jobs(self) -> list[Row]:
        """Return the training jobs that have not ended, oldest first."""
        return self._all(training_jobs, training_jobs.c.status.in_(GOING_ON))

    # --- tags ------------------------------------------------------------------------------------

    def tags_of(self, arn: str) -> dict[str, str]:
        """Return the tags of a resource in the order they were added."""
        rows = self._connection.execute(
            sa.select(tags.c.key, tags.c.value).where(tags.c.arn == arn).order_by(tags.c.position)
        )
        return {row.key: row.value for row in rows}

    def set_tags(self, arn: str, values: Mapping[str, str]) -> None:
        """Replace all tags of a resource."""
        self._write(sa.delete(tags).where(tags.c.arn == arn))
        if values:
            self._write(
                _insert_tags,
                [
                    {"arn": arn, "key": key, "value": value, "position": position}
                    for position, (key, value) in enumerate(values.items())
                ],
            )

    # --- helpers ---------------------------------------------------------------------------------

    def _one(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Row | None:
        rows = self._all(table, *conditions)
        if len(rows) > 1:
            raise RuntimeError(f"{len(rows)} rows where one was expected")
        return rows[0] if rows else None

    def _keep_one(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> Row | None:
        row = self._one(table, *conditions)
        return None if row is None else self._kept[table.name].keep(row)

    def _page(
        self,
        table: sa.Table,
        conditions: Sequence[sa.ColumnElement[bool]],
        order_by: Sequence[sa.ColumnElement[Any]],
        limit: int,
    ) -> list[Row]:
        """Return one page of a table's rows; those that are not in memory are read."""
        kept = self._kept[table.name]
        ids = self._connection.execute(
            sa.select(table.c.id).where(*conditions).order_by(*order_by).limit(limit)
        ).scalars()
        rows = {key: kept.by_id(key) for key in ids}
        missing = [key for key, row in rows.items() if row is None]
        if missing:
            for row in self._all(table, table.c.id.in_(missing)):
                rows[row["id"]] = kept.keep(row)
        return [row for row in rows.values() if row is not None]

    def _note_write(
        self,
        _connection: sa.Connection,
        statement: Any,
        many: Sequence[Mapping[str, Any]],
        one: Mapping[str, Any],
        *_: Any,
    ) -> None:
        """Called by SQLAlchemy after each statement."""
        self._forget(statement, many or [one])

    def _note_rollback(self, _connection: sa.Connection) -> None:
        for kept in self._kept.values():
            kept.clear()

    def _all(self, table: sa.Table, *conditions: sa.ColumnElement[bool]) -> list[Row]:
        """Return rows of a table, oldest first."""
        query = sa.select(table).where(*conditions).order_by(table.c.id)
        return [
            self._checked(table, {str(key): value for key, value in row.items()})
            for row in self._connection.execute(query).mappings()
        ]

    def _checked(self, table: sa.Table, values: dict[str, Any]) -> Row:
        """Return a row with what could not be written yet; of damaged columns, reading raises."""
        if self._why_behind is not None:
            for statement, parameters in self._unsaved:
                if isinstance(statement, sa.Update) and statement.table is table:
                    changed = {key: value for key, value in parameters.items() if key != "_id"}
                    values.update(changed if parameters["_id"] == values["id"] else {})
        errors = {}
        for column, types, nullable in _columns(table):
            value = values[column]
            if value is None and nullable:
                continue
            if type(value) is _Damaged:
                what = f"is not valid JSON: {shown_value(value)}"
            elif not isinstance(value, types) or (isinstance(value, str) and not _is_utf8(value)):
                what = f"holds {shown_value(value)}"
            else:
                continue
            errors[column] = DamagedRowError(
                self.database, table.name, values["id"], values["name"], column, what
            )
        return _DamagedRow(values, errors) if errors else values


@cache
def _columns(table: sa.Table) -> list[tuple[str, tuple[type[Any], ...], bool]]:
    """Return name, Python types and whether it may be empty, for each column."""
    return [
        (
            column.name,
            _JSON_TYPES.get(column.name)
            or next(types for kind, types in _TYPES.items() if isinstance(column.type, kind)),
            bool(column.nullable),
        )
        for column in table.columns
    ]


class Snapshot(Store):
    """The state of a store as it is when this is made, for reading only; what is written later is not in it.

    :param store: the store; it must live longer.
    """

    def __init__(self, store: Store) -> None:
        store.commit()
        self.state_dir = store.state_dir
        self._unsaved = []
        self._why_behind = None
        self._retry_at = 0.0
        # Nothing that is written here may be kept for later.
        self._in_transaction = True
        self._connection = store._engine.connect()
        self._kept = _no_rows()
        self._connection.exec_driver_sql("PRAGMA query_only=ON")
        # In WAL mode, a transaction goes on seeing the state that its first read saw.
        self._connection.exec_driver_sql("BEGIN")
        self._connection.exec_driver_sql("SELECT 1 FROM meta").close()

    def close(self) -> None:
        """Close the connection; the folder stays the store's."""
        self._connection.close()


def _no_rows() -> dict[str, _KeptRows]:
    return {tuning_jobs.name: _KeptRows("name_key"), training_jobs.name: _KeptRows("name_key")}


def _inserted(result: sa.CursorResult[Any]) -> int:
    key = result.inserted_primary_key
    if key is None:
        raise RuntimeError("SQLite gave no id to a new row")
    return int(key[0])


def _decode_leniently(connection: Any, _: Any) -> None:
    connection.text_factory = lambda content: content.decode("utf-8", errors="surrogateescape")


def _is_utf8(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _read_json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError, TypeError):
        return _Damaged(text)


def _words(error: DatabaseError) -> str:
    return str(error.orig)


def _compact_json(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _locked(state_dir: Path) -> IO[str]:
    """Take the folder's lock; it is given free when the file is closed, at the latest by the kernel."""
    path = state_dir / state_folder.LOCK
    handle = path.open("a+", encoding="ascii")
    with contextlib.ExitStack() as unless_locked:
        unless_locked.callback(handle.close)
        try:
            state_folder.lock(handle)
        except BlockingIOError:
            handle.seek(0)
            owner = handle.read().strip() or "unknown"
            raise StateFolderInUseError(
                "state-dir",
                str(state_dir),
                f"a folder that no other server uses; the process with id {owner} uses this one",
                "stop that server, or choose another --state-dir",
            ) from None
        state_folder.forget_endpoint(state_dir)
        handle.truncate(0)
        handle.write(str(os.getpid()))
        handle.flush()
        unless_locked.pop_all()
    return handle
