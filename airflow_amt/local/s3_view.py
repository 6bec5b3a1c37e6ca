"""A read-only view of the folder that stands for S3, in S3's own protocol.

Clients look into S3 around a tuning job: the Amazon provider's hook checks that the input data exist before
it creates one (``HEAD``, ``ListObjectsV2``), people fetch the model of the best training job (``GET``).
Whoever points an S3 client (path style) at the embedded AMT sees what its training jobs see. Nothing can be
written: put files into the folder.
"""

from __future__ import annotations

import base64
import binascii
import itertools
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import quote
from xml.sax.saxutils import escape

from starlette.convertors import PathConvertor, register_url_convertor
from starlette.requests import Request
from starlette.responses import FileResponse, Response
from starlette.routing import Route

from airflow_amt.local import files
from airflow_amt.local.s3 import Place, Places, RefusedPlaceError, StorageError

_NAMESPACE = "http://s3.amazonaws.com/doc/2006-03-01/"
_MOST_KEYS = 1000
#: Characters that XML 1.0 cannot carry, not even escaped.
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


class _KeyConvertor(PathConvertor):
    """The rest of a path, whatever is in it: keys may have line feeds."""

    regex = "(?s:.*)"


register_url_convertor("object_key", _KeyConvertor())


class _RefusedError(Exception):
    """A request that is answered with an error of S3's protocol."""

    def __init__(self, code: str, message: str, status: int) -> None:
        super().__init__(code, message, status)
        body = f"<Error><Code>{code}</Code><Message>{xml_text(message)}</Message></Error>"
        self.response = _xml(body, status)


def routes(places: Places) -> list[Route]:
    """Return the routes of the view: ``/bucket`` and ``/bucket/key``."""

    # No coroutines: Starlette calls these in threads, as walking through a large folder takes long.
    def bucket(request: Request) -> Response:
        name = request.path_params["bucket"]
        place = _place(places, f"s3://{name}", "InvalidBucketName")
        if not files.is_folder(place.path):
            raise _RefusedError(
                "NoSuchBucket", f"The folder {place.path} stands for this bucket and is missing", 404
            )
        return Response() if request.method == "HEAD" else _list(name, place, request)

    def object_(request: Request) -> Response:
        uri = f"s3://{request.path_params['bucket']}/{request.path_params['key']}"
        path = _place(places, uri, "InvalidURI").path
        # S3 has no folders: a key that ends in a slash is an object of its own, and there is none.
        if uri.endswith("/") or not files.is_file(path):
            raise _RefusedError("NoSuchKey", f"The file {path} stands for this key and is missing", 404)
        handle = files.open_regular(path)
        if handle is None:
            raise _RefusedError("AccessDenied", f"The file {path} cannot be read", 403)
        handle.close()
        return FileResponse(path)

    return [
        Route("/{bucket}", _answered(bucket), methods=["GET"]),
        Route("/{bucket}/", _answered(bucket), methods=["GET"]),
        Route("/{bucket}/{key:object_key}", _answered(object_), methods=["GET"]),
    ]


def _answered(answer: Callable[[Request], Response]) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        try:
            return answer(request)
        except _RefusedError as error:
            return error.response

    return endpoint


def _place(places: Places, uri: str, unmappable: str) -> Place:
    try:
        return places.place(uri)
    except RefusedPlaceError as error:
        raise _RefusedError("AccessDenied", str(error), 403) from None
    except StorageError as error:
        raise _RefusedError(unmappable, str(error), 400) from None


def _list(name: str, place: Place, request: Request) -> Response:
    """Answer ListObjectsV2: keys in order, folded at the delimiter, a page at a time."""
    options = request.query_params
    prefix, delimiter = options.get("prefix", ""), options.get("delimiter", "")
    most = _most_keys(options.get("max-keys", str(_MOST_KEYS)))
    token = options.get("continuation-token")
    after = options.get("start-after") or options.get("marker") or "" if token is None else _key_of(token)
    encoding = options.get("encoding-type")
    if encoding not in (None, "url"):
        raise _RefusedError("InvalidArgument", "Invalid Encoding Method specified in Request", 400)

    def shown(key: str) -> str:
        return quote(key, safe="/") if encoding else xml_text(key)

    entries = _entries(place, prefix, delimiter, after)
    page = list(itertools.islice(entries, most))
    truncated = bool(page) and next(entries, None) is not None
    contents = "".join(
        f"<Contents><Key>{shown(key)}</Key><Size>{size}</Size>"
        "<StorageClass>STANDARD</StorageClass></Contents>"
        for key, size in page
        if size is not None
    )
    folded = "".join(
        f"<CommonPrefixes><Prefix>{shown(key)}</Prefix></CommonPrefixes>"
        for key, size in page
        if size is None
    )
    more = f"<NextContinuationToken>{_token_of(page[-1][0])}</NextContinuationToken>" if truncated else ""
    encoded = f"<EncodingType>{encoding}</EncodingType>" if encoding else ""
    return _xml(
        f'<ListBucketResult xmlns="{_NAMESPACE}"><Name>{xml_text(name)}</Name>'
        f"<Prefix>{shown(prefix)}</Prefix>{encoded}<KeyCount>{len(page)}</KeyCount><MaxKeys>{most}</MaxKeys>"
        f"<IsTruncated>{str(truncated).lower()}</IsTruncated>{more}{contents}{folded}</ListBucketResult>",
        200,
    )


def _entries(place: Place, prefix: str, delimiter: str, after: str) -> Iterator[tuple[str, int | None]]:
    """Yield keys with their sizes, and what keys are folded to, with ``None``."""
    folded = None
    for key, path in keys(place, prefix=prefix, after=after):
        head, found, _ = key[len(prefix) :].partition(delimiter) if delimiter else (key, "", "")
        if not found:
            try:
                yield key, path.stat().st_size
            except OSError:
                continue  # gone meanwhile
        elif (entry := prefix + head + delimiter) != folded:
            folded = entry
            # The page before may have ended with it.
            if entry > after:
                yield entry, None


def keys(place: Place, *, prefix: str = "", after: str = "") -> Iterator[tuple[str, Path]]:
    """Yield the keys of a bucket in order: its files but those that may not be read or have no key's name."""
    found = files.walk(
        place.path, allows=place.allows, refused=lambda *_: None, strict=False, prefix=prefix, after=after
    )
    for key, path in found:
        try:
            key.encode()
        except UnicodeEncodeError:
            continue  # S3's keys are UTF-8, names of files need not be
        yield key, path


def _most_keys(text: str) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= 10):
        raise _RefusedError(
            "InvalidArgument", f"max-keys must be a whole number from 0, not {text[:100]}", 400
        )
    return min(int(text), _MOST_KEYS)


def _token_of(key: str) -> str:
    return base64.urlsafe_b64encode(key.encode()).decode()


def _key_of(token: str) -> str:
    try:
        return base64.b64decode(token.encode("ascii"), altchars=b"-_", validate=True).decode()
    except (ValueError, binascii.Error):
        raise _RefusedError("InvalidArgument", "The continuation token provided is incorrect", 400) from None


def is_xml(text: str) -> bool:
    """Whether XML 1.0 can carry a text."""
    return _NOT_XML.search(text) is None


def xml_text(value: str) -> str:
    """Return a text as it stands in XML; what XML cannot carry is a replacement character."""
    return escape(_NOT_XML.sub("\ufffd", value))


def _xml(body: str, status: int) -> Response:
    return Response(f'<?xml version="1.0" encoding="UTF-8"?>{body}', status, media_type="application/xml")
