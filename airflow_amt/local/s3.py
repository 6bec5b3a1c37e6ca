"""Addresses, and the files that they stand for: ``s3://bucket/key`` is ``<s3-root>/bucket/key``.

:class:`Places` is the only way from an address to a path. It lets no address lead out of the folders that
callers may reach.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote_to_bytes

from airflow_amt.local import files


class StorageError(Exception):
    """Something could not be read from where ``s3://`` is, or stored there; the text says what."""

    def __init__(self, text: str) -> None:
        # Names of files and keys may have what UTF-8 cannot carry; the text goes into answers and the state.
        super().__init__(text.encode("utf-8", "backslashreplace").decode("utf-8"))


class UnmappableAddressError(StorageError, ValueError):
    """An address that is none of S3, or has no place under the folder that stands for S3."""


class RefusedPlaceError(StorageError):
    """An address that leads to a place that callers may not reach.

    :param what: the address, or a link below it, and where it leads.
    :param limit: what may be reached.
    :param fix: what to do.
    """

    def __init__(self, what: str, limit: str, fix: str) -> None:
        super().__init__(f"{what}. {limit[0].upper()}{limit[1:]}; {fix}")
        self.limit = limit
        self.fix = fix


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


@dataclass(frozen=True, slots=True)
class Place:
    """Where an address leads: a path that callers may reach; it need not exist.

    :param path: the file or folder.
    :param allows: whether a link found below it may be followed to a path without links.
    """

    path: Path
    allows: Callable[[Path], bool]


@dataclass(frozen=True, slots=True, kw_only=True)
class Places:
    """The files that callers may reach.

    An ``s3://`` address stays within the folder of its bucket, which may be a link to a folder within a root.
    Every other address stays within the roots. Both are asked of the real path, after all links.

    :param s3_root: the folder that stands for S3; always a root.
    :param roots: the other folders that callers may reach.
    :param state_dir: the state folder, which is nobody's but the server's, apart from an ``s3_root`` in it.
    """

    s3_root: Path
    roots: tuple[Path, ...] = ()
    state_dir: Path | None = None

    def path(self, uri: str) -> Path:
        """Return the file or folder that an address stands for; see :meth:`place`."""
        return self.place(uri).path

    def place(self, uri: str, *, plain: bool = False) -> Place:
        """Return where an address leads.

        :param uri: ``s3://bucket/key``, or ``file:///folder``, or a path if ``plain``.
        :raises UnmappableAddressError: another scheme, no bucket, a path with ``..`` in it, or a name that
            no file can have.
        :raises RefusedPlaceError: it leads to where callers may not reach.
        """
        try:
            os.fsencode(uri)
        except UnicodeEncodeError:
            raise UnmappableAddressError(f"{uri!r} is no text that can be the name of a file") from None
        if "\0" in uri:
            raise UnmappableAddressError(f"{uri!r} has a NUL character in it, which no file name can")
        if uri.startswith("file://"):
            return self._within_roots(uri, _file_path(uri))
        if plain and "://" not in uri:
            return self._within_roots(uri, Path(uri).absolute())
        bucket, key = split(uri)
        parts = [part for part in key.split("/") if part not in ("", ".")]
        if bucket in (".", "..") or ".." in parts:
            raise UnmappableAddressError(f"{uri!r} cannot be mapped to a folder below {self.s3_root}")
        if bucket.startswith("."):
            raise RefusedPlaceError(
                f"{uri} is the server's own", "names of buckets begin with no dot", "name another bucket"
            )
        home = self._within_roots(uri, self.s3_root / bucket)
        folder = _real(home.path)

        def allows(real: Path) -> bool:
            return real.is_relative_to(folder) and home.allows(real)

        path = home.path.joinpath(*parts)
        real = _real(path)
        if not home.allows(real) and real.is_relative_to(folder):
            raise _own(uri, real)
        if not allows(real):
            raise RefusedPlaceError(
                f"{uri} leads to {real}",
                f"what is in a bucket is in its folder {folder}, after all links",
                "put the file itself there, or make the folder of the bucket a link to where a --root DIR is",
            )
        return Place(path, allows)

    def _within_roots(self, uri: str, path: Path) -> Place:
        s3_root = _real(self.s3_root)
        state = None if self.state_dir is None else _real(self.state_dir)
        roots = [s3_root, *(_real(root) for root in self.roots)]

        def is_internal(real: Path) -> bool:
            if real.is_relative_to(s3_root):
                below = real.relative_to(s3_root).parts
                if below and below[0].startswith("."):
                    return True
                if state is not None and s3_root.is_relative_to(state) and s3_root != state:
                    return False
            return state is not None and real.is_relative_to(state)

        def allows(real: Path) -> bool:
            return any(real.is_relative_to(root) for root in roots) and not is_internal(real)

        real = _real(path)
        if is_internal(real):
            raise _own(uri, real)
        if not allows(real):
            raise RefusedPlaceError(
                f"{uri} leads to {real}",
                f"callers may reach {', '.join(map(str, roots))}",
                "start the server with --root DIR to allow another folder",
            )
        return Place(path, allows)

    def matching(self, uri: str, *, strict: bool = True) -> Iterator[tuple[str, Path]]:
        """Yield name and path of the files that an ``S3Prefix`` stands for, in the order of their keys.

        A prefix stands for a folder if there is one of this name, else for the file of this name, else for
        all files whose key begins so.

        :param uri: the prefix.
        :param strict: refuse what is there but may not be reached or cannot be read, instead of leaving it
            out.
        :raises UnmappableAddressError: see :meth:`place`.
        :raises RefusedPlaceError: see :meth:`place`; a link below it leads out.
        :raises OSError: a folder cannot be read.
        """
        place = self.place(uri)
        path = place.path

        def refused(link: Path, real: Path) -> None:
            if strict:
                raise RefusedPlaceError(
                    f"{uri}: the link {link} leads to {real}",
                    "links are followed only to where the address itself may lead",
                    "put the file itself there",
                )

        if files.is_folder(path):
            yield from files.walk(path, allows=place.allows, refused=refused, strict=strict)
        elif files.is_file(path):
            if not uri.endswith("/"):
                yield path.name, path
        # S3 keys have no folders: "s3://bucket/data/part-" stands for every key that begins so.
        elif not uri.endswith("/") and files.is_folder(path.parent) and place.allows(_real(path.parent)):
            yield from files.walk(
                path.parent, allows=place.allows, refused=refused, strict=strict, prefix=path.name
            )


def _own(uri: str, real: Path) -> RefusedPlaceError:
    return RefusedPlaceError(
        f"{uri} leads to {real}", "what is the server's own is nobody else's", "use another folder"
    )


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))


def _file_path(uri: str) -> Path:
    host, slash, rest = uri.removeprefix("file://").partition("/")
    if host not in ("", "localhost") or not slash:
        raise UnmappableAddressError(f"{uri!r} names no file of this machine; write file:///folder/file")
    path = os.fsdecode(unquote_to_bytes(os.fsencode("/" + rest)))
    if "\0" in path:
        raise UnmappableAddressError(f"{uri!r} has a NUL character in it, which no file name can")
    return Path(path)
