"""The settings of ``airflow-amt local serve``: the command line, a file, and defaults, in this order.

The file is TOML. Its keys are the options without their dashes, with two tables: ``images`` has a command for
each training image, and ``faults`` has what is to go wrong on purpose. File names in it are relative to it::

    port = 4566
    clock-rate = 60
    fork-server = ["sklearn.svm"]

    [images]
    "my-image:latest" = "python train.py"
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from airflow_amt.exceptions import AmtFieldError
from airflow_amt.local import images

#: What each option is when nobody says anything; its type is the type of the option.
DEFAULTS: Mapping[str, Any] = {
    "host": "127.0.0.1",
    "port": 0,
    "allowed_host": (),
    "allow_any_caller": False,
    "state_dir": None,
    "clock_rate": 1.0,
    "s3_root": None,
    "s3_endpoint": None,
    "root": (),
    "link_channels": False,
    "with_aws": False,
    "stop_grace": 10.0,
    "log_limit": 256,
    "fork_server": (),
    "pass_env": (),
    "request_log": None,
    "account": "000000000000",
    "log_level": "info",
}
LOG_LEVELS = ("debug", "info", "warning", "error")

#: Largest configuration file.
_LARGEST = 1024 * 1024
_PATHS = ("state_dir", "s3_root", "request_log")
_TABLES = ("images", "faults")


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a server is started with, wherever it was said.

    :param options: a value for each of :data:`DEFAULTS`.
    :param images: commands by training image.
    :param faults: what is to go wrong on purpose, as JSON or the name of a file; ``None`` for nothing.
    """

    options: Mapping[str, Any]
    images: Mapping[str, list[str]]
    faults: str | None


def settle(given: Mapping[str, Any], file: Path | None, folder: Path) -> Settings:
    """Return the settings: what the command line gives, then what the file has, then the defaults.

    :param given: options of the command line by the names of :data:`DEFAULTS`; ``None`` for those left out;
        ``image`` (a list of ``URI=COMMAND``) and ``faults`` as well.
    :param file: the configuration file, if there is one.
    :param folder: what relative file names of the command line are relative to.
    :raises AmtFieldError: the file cannot be read or has something in it that cannot be used; a mapping of an
        image cannot be used.
    """
    from_file = {} if file is None else _read(file)
    options = dict(DEFAULTS)
    for name in DEFAULTS:
        if given.get(name) is not None:
            options[name] = given[name]
        elif name in from_file:
            options[name] = from_file[name]
    table = from_file.get("images", {})
    mapped = images.parse_mappings(
        [f"{image}={command}" for image, command in table.items()], folder if file is None else file.parent
    )
    mapped.update(images.parse_mappings(given.get("image") or (), folder))
    faults = given.get("faults")
    if faults is None and "faults" in from_file:
        # TOML's times become text, which no setting is: the check of the faults names it.
        try:
            faults = json.dumps(from_file["faults"], default=str)
        except ValueError as error:
            raise AmtFieldError(
                "config: faults", from_file["faults"], f"what JSON can say ({error})", "correct it"
            ) from None
    return Settings(options=options, images=mapped, faults=faults)


def _read(file: Path) -> dict[str, Any]:
    """Return what a configuration file has, by the names of :data:`DEFAULTS`."""
    try:
        with file.open("rb") as handle:
            text = handle.read(_LARGEST + 1)
        if len(text) > _LARGEST:
            raise ValueError(f"it is larger than {_LARGEST} bytes")
        content = tomllib.loads(text.decode())
    except (OSError, ValueError, RecursionError) as error:
        raise AmtFieldError(
            "config",
            str(file),
            f"a TOML file that can be read ({error})",
            "correct it, or leave --config out",
        ) from None
    found: dict[str, Any] = {}
    for key, value in content.items():
        name = key.replace("-", "_")
        where = f"config: {key}"
        if name in _TABLES:
            found[name] = _table(where, name, value)
        elif name in DEFAULTS:
            found[name] = _option(where, name, value, file.parent)
        else:
            known = ", ".join(sorted(one.replace("_", "-") for one in (*DEFAULTS, *_TABLES)))
            raise AmtFieldError(where, value, f"the file may have {known}", "check the spelling")
    return found


def _table(where: str, name: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise AmtFieldError(where, value, "a table", f"write [{name}] and a line for each entry")
    if name == "images":
        for image, command in value.items():
            if not isinstance(command, str):
                raise AmtFieldError(
                    f"{where}: {image}", command, "a command, as text", f'write "{image}" = "python train.py"'
                )
    return value


def _option(where: str, name: str, value: Any, folder: Path) -> Any:
    default = DEFAULTS[name]
    if isinstance(default, bool):
        fits, wanted = isinstance(value, bool), "true or false"
    elif isinstance(default, int):
        fits = isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**63
        wanted = "a whole number"
    elif isinstance(default, float):
        fits = isinstance(value, (int, float)) and not isinstance(value, bool) and abs(value) < 2**63
        wanted = "a number"
    elif isinstance(default, tuple):
        fits = isinstance(value, list) and all(isinstance(one, str) for one in value)
        wanted = "a list of texts"
    else:
        fits, wanted = isinstance(value, str) and "\0" not in value, "a text"
    if not fits:
        raise AmtFieldError(where, value, wanted, "correct it, or leave it out")
    if name == "log_level" and value not in LOG_LEVELS:
        raise AmtFieldError(where, value, f"one of {', '.join(LOG_LEVELS)}", "choose one of these")
    if name == "root":
        return [folder / one for one in value]
    return folder / value if name in _PATHS else value
