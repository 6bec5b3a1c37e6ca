"""Input channels: which objects they are made of, and how these get into a training job's folder.

In ``File`` mode (and ``FastFile``, where files may be there sooner, but are files as well) a channel is a
folder. In ``Pipe`` mode it is a sequence of named pipes, one for each pass over the data, which
:mod:`airflow_amt.local.pipes` fills.
"""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import json_text
from airflow_amt.local.s3 import StorageError
from airflow_amt.local.storage import Storage

#: Most bytes of a manifest that are read.
LONGEST_MANIFEST = 64 * 1024 * 1024
#: What reading a text says that is no JSON, or not of the form that it must have.
_NOT_JSON = (ValueError, TypeError, KeyError)


@dataclass(frozen=True, slots=True, kw_only=True)
class Channel:
    """An input channel of a training job.

    :param name: its name.
    :param uri: the prefix, or the manifest.
    :param data_type: ``S3Prefix``, ``ManifestFile`` or ``AugmentedManifestFile``.
    :param mode: ``File``, ``FastFile`` or ``Pipe``.
    :param gzipped: whether its objects are to be decompressed.
    :param record_io: whether each object becomes a RecordIO record; pipes only.
    :param attributes: what to take from each line of an augmented manifest, in this order.
    :param seed: of the order in which a pipe gives the objects, another one in each pass; ``None`` for the
        order of the keys.
    """

    name: str
    uri: str
    data_type: str
    mode: str
    gzipped: bool = False
    record_io: bool = False
    attributes: tuple[str, ...] = ()
    seed: int | None = None

    @classmethod
    def from_api(cls, channel: Mapping[str, Any], default_mode: str) -> Channel:
        """Read the API's ``Channel``.

        :param default_mode: ``TrainingInputMode`` of the algorithm.
        """
        source = channel["DataSource"]["S3DataSource"]
        return cls(
            name=channel["ChannelName"],
            uri=source["S3Uri"],
            data_type=source["S3DataType"],
            mode=channel.get("InputMode") or default_mode,
            gzipped=channel.get("CompressionType") == "Gzip",
            record_io=channel.get("RecordWrapperType") == "RecordIO",
            attributes=tuple(source.get("AttributeNames") or ()),
            seed=(channel.get("ShuffleConfig") or {}).get("Seed"),
        )


def channels_of(definition: Mapping[str, Any]) -> list[Channel]:
    """Return the input channels of a training job definition."""
    mode = (definition.get("AlgorithmSpecification") or {}).get("TrainingInputMode") or "File"
    return [Channel.from_api(one, mode) for one in definition.get("InputDataConfig") or ()]


def problems(definition: Mapping[str, Any], prefix: str) -> list[AmtFieldError]:
    """List the channels that cannot be provided here, or that the API documents as impossible.

    :param prefix: what stands before the definition's members in the request.
    """
    found = []

    def refuse(field: str, value: Any, limit: str, fix: str) -> None:
        found.append(AmtFieldError(field, value, limit, fix))

    default = definition["AlgorithmSpecification"]["TrainingInputMode"]
    for position, channel in enumerate(definition.get("InputDataConfig") or ()):
        where = f"{prefix}InputDataConfig[{position}]"
        source = channel["DataSource"].get("S3DataSource")
        if source is None:
            limit = "the embedded AMT mounts no file system and reads channels from S3 only"
            refuse(f"{where}.DataSource", channel["DataSource"], limit, "give an S3DataSource")
            continue
        mode = channel.get("InputMode") or default
        data_type = source["S3DataType"]
        if data_type not in ("S3Prefix", "ManifestFile", "AugmentedManifestFile"):
            limit = "S3Prefix, ManifestFile or AugmentedManifestFile; the embedded AMT offers no other"
            refuse(f"{where}.DataSource.S3DataSource.S3DataType", data_type, limit, "use S3Prefix")
        if data_type == "AugmentedManifestFile" and mode != "Pipe":
            refuse(
                f"{where}.InputMode",
                mode,
                "Pipe, for an AugmentedManifestFile",
                "set it to Pipe, or use S3Prefix",
            )
        if data_type == "AugmentedManifestFile" and not source.get("AttributeNames"):
            refuse(
                f"{where}.DataSource.S3DataSource.AttributeNames",
                source.get("AttributeNames"),
                "at least one attribute of the manifest's lines",
                "name them in the order in which the training job reads them",
            )
        if data_type != "S3Prefix" and mode == "FastFile":
            refuse(f"{where}.InputMode", mode, "S3Prefix, for FastFile", "set it to File")
        if channel.get("RecordWrapperType") == "RecordIO" and mode != "Pipe":
            refuse(
                f"{where}.RecordWrapperType", "RecordIO", "None, unless the InputMode is Pipe", "leave it out"
            )
    return found


def provide(storage: Storage, channel: Channel, data: Path) -> None:
    """Put a channel into a training job's folder; of a pipe, make the first one.

    :param data: the folder ``input/data``.
    :raises StorageError: there is nothing, or something cannot be read.
    """
    if channel.name in (".", ".."):
        raise StorageError(f"a channel cannot be named {channel.name!r}")
    if channel.data_type == "ManifestFile":
        (data / f"{channel.name}-manifest").write_bytes(_read_manifest(storage, channel.uri))
    if channel.mode == "Pipe":
        if not passes(storage, channel):
            raise _nothing(storage, channel)
        os.mkfifo(pipe(data, channel, 0))
        return
    folder = data / channel.name
    if channel.data_type == "S3Prefix" and not channel.gzipped:
        found = storage.provide(channel.uri, folder)
    else:
        found = _provide_each(storage, channel, folder)
    if not found:
        raise _nothing(storage, channel)


