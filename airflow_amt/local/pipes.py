"""Pipe mode: the objects of a channel through named pipes ``<channel>_<epoch>``, one for each pass over them.

A process of its own fills them. It is forked by the training process before that becomes the trainer, so it
belongs to the trainer's process group and carries its marker: whatever ends a training job ends it too, and
the server itself never waits for a trainer that does not read. It ignores SIGTERM, so that a trainer that is
being stopped can go on reading while it saves what it has.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import random
import signal
import struct
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any

from airflow_amt.local import files
from airflow_amt.local.channels import Channel, Piece, opened, passes, pipe
from airflow_amt.local.s3 import StorageError
from airflow_amt.local.storage import Storage, storage_of

#: Begins each record of the RecordIO format.
_RECORD_MAGIC = 0xCED7230A
#: The length of a record has 29 bits; the other three say how records of several parts belong together.
LONGEST_RECORD = 2**29 - 1

#: Bytes that are read of the note why a pipe could not be filled.
LONGEST_FAILURE = 4096

_CHUNK = 1024 * 1024
_LOOK_SECONDS = 0.2
_MAIN = (
    f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); "
    "from airflow_amt.local.pipes import main; main(sys.argv[1], sys.argv[2:])"
)


def wrapped(command: Sequence[str], channels: Sequence[Channel], storage: Storage, folder: Path) -> list[str]:
    """Return a command that fills the pipes of some channels and runs another command beside it.

    :param command: what is to run.
    :param channels: the channels in ``Pipe`` mode.
    :param folder: the training job's folder.
    """
    plan = folder / "input" / "config" / "pipes.json"
    content = {
        "storage": storage.description(),
        "channels": [asdict(channel) for channel in channels],
        "data": str(folder / "input" / "data"),
        "failure": str(failure_file(folder)),
    }
    # It may hold the credentials of an S3 server, which are none of the trainer's: main() removes it.
    plan.unlink(missing_ok=True)
    with open(plan, "x", encoding="utf-8", opener=functools.partial(os.open, mode=0o600)) as file:
        json.dump(content, file)
    # -P: the working directory is the training script's, whose modules are none of ours.
    return [sys.executable, "-P", "-c", _MAIN, str(plan), *command]


def failure_file(folder: Path) -> Path:
    """Return where it is noted why a pipe could not be filled."""
    return folder / "input" / "failure"


def failure(folder: Path) -> str | None:
    """Return why a pipe of a training job could not be filled, ``None`` if all could."""
    # The trainer's process wrote it, and the trainer may have put something else there.
    handle = files.open_regular(failure_file(folder))
    if handle is None:
        return None
    with handle:
        return handle.read(LONGEST_FAILURE).decode("utf-8", errors="replace") or None


def main(plan: str, command: Sequence[str]) -> None:
    """Fork the process that fills the pipes, and become the trainer."""
    leader = os.getpid()
    content = json.loads(Path(plan).read_text(encoding="utf-8"))
    Path(plan).unlink()
    if os.fork() == 0:
        _serve(content, leader)
    os.execvp(command[0], list(command))  # noqa: S606 - no shell is wanted


def _serve(plan: Mapping[str, Any], leader: int) -> None:
    """Fill all pipes until the trainer is gone."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    storage = storage_of(plan["storage"])
    for fields in plan["channels"]:
        channel = Channel(**{**fields, "attributes": tuple(fields["attributes"])})
        threading.Thread(
            target=_feed_or_fail, args=(storage, channel, plan, leader), name=channel.name, daemon=True
        ).start()
    while os.getppid() == leader:
        time.sleep(_LOOK_SECONDS)
    # Not sys.exit: that would wait for threads that wait for a reader.
    os._exit(0)


def _feed_or_fail(storage: Storage, channel: Channel, plan: Mapping[str, Any], leader: int) -> None:
    try:
        feed(storage, channel, Path(plan["data"]))
    except Exception as error:  # noqa: BLE001 - the trainer would wait for ever for a pipe that nobody fills
        part = Path(plan["failure"] + ".part")
        part.write_text(f"Data download failed for channel {channel.name!r}: {error}", encoding="utf-8")
        part.replace(plan["failure"])
        with contextlib.suppress(ProcessLookupError):
            os.kill(leader, signal.SIGKILL)


def feed(storage: Storage, channel: Channel, data: Path) -> None:
    """Fill one pipe after the other for as long as somebody reads; returns only by an error.

    :raises StorageError: an object cannot be read.
    """
    groups = passes(storage, channel)
    epoch = 0
    while True:
        current = pipe(data, channel, epoch)
        # There before the trainer has seen the end of this pass.
        os.mkfifo(pipe(data, channel, epoch + 1))
        order = list(groups)
        if channel.seed is not None:
            random.Random(f"{channel.seed}/{epoch}").shuffle(order)
        # Waits for a reader. A reader that has had enough closes the pipe and takes the next one.
        with contextlib.suppress(BrokenPipeError), current.open("wb", buffering=0) as target:
            try:
                for piece in (piece for group in order for piece in group):
                    _write(storage, channel, piece, target)
            finally:
                # Before the reader sees the end: nobody must wait for a pipe that nobody fills any more.
                current.unlink()
        epoch += 1


def _write(storage: Storage, channel: Channel, piece: Piece, target: IO[bytes]) -> None:
    if piece.uri is None:
        content = piece.text.encode()
    elif channel.record_io:
        with opened(storage, piece.uri, gzipped=channel.gzipped) as source:
            content = source.read(LONGEST_RECORD + 1)
    else:
        with opened(storage, piece.uri, gzipped=channel.gzipped) as source:
            while chunk := source.read(_CHUNK):
                _write_all(target, chunk)
        return
    _write_all(target, record(content) if channel.record_io else content)


def _write_all(target: IO[bytes], content: bytes) -> None:
    view = memoryview(content)
    while view:
        view = view[target.write(view) :]


def record(content: bytes) -> bytes:
    """Return content as one record of the RecordIO format: magic, length, content, padding to four bytes.

    :raises StorageError: it is too long for one record.
    """
    if len(content) > LONGEST_RECORD:
        raise StorageError(
            f"an object of {len(content)} bytes or more is no RecordIO record: {LONGEST_RECORD} at most"
        )
    return struct.pack("<II", _RECORD_MAGIC, len(content)) + content + b"\0" * (-len(content) % 4)
