"""moto's S3 over the folder that stands for S3: the folder is the truth.

Before each request moto is told what has changed in the folder as far as the request is about it, and after
each request that changes something the folder is made to have it. Objects are read from their files when
somebody asks for them, so neither large ones nor many cost memory for their content. Metadata, tags, old
versions and bucket settings are moto's alone and end with the server.
"""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import re
import stat
import threading
from collections.abc import Container
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any
from urllib.parse import parse_qs, unquote

from moto.backends import get_backend
from moto.s3.models import FakeBucket, FakeDeleteMarker, FakeKey

from airflow_amt.local import files
from airflow_amt.local.s3 import Places, StorageError, UnmappableAddressError
from airflow_amt.local.s3_view import is_xml, keys, xml_text
from airflow_amt.local.storage import put

logger = logging.getLogger(__name__)

_REGION = "us-east-1"

#: What the look at a path says where no file is or can be.
_NO_FILE = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG, errno.EACCES, errno.ELOOP})

#: What tells one content of a file from another: modification time, size and inode.
_Signature = tuple[int, int, int]


#: Query parameters that moto parses as numbers without a check.
_NUMBERS = ("max-keys", "max-uploads", "max-parts", "partNumber", "part-number-marker")
_NUMBER = re.compile(r"[0-9]{1,10}")
_RANGE = re.compile(r"bytes=([0-9]{1,19}-[0-9]{0,19}|-[0-9]{1,19})")


class BucketsError(Exception):
    """A request that S3 refuses, or that stores what the folder cannot hold.

    :param code: S3's name of the error.
    :param message: why.
    """

    def __init__(self, code: str, message: str) -> None:
        super().__init__(code, message)
        self.code = code
        self.message = message


def error_document(error: BucketsError) -> bytes:
    """Return an error in S3's protocol."""
    return (
        f'<?xml version="1.0" encoding="UTF-8"?><Error><Code>{error.code}</Code>'
        f"<Message>{xml_text(error.message)}</Message></Error>"
    ).encode()


