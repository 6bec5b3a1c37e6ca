"""The guard in tests/conftest.py: no test may leave the machine, not even where the refusal is caught."""

from __future__ import annotations

import socket

import boto3
import botocore.config
import botocore.exceptions
import pytest


def test_loopback_is_allowed(refused_addresses: list[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with socket.create_connection(("localhost", port), timeout=5) as client:
            accepted, peer = server.accept()
            accepted.close()
            assert peer == client.getsockname()
    assert refused_addresses == []


@pytest.mark.parametrize(
    ("family", "address"),
    [
        (socket.AF_INET, ("192.0.2.1", 80)),  # TEST-NET-1: never routed
        (socket.AF_INET, ("169.254.169.254", 80)),  # the instance metadata service
        (socket.AF_INET6, ("2001:db8::1", 80)),
    ],
)
def test_other_addresses_are_refused(
    family: socket.AddressFamily, address: tuple[str, int], refused_addresses: list[str]
) -> None:
    with socket.socket(family) as client, pytest.raises(RuntimeError, match="only use loopback"):
        client.connect(address)
    assert refused_addresses == [f"socket.connect {address[0]!r}"]
    refused_addresses.clear()


def test_names_are_not_looked_up(refused_addresses: list[str]) -> None:
    with pytest.raises(RuntimeError, match="only use loopback"):
        socket.getaddrinfo("example.invalid", 443)
    assert refused_addresses == ["socket.getaddrinfo 'example.invalid'"]
    refused_addresses.clear()


def test_an_aws_call_is_recorded_although_botocore_wraps_the_refusal(refused_addresses: list[str]) -> None:
    client = boto3.client("sagemaker", config=botocore.config.Config(retries={"total_max_attempts": 1}))
    with pytest.raises(botocore.exceptions.HTTPClientError):
        client.list_hyper_parameter_tuning_jobs()
    assert refused_addresses == ["socket.getaddrinfo 'api.sagemaker.eu-west-1.amazonaws.com'"]
    refused_addresses.clear()
