"""By which names a server without keys may be reached."""

from __future__ import annotations

import socket
from collections.abc import Callable

import pytest

from neuralchat_lite.server.errors import RequestError
from neuralchat_lite.server.hosts import check_host

from .calls import Client, error_of

ClientOf = Callable[..., Client]


@pytest.mark.parametrize(
    "header",
    [
        "localhost:8000",
        "LOCALHOST",
        "localhost.",
        "chat.localhost",
        "127.0.0.1:8000",
        "10.1.2.3",
        "[::1]:8000",
        "box.local",
        "host.docker.internal:8000",
        socket.gethostname(),
        "Mine.Example:443",
    ],
)
def test_addresses_private_names_and_named_ones_are_its_own(header: str) -> None:
    check_host(header.encode(), ("mine.example",))


@pytest.mark.parametrize(
    "header", ["evil.example", "localhost.evil.example", "127.0.0.1.evil.example", "", "é"]
)
def test_a_name_that_a_stranger_can_own_is_refused(header: str) -> None:
    with pytest.raises(RequestError, match="--allowed-host"):
        check_host(header.encode(), ("mine.example",))


def test_a_page_that_points_its_name_here_reads_nothing(client_of: ClientOf) -> None:
    client = client_of(allowed_hosts=())
    for path in ("/v1/models", "/", "/metrics", "/health"):
        refused = client.get(path, headers={"Host": "evil.example"})
        assert refused.status_code == 403
        assert error_of(refused)["code"] == "host_not_allowed"
        assert client.get(path, headers={"Host": "localhost:8000"}).status_code == 200


def test_a_key_protects_enough_and_so_do_servers_for_everybody(client_of: ClientOf) -> None:
    key = {"Authorization": "Bearer one", "Host": "evil.example"}
    assert client_of(api_keys=("one",), allowed_hosts=()).get("/v1/models", headers=key).is_success
    assert client_of().get("/v1/models", headers={"Host": "evil.example"}).is_success
