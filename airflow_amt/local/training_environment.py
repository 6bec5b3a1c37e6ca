"""The environment variables that every training process begins with: clean ones, not the server's.

What SageMaker sets, and the ``Environment`` of the request, come on top (:mod:`airflow_amt.local.trainer`).
AWS clients in a training script reach the embedded endpoint with its own credentials or nothing: they find no
profile, no metadata service, and none of the credentials that the server's user has.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping, Sequence
from urllib.parse import urlsplit

from airflow_amt.exceptions import AmtFieldError

logger = logging.getLogger(__name__)

_LOCALE = ("LANG", "LANGUAGE")
#: Addresses that a server listens on and that no client can ask, with those that reach it.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - nothing is bound here


def base_environment(
    server: Mapping[str, str],
    pass_env: Sequence[str],
    *,
    endpoint: str,
    access_key_id: str,
    secret_access_key: str,
) -> dict[str, str]:
    """Return the variables that all training processes have in common.

    :param server: the environment of the server.
    :param pass_env: names of variables that are passed on as they are; they count more than all others here.
    :param endpoint: the server's address.
    :param access_key_id: the server's own, for AWS clients in training scripts.
    :param secret_access_key: the server's own.
    """
    missing = [name for name in pass_env if name not in server]
    if missing:
        logger.warning("Not passed to training processes, as they are not set: %s", ", ".join(missing))
    return {
        "PATH": server.get("PATH", os.defpath),
        **{name: value for name, value in server.items() if name in _LOCALE or name.startswith("LC_")},
        "AWS_ENDPOINT_URL": reachable(endpoint),
        "AWS_ACCESS_KEY_ID": access_key_id,
        "AWS_SECRET_ACCESS_KEY": secret_access_key,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        **{name: server[name] for name in pass_env if name in server},
    }


def check_pass_env(names: Sequence[str]) -> None:
    """Refuse what cannot be the name of an environment variable.

    :raises AmtFieldError: a name is none.
    """
    for name in names:
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise AmtFieldError(
                "pass-env",
                name,
                "the name of an environment variable: letters, digits and _, no digit first",
                "give the name alone, as in --pass-env HF_TOKEN",
            )


def reachable(endpoint: str) -> str:
    """Return an address by which this machine reaches a server that listens on all its addresses."""
    url = urlsplit(endpoint)
    host = _ANY.get(url.hostname or "")
    return endpoint if host is None else f"{url.scheme}://{host}:{url.port}"
