"""What a `redis://` URL names."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, parse_qsl, unquote, urlsplit

import msgspec

SCHEMES = ("redis", "rediss")

_PREFIX = re.compile(r"[A-Za-z0-9._:-]{0,64}")


class RedisAddress(msgspec.Struct, frozen=True, kw_only=True):
    """A Redis, and where in it the journal is."""

    host: str
    port: int = 6379
    db: int = 0
    username: str | None = None
    password: str | None = None
    tls: bool = False
    prefix: str = "penstock:"
    """What the names of all keys begin with."""

    def __repr__(self) -> str:
        """Show what can be shown: no user, no password."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"redis{'s' if self.tls else ''}://{host}:{self.port}/{self.db}"

    __str__ = __repr__

    @classmethod
    def parse(cls, url: str) -> RedisAddress:
        """Read `redis://[USER:PASSWORD@]HOST[:PORT][/DB][?prefix=PREFIX]`, or the same with `rediss:` for TLS.

        Raises:
            ValueError: if it is anything else. The words repeat nothing of the URL, which may have a password in it.
        """
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ValueError("the journal's port must be a number; a password is percent-encoded") from None
        if parts.scheme not in SCHEMES or not parts.hostname:
            raise ValueError(
                "the journal must be redis://HOST, with :PORT, /DB and ?prefix=PREFIX if need be"
            )
        if parts.fragment:
            raise ValueError("the journal's URL must not have a #; in a password it is written %23")
        if re.fullmatch(r"/?[0-9]{0,4}", parts.path, re.ASCII) is None:
            raise ValueError("the journal's database must be a number, as in redis://HOST/0")
        return cls(
            host=parts.hostname,
            port=6379 if port is None else port,
            db=int(parts.path[1:] or 0),
            username=None if not parts.username else unquote(parts.username),
            password=None if not parts.password else unquote(parts.password),
            tls=parts.scheme == "rediss",
            prefix=_prefix(parts),
        )


def _prefix(parts: SplitResult) -> str:
    try:
        options = parse_qsl(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError:
        options = [("", "")]
    if not options:
        return "penstock:"
    if len(options) > 1 or options[0][0] != "prefix":
        raise ValueError("the journal's only option is ?prefix=PREFIX")
    prefix = options[0][1]
    # Braces would be taken for the part of a key that decides its slot.
    if _PREFIX.fullmatch(prefix) is None:
        raise ValueError("the journal's prefix may have letters, digits and . _ : -, at most 64 of them")
    return prefix
