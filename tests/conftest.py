"""What every test gets: a throw-away Airflow home, dummy AWS credentials and no network but loopback."""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, settings

# --- hypothesis --------------------------------------------------------------------------------
# No time limits: a busy machine is no defect. In CI the examples are the same in every run.

settings.register_profile("dev", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.register_profile("ci", settings.get_profile("dev"), derandomize=True, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# --- environment -------------------------------------------------------------------------------
# Airflow reads its configuration when it is first imported, so this cannot wait for a fixture.

_home = tempfile.TemporaryDirectory(prefix="airflow-amt-tests-", ignore_cleanup_errors=True)
_home_path = Path(_home.name)

for _name in list(os.environ):
    # A developer's own Airflow, AWS or proxy settings must not reach a test.
    if _name.startswith(("AIRFLOW_", "AWS_")) or _name.lower() in {"http_proxy", "https_proxy", "all_proxy"}:
        del os.environ[_name]

os.environ.update(
    {
        "AIRFLOW_HOME": str(_home_path),
        "AIRFLOW__CORE__DAGS_FOLDER": str(_home_path / "dags"),
        "AIRFLOW__CORE__LOAD_EXAMPLES": "False",
        "AIRFLOW__DATABASE__SQL_ALCHEMY_CONN": f"sqlite:///{_home_path / 'airflow.db'}",
        "AIRFLOW__USAGE_DATA_COLLECTION__ENABLED": "False",
        # Any non-empty credentials do: nothing outside loopback is ever called.
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "eu-west-1",
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": str(_home_path / "aws-config"),
        "AWS_SHARED_CREDENTIALS_FILE": str(_home_path / "aws-credentials"),
    }
)

if any(_name == "airflow" or _name.startswith("airflow.") for _name in sys.modules):
    raise RuntimeError("Airflow was imported before tests/conftest.py could give it a throw-away home.")


# --- network -----------------------------------------------------------------------------------


class ForbiddenAddressError(RuntimeError):
    """A test tried to reach an address outside loopback."""


_refused: list[str] = []
_guarded_events = frozenset({"socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo"})


def _is_local_host(host: object) -> bool:
    """Whether a host name or address (None and "" mean this machine) stays on loopback."""
    if isinstance(host, (bytes, bytearray)):
        host = host.decode("ascii", "replace")
    if host is None or host in {"", "localhost", socket.gethostname()}:
        return True
    try:
        address = ipaddress.ip_address(str(host).split("%", 1)[0])
    except ValueError:
        return False
    return address.is_loopback or address.is_unspecified


def _refuse_foreign_addresses(event: str, args: tuple[Any, ...]) -> None:
    """Audit hook: raises for any connection or name look-up that would leave the machine.

    Covers every socket of this process that CPython opens, whatever library asks for it; child
    processes have to look after themselves.
    """
    if event not in _guarded_events:
        return
    if event == "socket.getaddrinfo":
        host = args[0]
    else:
        address = args[1]
        if address is None or not isinstance(address, tuple):  # connected already, or a Unix socket
            return
        host = address[0]
    if not _is_local_host(host):
        _refused.append(f"{event} {host!r}")
        raise ForbiddenAddressError(f"{event} to {host!r}: tests may only use loopback")


sys.addaudithook(_refuse_foreign_addresses)


@pytest.fixture
def refused_addresses() -> list[str]:
    """Addresses refused so far in this test; a test that expects a refusal clears the list."""
    return _refused


@pytest.fixture(autouse=True)
def _fail_on_foreign_address() -> Iterator[None]:
    """Fail the test even where the code under test caught the refusal (botocore wraps and retries it)."""
    _refused.clear()
    yield
    assert not _refused, f"the test tried to leave the machine: {_refused}"


# --- Airflow -----------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def airflow_db() -> Path:
    """Migrate the metadata database of the throw-away home (about 8 s, once); returns the home."""
    from airflow.utils.db import initdb

    (_home_path / "dags").mkdir(exist_ok=True)
    initdb()
    return _home_path
