"""Foreign text as people may read it: on one line, without what a terminal obeys, and not too much.

Names, reasons and messages come from AWS, from training jobs and from whoever calls the embedded AMT. Data
that programs use (names in calls, CSV, hyperparameters) stays as it is; what goes into a log line, an error
or a terminal goes through here.
"""

from __future__ import annotations

import builtins
import reprlib
import unicodedata
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any

#: Characters of a value, a name or a path that are shown.
MOST_SHOWN = 200
#: Characters of a reason: what the SageMaker API documents as the longest ``FailureReason``.
MOST_REASON = 1024
#: Characters of a message of an error or a log.
MOST_MESSAGE = 4000
#: Problems of one request that are listed.
MOST_PROBLEMS = 20
#: Members or values of an enumeration that are listed.
MOST_LISTED = 40

#: Joiners, without which Persian words and families of emoji fall apart.
JOINERS = "\u200c\u200d"


def visible(text: str) -> str:
    """Return text on one line: what cannot be seen, or moves what can be seen, is written as an escape."""
    if text.isprintable():
        return text
    return "".join(_visible(one) for one in text)


def _visible(character: str) -> str:
    # Of what Python does not call printable, wide and narrow spaces are harmless.
    if character.isprintable() or character in JOINERS or unicodedata.category(character) == "Zs":
        return character
    return character.encode("unicode_escape").decode("ascii")


def shown(text: Any, most: int = MOST_SHOWN) -> str:
    """Return foreign text as people may read it: :func:`visible`, and at most so many characters of it.

    :param most: longest text that is shown whole; a longer one is cut and says by how much.
    """
    whole = str(text)
    head = visible(whole[:most])
    if len(whole) <= most and len(head) <= most:
        return head
    kept, length = 0, 0
    for one in whole[:most]:
        length += len(_visible(one))
        if length > most:
            break
        kept += 1
    return f"{visible(whole[:kept])}… ({len(whole) - kept:,} more characters)"


def shown_lines(text: Any, most: int = MOST_MESSAGE) -> str:
    """Return text that has lines of its own as :func:`shown`, its line feeds kept."""
    whole = str(text)
    lines = [visible(line) for line in whole[:most].split("\n")]
    more = f"… ({len(whole) - most:,} more characters)" if len(whole) > most else ""
    return "\n".join(lines) + more


def bounded(reason: Any) -> str | None:
    """Return a failure reason as it is, but no longer than the API allows; ``None`` for none."""
    if not reason:
        return None
    text = str(reason)
    return text if len(text) <= MOST_REASON else f"{text[: MOST_REASON - 1]}…"


def listed(values: Iterable[Any]) -> str:
    """Return values as a list in a sentence; only the first of very many."""
    every = [str(value) for value in values]
    text = ", ".join(shown(value) for value in every[:MOST_LISTED])
    return text if len(every) <= MOST_LISTED else f"{text} and {len(every) - MOST_LISTED} more"


def numbered(lines: Iterable[Any]) -> str:
    """Return lines with their numbers, each indented on a line of its own; only the first of very many."""
    some = list(islice(lines, MOST_PROBLEMS + 1))
    text = "".join(
        f"\n  {number}. {shown_lines(line)}" for number, line in enumerate(some[:MOST_PROBLEMS], 1)
    )
    return text if len(some) <= MOST_PROBLEMS else f"{text}\n  … and more"


def amount(problems: Sequence[Any]) -> str:
    """Return how many problems there are, as far as they are counted: checks end after the last listed."""
    count = len(problems)
    return str(count) if count <= MOST_PROBLEMS else f"more than {MOST_PROBLEMS}"


class _Values(reprlib.Repr):
    """Writes values of any size and depth in little time."""

    def __init__(self) -> None:
        super().__init__()
        self.maxlevel = 6
        self.maxdict = self.maxlist = self.maxtuple = self.maxset = self.maxfrozenset = 30
        self.maxstring = self.maxother = self.maxlong = MOST_SHOWN

    def repr_int(self, value: int, level: int) -> str:
        # Python refuses to write out more than 4,300 digits.
        if value.bit_length() > 2048:
            return f"a number of {value.bit_length():,} bits"
        return super().repr_int(value, level)

    def repr_dict(self, value: dict[Any, Any], level: int) -> str:
        # The base class sorts, which costs much and hides the order that was given.
        if not value:
            return "{}"
        if level <= 0:
            return "{...}"
        pieces = [
            f"{self.repr1(key, level - 1)}: {self.repr1(item, level - 1)}"
            for key, item in islice(value.items(), self.maxdict)
        ]
        return "{" + ", ".join([*pieces, *(["..."] if len(value) > self.maxdict else [])]) + "}"


_values = _Values()


def shown_value(value: Any, most: int = MOST_SHOWN) -> str:
    """Return a value of any type as Python writes it, as far as :func:`shown` shows it."""
    if isinstance(value, str):
        if len(value) <= most:
            return shown(builtins.repr(str(value)), most + 2)
        return f"{shown(builtins.repr(str(value[:most])), most + 2)}… ({len(value) - most:,} more characters)"
    return shown(_values.repr(value), most)
