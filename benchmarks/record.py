"""Where results go: one JSON file per benchmark, with the machine and the command that made it."""

from __future__ import annotations

import json
import os
import platform
import re
import sys
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"

#: A list of numbers, over several lines. No string contains a line break in JSON.
_NUMBERS = re.compile(r"\[\n\s+(-?[\d.e+-]+(?:,\n\s+-?[\d.e+-]+)*)\n\s+\]")


def machine() -> dict[str, Any]:
    """Say what the figures were measured on."""
    return {
        "python": platform.python_version(),
        "system": platform.system(),
        "architecture": platform.machine(),
        "cores": os.cpu_count(),
    }


def save(name: str, command: str, packages: list[str], figures: dict[str, Any]) -> Path:
    """Write one benchmark's figures, lists of numbers on one line each, and return the file."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    record = {
        "command": command,
        "measured_at": datetime.now(UTC).isoformat(timespec="seconds"),
        "machine": machine(),
        "versions": {package: version(package) for package in packages},
        **figures,
    }
    text = json.dumps(record, indent=2)
    text = _NUMBERS.sub(lambda found: "[" + re.sub(r",\s+", ", ", found[1]) + "]", text)
    path.write_text(text + "\n")
    sys.stderr.write(f"written to {path.relative_to(FOLDER.parent.parent)}\n")
    return path