def _nothing(storage: Storage, channel: Channel) -> StorageError:
    if channel.data_type != "S3Prefix":
        return StorageError(f"{channel.uri} lists nothing")
    return StorageError(f"no object matches {channel.uri}. Put the files under {storage.where(channel.uri)}.")


def _provide_each(storage: Storage, channel: Channel, folder: Path) -> bool:
    folder.mkdir(parents=True, exist_ok=True)
    found = False
    for name, uri in _named(storage, channel):
        found = True
        target = folder / name
        if not channel.gzipped:
            storage.fetch(uri, target)
            continue
        target = target.with_name(target.name.removesuffix(".gz"))
        target.parent.mkdir(parents=True, exist_ok=True)
        with opened(storage, uri, gzipped=True) as source, target.open("wb") as copy:
            shutil.copyfileobj(source, copy)
    return found


def _named(storage: Storage, channel: Channel) -> Iterator[tuple[str, str]]:
    if channel.data_type == "S3Prefix":
        yield from ((one.name, one.uri) for one in storage.objects(channel.uri))
    else:
        yield from _manifest(storage, channel.uri)


def _read_manifest(storage: Storage, uri: str) -> bytes:
    """Return the content of a manifest.

    :raises StorageError: it is too long.
    """
    with storage.open(uri) as handle:
        content = handle.read(LONGEST_MANIFEST + 1)
    if len(content) > LONGEST_MANIFEST:
        raise StorageError(f"{uri} is no manifest: it is longer than {LONGEST_MANIFEST} bytes")
    return content


def _manifest(storage: Storage, uri: str) -> list[tuple[str, str]]:
    """Return names and addresses of the objects that a manifest lists (API: ``S3DataSource.S3Uri``)."""
    form = 'it must be [{"prefix": "s3://bucket/folder/"}, "key below it", ...]'
    try:
        first, *names = json_text.read(_read_manifest(storage, uri))
        prefix = first["prefix"]
    except _NOT_JSON as error:
        raise StorageError(f"{uri} is no manifest: {form} ({_short(repr(error))})") from None
    if not isinstance(prefix, str) or not all(isinstance(name, str) for name in names):
        raise StorageError(f"{uri} is no manifest: {form}")
    for name in names:
        parts = PurePosixPath(name).parts
        if not parts or PurePosixPath(name).is_absolute() or ".." in parts or not _is_text(name):
            raise StorageError(f"{uri}: {_short(repr(name))} cannot be the name of a file of the channel")
    return [(name, prefix + name) for name in names]


def _is_text(value: str) -> bool:
    """Whether a text of JSON, which may have half a character in it, can be the name of a file."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in value


def _short(text: str) -> str:
    return text if len(text) <= 200 else f"{text[:200]}..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """What a pipe gives in one go: an object, or a text.

    :param uri: the object's address, ``None`` for a text.
    :param text: the text.
    """

    uri: str | None = None
    text: str = ""


def passes(storage: Storage, channel: Channel) -> list[list[Piece]]:
    """Return what each pass over a piped channel gives: groups that stay together when it is shuffled.

    :raises StorageError: a manifest cannot be read.
    """
    if channel.data_type == "AugmentedManifestFile":
        return _augmented(storage, channel.uri, channel.attributes)
    return [[Piece(uri=uri)] for _, uri in _named(storage, channel)]


def _augmented(storage: Storage, uri: str, attributes: Sequence[str]) -> list[list[Piece]]:
    """Read an augmented manifest (developer guide, "Augmented Manifest File Format")."""
    groups = []
    for number, line in enumerate(_read_manifest(storage, uri).splitlines(), 1):
        if not line.strip():
            continue
        try:
            record = json_text.read(line)
            groups.append([_piece(attribute, record[attribute]) for attribute in attributes])
        except _NOT_JSON as error:
            raise StorageError(
                f"{uri}, line {number}: it must be a JSON object with {', '.join(attributes)} "
                f"({_short(repr(error))})"
            ) from None
    return groups


def _piece(attribute: str, value: Any) -> Piece:
    if attribute.endswith("-ref"):
        if not isinstance(value, str) or not _is_text(value):
            raise ValueError(f"{attribute} must be an address")
        return Piece(uri=value)
    text = value if isinstance(value, str) else json.dumps(value)
    text.encode()
    return Piece(text=text)


def pipe(data: Path, channel: Channel, epoch: int) -> Path:
    """Return the place of a channel's pipe for a pass over the data, counted from 0."""
    return data / f"{channel.name}_{epoch}"


@contextlib.contextmanager
def opened(storage: Storage, uri: str, *, gzipped: bool) -> Iterator[IO[bytes]]:
    """Open an object to be read, decompressed if it is to be.

    :raises StorageError: it cannot be read, or is not compressed with gzip.
    """
    with storage.open(uri) as source:
        if not gzipped:
            yield source
            return
        try:
            with gzip.GzipFile(fileobj=source, mode="rb") as unpacked:
                yield cast(IO[bytes], unpacked)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise StorageError(f"{uri} is not compressed with gzip: {error}") from None
