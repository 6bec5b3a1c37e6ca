"""Addresses of S3, and where they are below a folder: ``s3://bucket/key`` is ``<s3-root>/bucket/key``."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import urlsplit


class StorageError(Exception):
    """Something could not be read from where ``s3://`` is, or stored there; the text says what."""


class UnmappableAddressError(StorageError, ValueError):
    """An address that is none of S3, or has no place under the folder that stands for S3."""


def split(uri: str) -> tuple[str, str]:
    """Return bucket and key of an ``s3://`` address.

    :raises UnmappableAddressError: another scheme, or no bucket.
    """
    scheme, separator, rest = uri.partition("://")
    if scheme != "s3" or not separator:
        raise UnmappableAddressError(f"{uri!r} is not an s3:// address; nothing else is mapped to a folder")
    bucket, _, key = rest.partition("/")
    if not bucket:
        raise UnmappableAddressError(f"{uri!r} names no bucket")
    return bucket, key


def local_path(root: Path, uri: str) -> Path:
    """Return the file or folder that stands for an ``s3://`` address; it need not exist.

    :param root: the folder that stands for S3.
    :param uri: ``s3://bucket/key``; also ``file:///folder``, which is taken as it is.
    :raises UnmappableAddressError: another scheme, no bucket, or a path with ``..`` in it.
    """
    if uri.startswith("file://"):
        return Path(urlsplit(uri).path)
    bucket, key = split(uri)
    parts = [part for part in key.split("/") if part not in ("", ".")]
    if bucket in (".", "..") or ".." in parts or "\0" in uri:
        raise UnmappableAddressError(f"{uri!r} cannot be mapped to a folder below {root}")
    return root.joinpath(bucket, *parts)


def matching(root: Path, uri: str) -> list[Path]:
    """Return what an ``S3Prefix`` stands for: the content of a folder, or files whose name begins so.

    :param root: the folder that stands for S3.
    :param uri: the prefix.
    :return: files and folders; empty if nothing matches.
    :raises UnmappableAddressError: see :func:`local_path`.
    """
    path = local_path(root, uri)
    if path.is_dir():
        return sorted(path.iterdir())
    if path.exists():
        return [path]
    # S3 keys have no folders: "s3://bucket/data/part-" stands for every key that begins so.
    if uri.endswith("/") or path.parent == root or not path.parent.is_dir():
        return []
    return sorted(one for one in path.parent.iterdir() if one.name.startswith(path.name))
