"""Virtual environments for clients that nobody here wrote, and what these clients see of the world."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from airflow_amt.local import RunningServer

#: Makes an environment with these packages, or returns the one made before; its folder of programs.
Environments = Callable[..., Path]


def environments(folder: Path) -> Environments:
    """Return a maker of virtual environments below a folder, each made once."""
    made: dict[tuple[str, ...], Path] = {}

    def environment(*packages: str) -> Path:
        if packages not in made:
            target = folder / str(len(made))
            uv = [sys.executable, "-m", "uv", "--quiet"]
            subprocess.run(
                [*uv, "venv", "--no-python-downloads", "--python", sys.executable, target], check=True
            )
            install = ["pip", "install", "--system-certs", "--python", str(target), *packages]
            subprocess.run([*uv, *install], check=True)
            made[packages] = target / "bin"
        return made[packages]

    return environment


@contextlib.contextmanager
def closed_port() -> Iterator[int]:
    """Give a port of loopback that refuses connections, and stays so."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # but nobody listens
        yield taken.getsockname()[1]


def client_environment(server: RunningServer, home: Path, proxy_port: int, region: str) -> Mapping[str, str]:
    """Return environment variables of a client that finds all of AWS at one endpoint, and nothing else.

    :param server: the embedded AMT.
    :param home: its home folder, so that nobody's settings are read.
    :param proxy_port: a closed port; every address but loopback is asked for through it.
    """
    proxy = f"http://127.0.0.1:{proxy_port}"
    kept = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    return {
        **kept,
        **server.environment(region),
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_PAGER": "",
        "HOME": str(home),
        **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "http_proxy", "https_proxy"), proxy),
        **dict.fromkeys(("NO_PROXY", "no_proxy"), "127.0.0.1"),
    }
