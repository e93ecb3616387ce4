"""Reads one ASGI request into what a route needs, or refuses it with a status and one human sentence.

The AI SDK shows an error response's body as it is, so the body is that sentence, as text, and never holds the
client's own bytes.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from types import MappingProxyType
from urllib.parse import parse_qs

from penstock.asgi import Receive, Scope, Send
from penstock.errors import ClientGoneError, LimitExceededError, PenstockError, RemoteProtocolError
from penstock.limits import WireLimits
from penstock.wire.versions import SdkVersion, parse_sdk_version

_FIELD_VALUE = re.compile(r"[\x21-\x7e\x80-\xff](?:[\t\x20-\x7e\x80-\xff]*[\x21-\x7e\x80-\xff])?")
"""A header's value; here it is never empty. Source: RFC 9110 section 5.5."""


class HttpError(PenstockError):
    """Ends a request: a status, one sentence, and headers."""

    def __init__(self, status: int, sentence: str, *headers: tuple[bytes, bytes]) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.headers = headers


def header(scope: Scope, name: bytes) -> str | None:
    """Return a header's value, None if it is absent.

    Raises:
        HttpError: if it is there twice: then proxies and we may understand different things.
    """
    values = [value for key, value in scope["headers"] if key == name]
    if len(values) > 1:
        raise HttpError(400, f"The header {name.decode()} is there more than once.")
    return values[0].decode("latin-1") if values else None


class Headers(Mapping[str, str]):
    """A request's headers by their lower-case names, each as one line where it came in several.

    Most requests are answered without a look at them, so they are decoded at the first.

    Args:
        scope: the request, or a WebSocket's handshake.
        frame_headers: what a WebSocket's frame calls its headers. The client itself says them, past every proxy, so of
            these only an `authorization` counts, where the handshake had none, and if it could be a header.
    """

    def __init__(self, scope: Scope, frame_headers: Mapping[str, str] = MappingProxyType({})) -> None:
        self._lines: Sequence[tuple[bytes, bytes]] = scope["headers"]
        self._frame_headers = frame_headers

    def __getitem__(self, name: str) -> str:
        return self._headers[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._headers)

    def __len__(self) -> int:
        return len(self._headers)

    @cached_property
    def _headers(self) -> dict[str, str]:
        headers: dict[str, str] = {}
        for raw_name, raw_value in self._lines:
            name, value = raw_name.decode("latin-1"), raw_value.decode("latin-1")
            # RFC 9110, 5.3; RFC 9113, 8.2.3: HTTP/2 may cut a cookie.
            joined_by = "; " if name == "cookie" else ", "
            headers[name] = f"{headers[name]}{joined_by}{value}" if name in headers else value
        if _FIELD_VALUE.fullmatch(authorization := self._frame_headers.get("authorization", "")):
            headers.setdefault("authorization", authorization)
        return headers


def query_parameter(scope: Scope, name: str) -> str | None:
    """Return a query parameter, None if it is absent; the last where it is there more than once.

    Raises:
        HttpError: if the query has too many parameters.
    """
    if not scope["query_string"]:
        return None
    try:
        query = parse_qs(scope["query_string"].decode("latin-1"), max_num_fields=100)
    except ValueError:
        raise HttpError(400, "The query has too many parameters.") from None
    values = query.get(name)
    return values[-1] if values else None


def sdk_version(scope: Scope, default: SdkVersion) -> SdkVersion:
    """Return the version of `ai` that the client says it is: `?sdk=` or `x-penstock-sdk`, else the app's.

    Raises:
        RemoteProtocolError: if it says something else.
    """
    said = query_parameter(scope, "sdk") or header(scope, b"x-penstock-sdk")
    return default if said is None else parse_sdk_version(said)


async def read_json_body(scope: Scope, receive: Receive, limits: WireLimits) -> bytes:
    """Read a body that must be JSON, by its own word and within `json_bytes`. It is not decoded.

    Raises:
        HttpError: 415 for another content type or a content encoding.
        LimitExceededError: 413, as soon as it is known.
        ClientGoneError: if the client left.
    """
    content_type = (header(scope, b"content-type") or "").partition(";")[0].strip().lower()
    if content_type != "application/json":
        raise HttpError(415, "The request must be JSON: content-type application/json.")
    if (header(scope, b"content-encoding") or "identity").strip().lower() != "identity":
        raise HttpError(415, "The request must not be compressed.")
    length = header(scope, b"content-length")
    if length is not None and (not length.isdigit() or int(length) > limits.json_bytes):
        raise _too_large(limits)
    body = bytearray()
    while True:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError("the client left before its request was read")
        body += message.get("body", b"")
        if len(body) > limits.json_bytes:
            raise _too_large(limits)
        if not message.get("more_body", False):
            return bytes(body)


def _too_large(limits: WireLimits) -> LimitExceededError:
    return LimitExceededError(f"The request is larger than {limits.json_bytes:,} bytes.")


async def answer_error(send: Send, error: HttpError | RemoteProtocolError) -> None:
    """Answer with a status and one sentence."""
    headers: tuple[tuple[bytes, bytes], ...] = ()
    if isinstance(error, HttpError):
        headers = error.headers
    body = str(error).encode()
    await send(
        {
            "type": "http.response.start",
            "status": error.status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
                (b"cache-control", b"no-store"),
                *headers,
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})


def check_origin(scope: Scope, origins: Sequence[str]) -> None:
    """Refuse a WebSocket that another site's page has opened: a browser sends our cookies with it all the same.

    Args:
        scope: the handshake.
        origins: of the other sites that may, as `https://chat.example`; `*` for all.

    Raises:
        HttpError: 403.
    """
    origin, host = header(scope, b"origin"), header(scope, b"host")
    if origin is None or "*" in origins or origin in origins:
        return  # Without an origin it is no browser.
    if not host or origin.partition("://")[2].lower() != host.lower():
        raise HttpError(403, "This page may not open a connection here.")


async def refuse_websocket(scope: Scope, send: Send, error: HttpError | RemoteProtocolError) -> None:
    """Answer a handshake with a status and one sentence, where the server can; else with 403."""
    if "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1008, "reason": ""})
        return
    body = str(error).encode()
    await send(
        {
            "type": "websocket.http.response.start",
            "status": error.status,
            "headers": [
                (b"content-type", b"text/plain; charset=utf-8"),
                (b"content-length", b"%d" % len(body)),
            ],
        }
    )
    await send({"type": "websocket.http.response.body", "body": body})
