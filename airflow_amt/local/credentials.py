"""The access key and secret of an embedded AMT, and the forms in which clients take them.

They are made once for each state folder and kept in its file ``credentials``, in the format of AWS's shared
credentials file, so that clients survive a restart of the server.
"""

from __future__ import annotations

import base64
import configparser
import contextlib
import json
import os
import secrets
import shlex
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError

FILE = "credentials"
DEFAULT_REGION = "us-east-1"
_SECTION = "default"
_LARGEST_FILE = 4096


@dataclass(frozen=True, slots=True, kw_only=True)
class Credentials:
    """What a client signs its requests with.

    :param access_key_id: the public part, 20 characters.
    :param secret_access_key: the secret part, 40 characters.
    """

    access_key_id: str
    secret_access_key: str = field(repr=False)


def of_state_folder(state_dir: Path) -> Credentials:
    """Return the credentials of a state folder; make them if it has none.

    :param state_dir: the folder; it must exist, and be private.
    :raises AmtFieldError: the file is damaged.
    :raises OSError: the file cannot be read or written.
    """
    path = state_dir / FILE
    if not path.exists():
        _make(path)
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(_read_private(path))
        found = Credentials(
            access_key_id=parser[_SECTION]["aws_access_key_id"],
            secret_access_key=parser[_SECTION]["aws_secret_access_key"],
        )
        if not found.access_key_id or not found.secret_access_key:
            raise ValueError("a value is empty")
    except (configparser.Error, KeyError, ValueError) as error:
        raise AmtFieldError(
            "credentials",
            str(path),
            f"a file with aws_access_key_id and aws_secret_access_key under [{_SECTION}] ({error})",
            "delete it: the server makes new credentials, which clients then have to use",
        ) from None
    return found


def _read_private(path: Path) -> str:
    """Return the content of a file that nobody but this user can have written or read.

    :raises ValueError: it is none.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(descriptor, "rb") as handle:
        status = os.fstat(descriptor)
        if path.is_symlink() or not stat.S_ISREG(status.st_mode):
            raise ValueError("it is no file")
        if status.st_uid != os.geteuid() or status.st_mode & 0o077:
            raise ValueError(
                f"others own it, or may read or write it: mode {stat.S_IMODE(status.st_mode):04o}"
            )
        return handle.read(_LARGEST_FILE).decode("ascii")


def _make(path: Path) -> None:
    """Write new credentials, unless another process has just done so."""
    key = "AMT" + base64.b32encode(secrets.token_bytes(11)).decode()[:17]
    content = (
        f"[{_SECTION}]\naws_access_key_id = {key}\naws_secret_access_key = {secrets.token_urlsafe(30)}\n"
    )
    part = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        with os.fdopen(descriptor, "w", encoding="ascii") as handle:
            handle.write(content)
        # A link appears whole or not at all, and never replaces a file.
        with contextlib.suppress(FileExistsError):
            os.link(part, path)
    finally:
        part.unlink()


def environment(credentials: Credentials, endpoint: str, region: str) -> dict[str, str]:
    """Return the variables by which AWS's clients find and use the server.

    :param endpoint: its address.
    """
    return {
        "AWS_ENDPOINT_URL": endpoint,
        "AWS_ACCESS_KEY_ID": credentials.access_key_id,
        "AWS_SECRET_ACCESS_KEY": credentials.secret_access_key,
        "AWS_DEFAULT_REGION": region,
    }


def connection(
    credentials: Credentials, endpoint: str, region: str, extra: Mapping[str, Any] | None = None
) -> str:
    """Return an Airflow connection of type ``aws`` as JSON.

    :param endpoint: the server's address, for every service.
    :param extra: more of the connection's extra; it comes before what is put there otherwise.
    """
    own = {"region_name": region, "endpoint_url": endpoint}
    return json.dumps(
        {
            "conn_type": "aws",
            "login": credentials.access_key_id,
            "password": credentials.secret_access_key,
            "extra": {**own, **(extra or {})},
        }
    )


def as_exports(credentials: Credentials, endpoint: str, region: str) -> str:
    """Return shell commands that set the variables."""
    variables = environment(credentials, endpoint, region)
    return "\n".join(f"export {name}={shlex.quote(value)}" for name, value in variables.items())


def as_profile(credentials: Credentials, endpoint: str, region: str) -> str:
    """Return a profile for AWS's configuration file (``~/.aws/config``)."""
    lines = [
        "[profile airflow-amt]",
        f"aws_access_key_id = {credentials.access_key_id}",
        f"aws_secret_access_key = {credentials.secret_access_key}",
        f"region = {region}",
        f"endpoint_url = {endpoint}",
    ]
    return "\n".join(lines)


def as_connection(credentials: Credentials, endpoint: str, region: str) -> str:
    """Return a shell command that sets Airflow's connection ``aws_default``."""
    return f"export AIRFLOW_CONN_AWS_DEFAULT={shlex.quote(connection(credentials, endpoint, region))}"


FORMATS = {"exports": as_exports, "profile": as_profile, "connection": as_connection}
