"""Where ``s3://`` is: a folder of this machine, or an S3 server.

A prefix means the same in both: a folder if there is one of this name, else the object of this name, else
every object whose key begins so. What is below it gets its name in a channel from the rest of its key.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import shutil
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import files, s3
from airflow_amt.local.s3 import Places, StorageError

#: Folder below the root for what is not complete yet; no bucket can be called so.
INCOMING = ".incoming"

_DOWNLOADS_AT_ONCE = 8
_CHUNK = 1024 * 1024


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """One object below a prefix.

    :param uri: its address.
    :param name: what it is called in a channel: a relative path without ``..``.
    """

    uri: str
    name: str


class Storage(Protocol):
    """What training jobs need of S3.

    Every method raises :class:`StorageError` where an address cannot be used or the storage refuses, and
    ``OSError`` where this machine's disk does.
    """

    def objects(self, uri: str) -> list[StoredObject]:
        """Return the objects that a prefix stands for, in the order of their keys."""

    def provide(self, uri: str, folder: Path) -> bool:
        """Put all that a prefix stands for into a folder; say whether there was anything."""

    def fetch(self, uri: str, target: Path) -> None:
        """Put one object where ``target`` says."""

    def open(self, uri: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """Open one object to be read from its beginning to its end."""

    def store(self, source: Path, uri: str) -> None:
        """Store a file at an address; it must not be changed afterwards."""

    def store_all(self, content: Iterable[tuple[str, Path]], uri: str) -> None:
        """Store files below an address, each by its name there: a relative path without ``..``."""

    def where(self, uri: str) -> str:
        """Say where people find an address, for messages."""

    def close(self) -> None:
        """Give back connections."""

    def description(self) -> dict[str, Any]:
        """Return, as JSON can carry it, what :func:`storage_of` makes an equal one of, in another process.

        It may hold credentials.
        """


def storage_of(description: Mapping[str, Any]) -> Storage:
    """Return the storage that another process described."""
    if "endpoint" in description:
        return BucketStorage(**description)
    state_dir = description["state_dir"]
    places = Places(
        s3_root=Path(description["s3_root"]),
        roots=tuple(Path(root) for root in description["roots"]),
        state_dir=None if state_dir is None else Path(state_dir),
    )
    return FolderStorage(places)


class FolderStorage:
    """A folder that stands for S3: ``s3://bucket/key`` is the file ``<s3-root>/bucket/key``.

    :param places: that folder, and what else may be reached.
    :param link: give links to the files in place of copies.
    """

    def __init__(self, places: Places, *, link: bool = False) -> None:
        self.places = places
        self._link = link

    def objects(self, uri: str) -> list[StoredObject]:
        """See :meth:`Storage.objects`."""
        return [StoredObject(uri=self._uri(path), name=name) for name, path in self.places.matching(uri)]

    def _uri(self, path: Path) -> str:
        root = self.places.s3_root
        return f"s3://{path.relative_to(root).as_posix()}" if path.is_relative_to(root) else path.as_uri()

    def provide(self, uri: str, folder: Path) -> bool:
        """See :meth:`Storage.provide`."""
        folder.mkdir(parents=True, exist_ok=True)
        found = False
        for name, path in self.places.matching(uri):
            found = True
            self._give(path, folder / name)
        return found

    def fetch(self, uri: str, target: Path) -> None:
        """See :meth:`Storage.fetch`."""
        self._give(self._file(uri), target)

    def _give(self, source: Path, target: Path) -> None:
        if self._link:
            files.make_folder(target.parent)
            target.symlink_to(os.path.realpath(source))
        else:
            files.copy(source, target)

    def open(self, uri: str) -> contextlib.AbstractContextManager[IO[bytes]]:
        """See :meth:`Storage.open`."""
        return files.open_file(self._file(uri))

    def _file(self, uri: str) -> Path:
        path = self.places.path(uri)
        if uri.endswith("/") or not files.is_file(path):
            raise StorageError(f"{uri} does not exist (looked at {path})")
        return path

    def store(self, source: Path, uri: str) -> None:
        """See :meth:`Storage.store`."""

        def bring(part: Path) -> None:
            try:
                os.link(source, part)
            except OSError:  # another file system
                files.copy(source, part)

        put(self.places.s3_root, self.places.path(uri), bring)

    def store_all(self, content: Iterable[tuple[str, Path]], uri: str) -> None:
        """See :meth:`Storage.store_all`."""
        self.places.path(uri).mkdir(parents=True, exist_ok=True)
        for name, source in content:
            target = self.places.path(f"{uri.rstrip('/')}/{name}")
            put(self.places.s3_root, target, functools.partial(files.copy, source))

    def where(self, uri: str) -> str:
        """See :meth:`Storage.where`."""
        return str(self.places.path(uri))

    def close(self) -> None:
        """Nothing is held open."""

    def description(self) -> dict[str, Any]:
        """See :meth:`Storage.description`."""
        state_dir = self.places.state_dir
        return {
            "s3_root": str(self.places.s3_root),
            "roots": [str(root) for root in self.places.roots],
            "state_dir": None if state_dir is None else str(state_dir),
        }


def put(s3_root: Path, target: Path, bring: Callable[[Path], None]) -> None:
    """Let a file have new content at once: readers see the old object or the new one, as with S3.

    :param bring: writes the content to the path that it is given.
    :raises OSError: this machine refuses.
    """
    files.make_folder(target.parent)
    incoming = s3_root / INCOMING
    incoming.mkdir(parents=True, exist_ok=True)
    part = incoming / uuid.uuid4().hex
    try:
        bring(part)
        try:
            part.replace(target)
        except OSError as error:
            if error.errno != errno.EXDEV:
                raise
            # The folder of the bucket is a link to another file system.
            beside = target.with_name(f".{part.name}")
            try:
                files.copy(part, beside)
                beside.replace(target)
            finally:
                beside.unlink(missing_ok=True)
    finally:
        part.unlink(missing_ok=True)


class BucketStorage:
    """An S3 server, spoken to with botocore in path style.

    Nothing but the parameters is asked for credentials.

    :param endpoint: its address, as ``http://127.0.0.1:9000``.
    :param region: AWS region.
    :param access_key_id: dummy credentials unless given, which S3 servers for tests accept.
    :param secret_access_key: likewise.
    :param session_token: of temporary credentials.
    :raises AmtFieldError: the address is none.
    """

    def __init__(
        self,
        endpoint: str,
        *,
        region: str = "us-east-1",
        access_key_id: str = "embedded",
        secret_access_key: str = "embedded",  # noqa: S107 - no secret
        session_token: str = "",
    ) -> None:
        if not endpoint.startswith(("http://", "https://")):
            raise AmtFieldError(
                "s3-endpoint",
                endpoint,
                "the address of an S3 server",
                "write it as http://127.0.0.1:9000, or use a folder: --s3-root",
            )
        self.endpoint = endpoint
        self._description = {
            "endpoint": endpoint,
            "region": region,
            "access_key_id": access_key_id,
            "secret_access_key": secret_access_key,
            "session_token": session_token,
        }
        self._lock = threading.Lock()
        self._made: Any = None

    @classmethod
    def from_environment(cls, endpoint: str, environment: Mapping[str, str]) -> BucketStorage:
        """Return the storage with the region and credentials that AWS's variables give, if any."""
        given = {"region": environment.get("AWS_REGION") or environment.get("AWS_DEFAULT_REGION")}
        if environment.get("AWS_ACCESS_KEY_ID") and environment.get("AWS_SECRET_ACCESS_KEY"):
            given |= {
                "access_key_id": environment["AWS_ACCESS_KEY_ID"],
                "secret_access_key": environment["AWS_SECRET_ACCESS_KEY"],
                "session_token": environment.get("AWS_SESSION_TOKEN"),
            }
        return cls(endpoint, **{name: value for name, value in given.items() if value})

    def objects(self, uri: str) -> list[StoredObject]:
        """See :meth:`Storage.objects`."""
        bucket, prefix = s3.split(uri)
        with self._translated(uri):
            pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
            found = [one["Key"] for page in pages for one in page.get("Contents", ())]
        keys = [key for key in found if not key.endswith("/")]
        folder = prefix if not prefix or prefix.endswith("/") else f"{prefix}/"
        below = [key for key in keys if key.startswith(folder)]
        if below:
            keys, cut = below, len(folder)
        else:
            keys, cut = [prefix] if prefix in keys else keys, prefix.rfind("/") + 1
        return [StoredObject(uri=f"s3://{bucket}/{key}", name=_file_name(uri, key[cut:])) for key in keys]

    def provide(self, uri: str, folder: Path) -> bool:
        """Download all that a prefix stands for; see :meth:`Storage.provide`."""
        objects = self.objects(uri)
        folder.mkdir(parents=True, exist_ok=True)
        with ThreadPoolExecutor(_DOWNLOADS_AT_ONCE, thread_name_prefix="download") as threads:
            # list(): raises the first error.
            list(threads.map(lambda one: self.fetch(one.uri, folder / one.name), objects))
        return bool(objects)

    def fetch(self, uri: str, target: Path) -> None:
        """Download an object; see :meth:`Storage.fetch`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        with self.open(uri) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy, _CHUNK)

    @contextlib.contextmanager
    def open(self, uri: str) -> Iterator[IO[bytes]]:
        """See :meth:`Storage.open`."""
        bucket, key = s3.split(uri)
        with self._translated(uri):
            body = self._client.get_object(Bucket=bucket, Key=key)["Body"]
        # Also what goes wrong while it is read.
        with contextlib.closing(body), self._translated(uri):
            yield body

    def store(self, source: Path, uri: str) -> None:
        """Upload; see :meth:`Storage.store`."""
        self._upload(source, *s3.split(uri))

    def store_all(self, content: Iterable[tuple[str, Path]], uri: str) -> None:
        """See :meth:`Storage.store_all`."""
        bucket, key = s3.split(uri)
        for name, path in content:
            self._upload(path, bucket, f"{key.rstrip('/')}/{name}".lstrip("/"))

    def _upload(self, source: Path, bucket: str, key: str) -> None:
        with self._translated(f"s3://{bucket}/{key}"), files.open_file(source) as body:
            self._client.put_object(Bucket=bucket, Key=key, Body=body)

    def where(self, uri: str) -> str:
        """See :meth:`Storage.where`."""
        return f"{uri} of the S3 server {self.endpoint}"

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            if self._made is not None:
                self._made.close()
                self._made = None

    def description(self) -> dict[str, Any]:
        """See :meth:`Storage.description`."""
        return self._description

    @property
    def _client(self) -> Any:
        with self._lock:
            if self._made is None:
                self._made = _client(**self._description)
            return self._made

    @contextlib.contextmanager
    def _translated(self, uri: str) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise StorageError(f"{uri}: {error} (S3 server {self.endpoint})") from None


def _client(
    endpoint: str, region: str, access_key_id: str, secret_access_key: str, session_token: str
) -> Any:
    # Here, and not at the top: 25 MB that a server with a folder does without.
    import botocore.session
    from botocore.config import Config

    session = botocore.session.Session()
    return session.create_client(
        "s3",
        endpoint_url=endpoint,
        region_name=region,
        # Given, so that botocore asks no instance metadata service.
        aws_access_key_id=access_key_id,
        aws_secret_access_key=secret_access_key,
        aws_session_token=session_token or None,
        config=Config(
            s3={"addressing_style": "path"},
            retries={"mode": "standard", "total_max_attempts": 3},
            connect_timeout=5,
            read_timeout=60,
            max_pool_connections=50,
            # Older S3 servers know no checksums in trailers.
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        ),
    )


def _file_name(uri: str, name: str) -> str:
    """Return the rest of a key as a relative path.

    :raises StorageError: it would lead out of the folder, or no file can have this name.
    """
    if "\0" in name or any(part in ("", ".", "..") for part in name.split("/")):
        raise StorageError(f"{uri}: an object below it cannot be a file: its key ends in {name!r}")
    return name
