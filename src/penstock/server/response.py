"""One HTTP/1 response as bytes: its head, its body, its end. Sans-I/O."""

from __future__ import annotations

import re
from collections.abc import Iterable
from functools import lru_cache
from time import time
from wsgiref.handlers import format_date_time

from penstock.server.direct import chunk
from penstock.server.request import Request

_FIELDS = re.compile(rb"(?:[-!#$%&'*+.^_`|~0-9a-zA-Z]++: [\t\x20-\x7e\x80-\xff]*+\r\n)*+")
"""Header fields as they are sent. Source: RFC 9110 section 5.5."""
_FRAMING = frozenset([b"connection", b"content-length", b"transfer-encoding"])
_LENGTH = re.compile(rb"[0-9]{1,19}")
_NO_CONTENT = frozenset([204, 304])

CONTINUE = b"HTTP/1.1 100 \r\n\r\n"
"""Has the client send its body."""


class Response:
    """The final answer to one request: `head` once, `body` as often as there is some, `end` once."""

    __slots__ = ("_left", "_of", "_silent", "chunked", "closes", "ended")

    def __init__(self, request: Request) -> None:
        self.closes = not request.keep_alive
        """Whether the connection ends with it."""
        self.chunked = False
        """Whether it has a body in chunks."""
        self.ended = False
        """Whether its end was handed out."""
        self._of = request.http_version
        self._silent = request.method == "HEAD"
        self._left: int | None = None

    def head(self, status: int, headers: Iterable[tuple[bytes, bytes]], *, closes: bool) -> bytes:
        """Return its head, and settle how its body is framed, whatever the app said that can't be.

        Args:
            status: from 200 on.
            headers: the app's.
            closes: whether the connection shall end with it. It may have to in any case.

        Raises:
            ValueError: a status or a field that can't be sent.
        """
        if not 200 <= status <= 999:
            raise ValueError(f"{status} is not the status of a final response")
        lines: list[bytes] = []
        framing: dict[bytes, bytes] = {}
        for name, value in headers:
            name, value = bytes(name).strip(), bytes(value).strip()
            lower = name.lower()
            if lower not in _FRAMING:
                lines.append(b"%b: %b\r\n" % (name, value))
            elif framing.setdefault(lower, value) != value:
                raise ValueError(f"a response has two fields {lower!r}")
        length, coding = framing.get(b"content-length"), framing.get(b"transfer-encoding")
        if (length is not None and not _LENGTH.fullmatch(length)) or coding not in {None, b"chunked"}:
            raise ValueError("a response's content-length or transfer-encoding can't be sent")
        connection = framing.get(b"connection")
        self.closes |= closes or (connection is not None and b"close" in connection.lower())
        if status in _NO_CONTENT:
            self._silent = True
        elif length is not None and coding is None:
            self._left = None if self._silent else int(length)
        elif self._of == "1.1":
            length = None
            self.chunked = not self._silent
            lines.append(b"transfer-encoding: chunked\r\n")
        else:
            length = None
            self.closes = True
        if length is not None:
            lines.append(b"content-length: %b\r\n" % length)
        if self.closes:
            lines.append(b"connection: close\r\n")
        elif connection is not None:
            lines.append(b"connection: %b\r\n" % connection)
        return _head(status, lines)

    def body(self, data: bytes) -> bytes:
        """Return a part of the body as it is sent.

        Raises:
            ValueError: it is more than the head said.
        """
        if self._silent or not data:
            return b""
        if self.chunked:
            return chunk(data)
        if self._left is not None:
            if len(data) > self._left:
                raise ValueError("a response's body is longer than its content-length")
            self._left -= len(data)
        return data

    def end(self) -> bytes:
        """Return what ends the body.

        Raises:
            ValueError: it is less than the head said.
        """
        if self._left:
            raise ValueError("a response's body is shorter than its content-length")
        self.ended = True
        return b"0\r\n\r\n" if self.chunked else b""


def switching(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Return the head that ends HTTP on a connection.

    Raises:
        ValueError: a field that can't be sent.
    """
    return _head(101, [b"%b: %b\r\n" % (name.strip(), value.strip()) for name, value in headers])


def _head(status: int, lines: list[bytes]) -> bytes:
    lines.append(_date(int(time())))
    fields = b"".join(lines)
    # A line break inside a field would make two of it.
    if fields.count(b"\n") != len(lines) or not _FIELDS.fullmatch(fields):
        raise ValueError("a header of the response can't be sent")
    return b"HTTP/1.1 %d \r\n%b\r\n" % (status, fields)


@lru_cache(maxsize=1)
def _date(second: int) -> bytes:
    return b"date: %b\r\n" % format_date_time(second).encode("ascii")
