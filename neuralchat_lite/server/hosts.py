"""The names by which a server may be reached that asks for no key.

A web page can let a name of its own point to 127.0.0.1, and then its scripts read what the server
answers (DNS rebinding). They cannot choose the Host header, which says that name. So a server that
trusts whoever reaches it answers to names that no stranger can own.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Collection

from neuralchat_lite.server.errors import RequestError

# Names under these belong to nobody in the public DNS (RFC 6761, 6762, and ICANN for `internal`).
PRIVATE = ("localhost", "local", "internal")


def check_host(header: bytes, allowed: Collection[str]) -> None:
    """Raises RequestError unless a Host header is an address, a private name, this machine's or
    one of `allowed`."""
    text = header.decode("latin-1").strip().lower()
    name = without_port(text)
    if is_address(name) or name.rpartition(".")[2] in PRIVATE:
        return
    if name not in {socket.gethostname().lower(), *(each.lower() for each in allowed)}:
        raise RequestError(
            403,
            f"the Host header names {name[:200]!r}, which may be a web page's own name for this "
            "machine: use localhost, or start the server with --allowed-host for this name or "
            "with --api-key-file",
            code="host_not_allowed",
        )


def without_port(text: str) -> str:
    """The name, or the address without its brackets."""
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0].rstrip(".")


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True
