"""What a `nats://` URL names."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

SCHEMES = ("nats", "tls")

_STREAM = re.compile(r"[A-Za-z0-9_-]{1,64}")
_PORT = 4222


class NatsAddress(msgspec.Struct, frozen=True, kw_only=True):
    """Servers of one NATS, and the stream in it that is the journal."""

    servers: tuple[str, ...]
    """`HOST:PORT` of each, any of which will do."""
    username: str | None = None
    password: str | None = None
    token: str | None = None
    tls: bool = False
    stream: str = "penstock"
    """The stream's name, and the first token of all its subjects."""
    replicas: int = 1
    """On how many servers of a cluster the stream is to be, if it has yet to be made."""

    def __repr__(self) -> str:
        """Show what can be shown: no user, no password, no token."""
        return f"{'tls' if self.tls else 'nats'}://{','.join(self.servers)}"

    __str__ = __repr__

    @classmethod
    def parse(cls, url: str, *, what: str = "journal") -> NatsAddress:
        """Read `nats://[USER:PASSWORD@|TOKEN@]HOST[:PORT][,HOST…][?stream=NAME&replicas=N]`; `tls:` for TLS.

        Args:
            url: the URL.
            what: whose it is, for the words of a refusal.

        Raises:
            ValueError: if it is anything else. The words repeat nothing of the URL, which may have a password in it.
        """
        try:
            parts = urlsplit(url)
        except ValueError:
            raise ValueError(f"the {what}'s URL can't be read; a password is percent-encoded") from None
        user, at, hosts = parts.netloc.rpartition("@")
        if parts.scheme not in SCHEMES or not hosts or parts.path not in ("", "/"):
            raise ValueError(f"the {what} must be nats://HOST, with :PORT and ,HOST2 if need be")
        if parts.fragment:
            raise ValueError(f"the {what}'s URL must not have a #; in a password it is written %23")
        stream, replicas = _options(parts, what)
        username, colon, password = user.partition(":")
        return cls(
            servers=tuple(_server(host, what) for host in hosts.split(",")),
            username=unquote(username) if colon else None,
            password=unquote(password) if colon else None,
            token=unquote(username) if at and not colon else None,
            tls=parts.scheme == "tls",
            stream=stream,
            replicas=replicas,
        )


def _server(text: str, what: str) -> str:
    try:
        parts = urlsplit(f"//{text}")
        host, port = parts.hostname, parts.port
    except ValueError:
        raise ValueError(f"the {what}'s port must be a number; a password is percent-encoded") from None
    if not host or parts.path:
        raise ValueError(f"the {what} must be nats://HOST, with :PORT and ,HOST2 if need be")
    return f"{f'[{host}]' if ':' in host else host}:{_PORT if port is None else port}"


def _options(parts: SplitResult, what: str) -> tuple[str, int]:
    try:
        pairs = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        pairs = [("", "")]
    options = {}
    for name, value in pairs:
        if name in options or name not in ("stream", "replicas"):
            raise ValueError(f"the {what}'s options are ?stream=NAME and ?replicas=N")
        if name == "stream" and _STREAM.fullmatch(value) is None:
            raise ValueError(f"the {what}'s stream may have letters, digits, _ and - in its name, at most 64")
        if name == "replicas" and value not in ("1", "3", "5"):
            raise ValueError(f"the {what}'s stream can have 1, 3 or 5 replicas")
        options[name] = value
    return options.get("stream", "penstock"), int(options.get("replicas", "1"))
