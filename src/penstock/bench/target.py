"""The URL of a server under load: where to connect, and what its requests begin with."""

from __future__ import annotations

import socket
from typing import NamedTuple
from urllib.parse import urlsplit

from penstock.bench.plan import Address

_TLS = {"http": False, "https": True, "ws": False, "wss": True}


class Target(NamedTuple):
    """A server, and the path of its URL, without a slash at the end."""

    url: str
    address: Address
    path: str


def find_target(url: str) -> Target:
    """Resolve a URL. Raises ValueError, with a sentence, if it can't be."""
    typed = url if "://" in url else f"http://{url}"
    try:
        parts = urlsplit(typed)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ValueError(f"{url} is no URL: {error}") from error
    if parts.scheme not in _TLS or not host:
        raise ValueError("the URL begins with http://, https://, ws:// or wss://, and names a host")
    if any(not "!" <= char <= "~" for char in parts.path + parts.query):
        raise ValueError("the URL's path has a character that must be percent-encoded")
    tls = _TLS[parts.scheme]
    try:
        found = socket.getaddrinfo(host, port or (443 if tls else 80), type=socket.SOCK_STREAM)
    except OSError as error:
        raise ValueError(f"{host} can't be found: {error.strerror}") from error
    # Loopback names have an address of each family, and servers mostly listen on the older one.
    family, _, _, _, sockaddr = min(found, key=lambda entry: entry[0] != socket.AF_INET)
    numeric = tuple(part for part in sockaddr if isinstance(part, str | int))
    address = Address(
        family=family, sockaddr=numeric, host=host, authority=parts.netloc.rpartition("@")[2], tls=tls
    )
    path = parts.path.rstrip("/") + (f"?{parts.query}" if parts.query else "")
    return Target(typed, address, path)
