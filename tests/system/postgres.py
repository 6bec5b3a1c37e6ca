"""A throw-away PostgreSQL server for a live Airflow: its programs come from the operating system."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import psycopg2

from tests.system.cluster import LOOPBACK, free_port

USER = "airflow"
DATABASE = "airflow"
_START_SECONDS = 60.0
#: Where Debian and Ubuntu keep the programs that are not on everybody's path.
_DEBIAN = Path("/usr/lib/postgresql")


class PostgresMissingError(Exception):
    """This machine has no PostgreSQL server."""

    def __str__(self) -> str:
        return "PostgreSQL's initdb and postgres are not installed (Debian: apt-get install postgresql)"


def programs() -> Path:
    """Return the folder with `initdb` and `postgres`, of the newest version there is.

    :raises PostgresMissingError: there is none.
    """
    folders = sorted(
        _DEBIAN.glob("*/bin"),
        key=lambda one: [int(part) for part in one.parent.name.split(".")],
        reverse=True,
    )
    found = shutil.which("initdb")
    if found is not None:
        folders.append(Path(found).parent)
    for folder in folders:
        if (folder / "initdb").exists() and (folder / "postgres").exists():
            return folder
    raise PostgresMissingError


def _account() -> pwd.struct_passwd | None:
    """Return whom the server runs as, `None` for whoever runs this: it refuses to run as root."""
    if os.geteuid() != 0:
        return None
    try:
        return pwd.getpwnam("postgres")
    except KeyError:
        return pwd.getpwnam("nobody")


class Postgres:
    """A server on the loopback interface for the time of a `with` block; nothing of it is left.

    :raises PostgresMissingError: the machine has none.
    """

    def __init__(self) -> None:
        self._programs = programs()
        self._port = free_port()
        self._folder: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        """Return the SQLAlchemy URL of an empty database."""
        return f"postgresql+psycopg2://{USER}@{LOOPBACK}:{self._port}/{DATABASE}"

    def __enter__(self) -> Self:
        account = _account()
        self._folder = Path(tempfile.mkdtemp(prefix="airflow-amt-postgres-"))
        options: dict[str, Any] = {
            "cwd": self._folder,
            "stdin": subprocess.DEVNULL,
            "env": {"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C.UTF-8", "TZ": "UTC"},
        }
        if account is not None:
            os.chown(self._folder, account.pw_uid, account.pw_gid)
            options.update(user=account.pw_uid, group=account.pw_gid, extra_groups=[])
        data = self._folder / "data"
        try:
            with (self._folder / "log").open("ab") as log:
                subprocess.run(
                    [self._programs / "initdb", "-D", data, "-U", USER, "--auth=trust", "--no-sync"],
                    check=True,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    timeout=_START_SECONDS,
                    **options,
                )
                settings = {
                    "listen_addresses": LOOPBACK,
                    "port": self._port,
                    "unix_socket_directories": "",
                    "max_connections": 300,
                    # Not kept beyond this block, and the machine is not what crashes here.
                    "fsync": "off",
                    "synchronous_commit": "off",
                    "full_page_writes": "off",
                }
                flags = [part for key, value in settings.items() for part in ("-c", f"{key}={value}")]
                self._process = subprocess.Popen(
                    [self._programs / "postgres", "-D", data, *flags],
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                    **options,
                )
            self._create_database()
        except BaseException as error:
            said = (self._folder / "log").read_text(encoding="utf-8", errors="replace")
            error.add_note(f"PostgreSQL said:\n{said[-4000:]}")
            self._close()
            raise
        return self

    def __exit__(
        self,
        exc_type: type[BaseException] | None,
        exc: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._close()

    def _create_database(self) -> None:
        connection = self._connect()
        try:
            connection.autocommit = True
            with connection.cursor() as cursor:
                cursor.execute(f"CREATE DATABASE {DATABASE}")
        finally:
            connection.close()

    def _connect(self) -> Any:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                return psycopg2.connect(host=LOOPBACK, port=self._port, user=USER, dbname="postgres")
            except psycopg2.OperationalError:
                # It says so while it starts; whether it ended instead is seen here.
                if self._process is None or self._process.poll() is not None or time.monotonic() > deadline:
                    raise
                time.sleep(0.1)

    def _close(self) -> None:
        if self._process is not None:
            # Fast shutdown: open connections are ended.
            self._process.send_signal(signal.SIGINT)
            try:
                self._process.wait(20)
            except subprocess.TimeoutExpired:
                self._process.kill()
                self._process.wait()
            self._process = None
        if self._folder is not None:
            shutil.rmtree(self._folder)
            self._folder = None