class _FileContent:
    """The content of an object, read from its file; takes the place of moto's buffer in memory.

    Each thread reads for itself: moto does not lock an object while it computes its ETag.

    :param path: the file.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened = threading.local()

    def seek(self, position: int) -> None:
        """Go to a position; the file is opened anew, as it may have been replaced."""
        self.close()
        self._opened.file = files.open_file(self.path)
        self._opened.file.seek(position)

    def read(self, size: int = -1) -> bytes:
        """Read on; the file is closed at its end."""
        file: IO[bytes] | None = getattr(self._opened, "file", None)
        if file is None:
            return b""
        content = file.read(size)
        if size < 0 or not content:
            self.close()
        return content

    def close(self) -> None:
        """Close the file."""
        file: IO[bytes] | None = getattr(self._opened, "file", None)
        if file is not None:
            file.close()
            self._opened.file = None


class Buckets:
    """Keeps moto's buckets and a folder the same.

    :param places: the folder that stands for S3, and what may be reached from it.
    :param account: 12-digit AWS account id, the owner of all buckets.
    """

    def __init__(self, places: Places, account: str) -> None:
        self._places = places
        self._root = places.s3_root
        self._account = account
        self._backend = get_backend("s3")[account]["aws"]
        # Of what moto and the folder both have, as it was when it was last compared.
        self._known: dict[str, dict[str, _Signature]] = {}
        self._lock = threading.Lock()

    def load(self, environ: dict[str, Any]) -> None:
        """Tell moto what the folder has, as far as a request is about it.

        :raises BucketsError: something in the request is not what S3 would take.
        """
        _check(environ, self._backend._pagination_tokens)
        bucket, key = _address(environ)
        source = unquote(environ.get("HTTP_X_AMZ_COPY_SOURCE", "").lstrip("/").partition("?")[0])
        with self._lock:
            self._load_buckets()
            if bucket:
                self._load(bucket, key)
            if source:
                self._load(*_split(source))

    def keep(self, environ: dict[str, Any]) -> None:
        """Store in the folder what a request has changed in moto.

        :raises BucketsError: the folder cannot hold it; moto has forgotten it again.
        """
        bucket, key = _address(environ)
        with self._lock:
            self._keep_buckets()
            if bucket in self._backend.buckets:
                keys = {key} if key else set(self._backend.buckets[bucket].keys) | set(self._known[bucket])
                for one in sorted(keys):
                    self._keep(bucket, one)

    def undo(self, environ: dict[str, Any]) -> None:
        """Take back what a request has changed in moto before moto refused it."""
        bucket, key = _address(environ)
        with self._lock:
            stored = self._backend.buckets[bucket].keys.get(key) if bucket in self._known else None
            if stored is not None and not isinstance(getattr(stored, "_value_buffer", None), _FileContent):
                self._drop(bucket, key)

    # --- buckets ---------------------------------------------------------------------------------

    def _load_buckets(self) -> None:
        self._root.mkdir(parents=True, exist_ok=True)
        folders = {one.name for one in self._root.iterdir() if self._is_bucket(one)}
        for name in folders - set(self._backend.buckets):
            if name not in self._known:
                self._backend.buckets[name] = FakeBucket(name, self._account, _REGION)
                self._known[name] = {}
        for name in set(self._known) - folders:
            bucket = self._backend.buckets.get(name)
            if bucket is not None:
                bucket.keys.clear()
                self._backend.delete_bucket(name)
            del self._known[name]

    def _is_bucket(self, folder: Path) -> bool:
        try:
            return files.is_folder(self._places.path(f"s3://{folder.name}"))
        except StorageError:
            return False

    def _keep_buckets(self) -> None:
        for name in set(self._backend.buckets) - set(self._known):
            try:
                self._places.path(f"s3://{name}").mkdir(parents=True, exist_ok=True)
            except (OSError, StorageError) as error:
                self._backend.delete_bucket(name)
                message = f"The bucket {name!r} cannot be a folder: {error}"
                raise BucketsError("InvalidRequest", message) from None
            self._known[name] = {}
        for name in set(self._known) - set(self._backend.buckets):
            del self._known[name]
            # Not empty if somebody put a file there meanwhile: then the bucket is there again.
            with contextlib.suppress(OSError):
                (self._root / name).rmdir()

    # --- objects ---------------------------------------------------------------------------------

    def _load(self, bucket: str, key: str) -> None:
        """Tell moto of one object, or of all of a bucket."""
        if bucket not in self._known:
            return
        if key:
            try:
                path = self._places.path(f"s3://{bucket}/{key}")
            except StorageError:
                # What cannot be an object here is none for moto either, also if it has been one.
                self._forget(bucket, key)
            else:
                self._load_one(bucket, key, path)
            return
        # moto puts keys into XML as they are.
        found = {name: path for name, path in keys(self._places.place(f"s3://{bucket}")) if is_xml(name)}
        for name, path in found.items():
            self._load_one(bucket, name, path)
        for name in set(self._known[bucket]) - set(found):
            self._forget(bucket, name)

    def _load_one(self, bucket: str, key: str, path: Path) -> None:
        signature = _signature(path)
        if signature is None:
            self._forget(bucket, key)
        elif self._known[bucket].get(key) != signature:
            stored = FakeKey(key, b"", self._account, _REGION, version_id="null", bucket_name=bucket)
            self._attach(bucket, stored, path, signature)
            self._backend.buckets[bucket].keys.setlist(key, [stored])

    def _forget(self, bucket: str, key: str) -> None:
        if self._known[bucket].pop(key, None) is not None and key in self._backend.buckets[bucket].keys:
            self._backend.buckets[bucket].keys.pop(key)

    def _attach(self, bucket: str, stored: Any, path: Path, signature: _Signature) -> None:
        """Let an object of moto have its content from its file."""
        stored._value_buffer.close()
        stored._value_buffer = _FileContent(path)
        stored.contentsize = signature[1]
        stored.last_modified = datetime.fromtimestamp(signature[0] / 1e9, tz=UTC).replace(tzinfo=None)
        self._known[bucket][stored.name] = signature

    def _keep(self, bucket: str, key: str) -> None:
        stored = self._backend.buckets[bucket].keys.get(key)
        if stored is None or isinstance(stored, FakeDeleteMarker):
            if self._known[bucket].pop(key, None) is not None:
                self._remove(bucket, key)
            return
        if isinstance(stored._value_buffer, _FileContent):
            return
        try:
            path = self._path_of(bucket, key)
            if key.endswith("/"):
                # What consoles and tools make to show an empty folder.
                path.mkdir(parents=True, exist_ok=True)
                return
            _ = stored.etag  # while the content is still in memory
            put(self._root, path, lambda part: _write(part, stored.value))
            signature = _signature(path)
            if signature is None:
                raise FileNotFoundError(f"{path} vanished")
        except (OSError, StorageError) as error:
            self._drop(bucket, key)
            raise BucketsError(
                "InvalidRequest",
                f"The object {key!r} cannot be stored as a file below {self._root / bucket}: {error}",
            ) from None
        self._attach(bucket, stored, path, signature)

    def _drop(self, bucket: str, key: str) -> None:
        """Forget an object; it is read from its file again if there is one."""
        self._known[bucket].pop(key, None)
        if key in self._backend.buckets[bucket].keys:
            self._backend.buckets[bucket].keys.pop(key)

    def _path_of(self, bucket: str, key: str) -> Path:
        path = self._places.path(f"s3://{bucket}/{key}")
        if path.relative_to(self._root / bucket).as_posix() != key.removesuffix("/"):
            raise UnmappableAddressError("its key has empty parts, '.' or '..' in it")
        if path.is_dir() and not key.endswith("/"):
            raise UnmappableAddressError("there are objects below it, so it is a folder")
        return path

    def _remove(self, bucket: str, key: str) -> None:
        path = self._places.path(f"s3://{bucket}/{key}")
        path.unlink(missing_ok=True)
        # S3 has no folders: with the last object below it a folder is gone.
        for parent in path.parents:
            if parent == self._root / bucket:
                break
            try:
                parent.rmdir()
            except OSError:
                break


def _check(environ: dict[str, Any], tokens: Container[str]) -> None:
    """Refuse what moto would break at, and drop a range that S3 would take no notice of."""
    query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True)
    for name in _NUMBERS:
        for value in query.get(name, ()):
            if not _NUMBER.fullmatch(value):
                message = f"{name} must be a whole number from 0, not {value[:100]}"
                raise BucketsError("InvalidArgument", message)
    if any(token not in tokens for token in query.get("continuation-token", ())):
        raise BucketsError("InvalidArgument", "The continuation token provided is incorrect")
    if not _RANGE.fullmatch(environ.get("HTTP_RANGE", "")):
        environ.pop("HTTP_RANGE", None)
    copied = environ.get("HTTP_X_AMZ_COPY_SOURCE_RANGE")
    if copied is not None and not _RANGE.fullmatch(copied):
        raise BucketsError("InvalidArgument", f"A range of bytes is bytes=0-99, not {copied[:100]}")


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def _signature(path: Path) -> _Signature | None:
    try:
        status = path.stat()
    except OSError as error:
        if error.errno in _NO_FILE:
            return None
        raise
    if not stat.S_ISREG(status.st_mode) or not os.access(path, os.R_OK):
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _address(environ: dict[str, Any]) -> tuple[str, str]:
    """Return bucket and key that a request of S3 (path style) is about; empty where it names none."""
    path = unquote(environ.get("RAW_URI", environ["PATH_INFO"]).partition("?")[0])
    bucket, key = _split(path.removeprefix("/"))
    if "delete" in parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True):
        return bucket, ""  # DeleteObjects names its keys in the body
    return bucket, key


def _split(path: str) -> tuple[str, str]:
    bucket, _, key = path.partition("/")
    return bucket, key
