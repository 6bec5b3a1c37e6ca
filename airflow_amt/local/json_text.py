"""JSON from anybody: read strictly, such that what comes out can be stored, written and logged."""

from __future__ import annotations

import codecs
import json
from typing import Any, NoReturn


def read(text: str | bytes) -> Any:
    """Return what JSON text holds.

    :raises ValueError: it is no JSON in UTF-8, has a number that JSON does not know (``NaN``) or one of more
        than 4,300 digits, half of a surrogate pair, which no database and no file takes, or is nested deeper
        than this process can follow.
    """
    # The codec utf-8-sig would do both, but is slow.
    decoded = text.removeprefix(codecs.BOM_UTF8).decode() if isinstance(text, bytes) else text
    try:
        value = _DECODER.decode(decoded)
        if "\\ud" in decoded or "\\uD" in decoded or not isinstance(text, bytes):
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeEncodeError:
        raise ValueError("it has a lone surrogate, which is no character") from None
    return value


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


_DECODER = json.JSONDecoder(parse_constant=_refuse_constant)
