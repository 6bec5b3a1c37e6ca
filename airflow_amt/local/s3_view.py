"""A read-only view of the folder that stands for S3, in S3's own protocol.

Clients look into S3 around a tuning job: the Amazon provider's hook checks that the input data exist before
it creates one (``HEAD``, ``ListObjectsV2``), people fetch the model of the best training job (``GET``).
Whoever points an S3 client (path style) at the embedded AMT sees what its training jobs see. Nothing can be
written: put files into the folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from airflow_amt.local import s3

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_MOST_KEYS = 1000


def routes(root: Path) -> list[Route]:
    """Return the routes of the view: ``/bucket`` and ``/bucket/key``."""

    # No coroutines: Starlette calls these in threads, as walking through a large folder takes long.
    def bucket(request: Request) -> Response:
        name = request.path_params["bucket"]
        try:
            folder = s3.local_path(root, f"s3://{name}")
        except s3.UnmappableAddressError as error:
            return _error("InvalidBucketName", str(error), 400)
        if not folder.is_dir():
            return _error("NoSuchBucket", f"The folder {folder} stands for this bucket and is missing", 404)
        if request.method == "HEAD":
            return Response()
        return _list(name, folder, request)

    def object_(request: Request) -> Response:
        uri = f"s3://{request.path_params['bucket']}/{request.path_params['key']}"
        try:
            path = s3.local_path(root, uri)
        except s3.UnmappableAddressError as error:
            return _error("InvalidURI", str(error), 400)
        # S3 has no folders: a key that ends in a slash is an object of its own, and there is none.
        if uri.endswith("/") or not path.is_file():
            return _error("NoSuchKey", f"The file {path} stands for this key and is missing", 404)
        return FileResponse(path)

    return [
        Route("/{bucket}", bucket, methods=["GET"]),
        Route("/{bucket}/", bucket, methods=["GET"]),
        Route("/{bucket}/{key:path}", object_, methods=["GET"]),
    ]


def _list(name: str, folder: Path, request: Request) -> Response:
    """Answer ListObjectsV2: keys in order, folded at the delimiter, a page at a time."""
    options = request.query_params
    prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
    after = options.get("continuation-token") or options.get("start-after") or ""
    text = options.get("max-keys", str(_MOST_KEYS))
    if not text.isdigit():
        return _error("InvalidArgument", f"max-keys must be a number, not {text}", 400)
    most = min(int(text), _MOST_KEYS)
    entries: dict[str, Path | None] = {}
    for key, path in sorted(_objects(folder)):
        if not key.startswith(prefix):
            continue
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        entry = prefix + head + delimiter if found else key
        if entry > after:
            entries[entry] = None if found else path
    page = list(entries.items())[:most]
    contents = "".join(
        f"<Contents><Key>{escape(key)}</Key><Size>{path.stat().st_size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key, path in page
        if path is not None
    )
    folded = "".join(
        f"<CommonPrefixes><Prefix>{escape(key)}</Prefix></CommonPrefixes>"
        for key, path in page
        if path is None
    )
    truncated = len(page) < len(entries) and bool(page)
    token = f"<NextContinuationToken>{escape(page[-1][0])}</NextContinuationToken>" if truncated else ""
    return _xml(
        f'<ListBucketResult xmlns="{_NAMESPACE}"><Name>{escape(name)}</Name>'
        f"<Prefix>{escape(prefix)}</Prefix><KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{token}{contents}{folded}</ListBucketResult>",
        200,
    )


def _objects(folder: Path) -> Iterator[tuple[str, Path]]:
    for path in folder.rglob("*"):
        if path.is_file():
            yield path.relative_to(folder).as_posix(), path


def _error(code: str, message: str, status: int) -> Response:
    return _xml(f"<Error><Code>{code}</Code><Message>{escape(message)}</Message></Error>", status)


def _xml(body: str, status: int) -> Response:
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>{body}', status, media_type="application/xml")
