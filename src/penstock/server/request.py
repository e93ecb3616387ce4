"""One HTTP/1 request, as it is read: sans-I/O, on llhttp (httptools).

llhttp is strict about what is between the lines; what it leaves to its user, or is lenient about, is refused here. Twice
it is led by the hand, and a test says when that can go (`test_server_request.py`):

- It reads on into the next request and does not say where one ends. A head ends with its first empty line, a body in
  chunks with one of them; and a body with a length needs no parser.
- After the head of a request with `Upgrade` it takes the connection for another protocol's, body and all. Nobody need
  follow that header (RFC 9110 section 7.8), so a body in chunks is then read by a second parser.
"""

from __future__ import annotations

import re

import httptools

_REQUEST_LINE = re.compile(rb"([-!#$%&'*+.^_`|~0-9a-zA-Z]+) ([\x21-\x7e]+) HTTP/(\d\.\d)\r\n")
"""Source: RFC 9112 section 3. llhttp takes other spaces and other protocols as well."""
_BEGINS = re.compile(rb"[-!#$%&'*+.^_`|~0-9a-zA-Z]")
_EMPTY_LINE = b"\r\n\r\n"
_OWS = b" \t"
_ASKED = frozenset([b"connection", b"content-length", b"expect", b"host", b"transfer-encoding", b"upgrade"])
"""The fields that say how the request is to be read and answered."""
PREFACE = b"PRI * HTTP/2.0\r\n\r\n"
"""Source: RFC 9113 section 3.4."""
_CHUNKED = b"POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n"


class RefusedError(Exception):
    """What came is no request that can be answered. Nothing after it can be understood."""

    def __init__(self, status: int) -> None:
        super().__init__(status)
        self.status = status


class Request:
    """One request. Give it bytes with `read`, look at what there is, and take the `body` that has come."""

    __slots__ = (
        "_chunked",
        "_fields",
        "_framing_bytes",
        "_head",
        "_left",
        "_parser",
        "_pieces",
        "_tail",
        "begun",
        "complete",
        "expects_continue",
        "headers",
        "http_version",
        "keep_alive",
        "method",
        "target",
        "upgrade",
    )

    method: str
    target: bytes
    http_version: str
    headers: list[tuple[bytes, bytes]]
    """In lower case, in the order in which they came."""

    def __init__(self) -> None:
        self.begun = False
        """Whether the head is here."""
        self.complete = False
        """Whether all of it is here."""
        self.keep_alive = True
        """Whether another request may follow."""
        self.expects_continue = False
        """Whether the client waits for a 100 before it sends the body."""
        self.upgrade = False
        """Whether the client would rather speak another protocol."""
        self._head = b""
        self._fields: list[tuple[bytes, bytes]] = []
        self._parser: httptools.HttpRequestParser | None = None
        self._pieces: list[bytes] = []
        self._left = 0
        self._chunked = False
        self._tail = b""
        self._framing_bytes = 0

    def read(self, data: bytes, *, head_bytes: int) -> bytes:
        """Take bytes, and return those after the request's end.

        Args:
            data: what came.
            head_bytes: what a head may have, and what chunks may have beside their data, in a row.

        Raises:
            RefusedError: this can't be answered, or not this way.
        """
        if not self.begun:
            held = len(self._head)
            if held:
                data = self._head + data
            end = data.find(_EMPTY_LINE, max(0, held - 3)) + 4
            if end > head_bytes or (end < 4 and len(data) > head_bytes):
                raise RefusedError(431)
            if end < 4:
                # Refused at once: a person at a keyboard would wait for an answer that never comes.
                if data and (not _BEGINS.match(data) or data.count(b"\n") > data.count(b"\r\n")):
                    raise RefusedError(400)
                self._head = data
                return b""
            self._head = b""
            self._read_head(data[:end], data[end:])
            data = data[end:]
        if self._left:
            piece = data[: self._left]
            self._pieces.append(piece)
            self._left -= len(piece)
            self.complete = not self._left
            return data[len(piece) :]
        return data if self.complete else self._read_chunks(data, head_bytes)

    def take_body(self) -> bytes:
        """Return what came of the body since this was called last."""
        pieces = self._pieces
        if not pieces:
            return b""
        self._pieces = []
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Let go of the parser, which knows who knows it."""
        self._parser = None

    def _read_head(self, head: bytes, rest: bytes) -> None:
        line = _REQUEST_LINE.match(head)
        if line is None:
            raise RefusedError(400)
        method, self.target, version = line.groups()
        if version not in {b"1.1", b"1.0"}:
            raise PrefaceError(rest) if head == PREFACE else RefusedError(505)
        self.method = method.decode("ascii")
        self.http_version = version.decode("ascii")
        status = self._parse(head)
        fields: dict[bytes, bytes] = {}
        for name, value in self._fields:
            if name in _ASKED:
                if name in fields:
                    if name == b"host":
                        raise RefusedError(400)
                    value = fields[name] + b"," + value
                fields[name] = value
        coding, length = fields.get(b"transfer-encoding"), fields.get(b"content-length")
        if coding is not None and version == b"1.0":
            # RFC 9112 section 6.1: as with both, which llhttp refuses, an attempt at request smuggling.
            raise RefusedError(400)
        if coding is not None and coding.lower() != b"chunked":
            raise RefusedError(501)
        if status is not None:
            raise RefusedError(status)
        if method == b"CONNECT":
            raise RefusedError(501)
        if b"host" not in fields and version == b"1.1":
            raise RefusedError(400)
        self.keep_alive = version == b"1.1" and b"close" not in _tokens(fields.get(b"connection", b""))
        self.expects_continue = version == b"1.1" and b"100-continue" in _tokens(fields.get(b"expect", b""))
        self.upgrade = b"upgrade" in fields
        self.headers, self._fields = self._fields, []
        self._left = int(length or 0)
        self._chunked = coding is not None
        self.complete = not self._left and not self._chunked
        if not self._chunked:
            self._parser = None
        elif self._parser is None:
            self._parse(_CHUNKED)
            self._fields.clear()
            self.complete = False
        self.begun = True

    def _parse(self, head: bytes) -> int | None:
        """Have a new parser read a whole head, and return the status to refuse it with."""
        self._parser = httptools.HttpRequestParser(self)
        try:
            self._parser.feed_data(head)
        except httptools.HttpParserUpgrade:
            self._parser = None
        except httptools.HttpParserCallbackError:
            raise
        except httptools.HttpParserInvalidMethodError:
            return 501
        except httptools.HttpParserError:
            return 400
        return None

    def _read_chunks(self, data: bytes, framing_bytes: int) -> bytes:
        # The end is an empty line, though not every empty line is the end.
        assert self._parser is not None
        start = len(self._tail)
        data = self._tail + data
        view = memoryview(data)
        search = 0
        while start < len(data) and not self.complete:
            end = data.find(_EMPTY_LINE, search) + 4
            if end < 4:
                end = len(data)
            pieces = len(self._pieces)
            try:
                self._parser.feed_data(view[start:end])
            except httptools.HttpParserCallbackError:
                raise
            except httptools.HttpParserError as error:
                raise RefusedError(400) from error
            self._framing_bytes = 0 if len(self._pieces) > pieces else self._framing_bytes + end - start
            if self._framing_bytes > framing_bytes:
                raise RefusedError(431)
            start = search = end
        self._tail = data[-3:]
        if self.complete:
            self._parser = None
        return data[start:]

    # What the parser calls

    def on_header(self, name: bytes, value: bytes) -> None:
        """Take a field of the head, or one after the last chunk, which nobody asks for."""
        self._fields.append((name.lower(), value.strip(_OWS)))

    def on_body(self, data: bytes) -> None:
        """Take a part of a chunk."""
        self._pieces.append(data)

    def on_message_complete(self) -> None:
        """Note the end of the last chunk."""
        self.complete = True


class PrefaceError(RefusedError):
    """It is not a request: the client speaks HTTP/2."""

    def __init__(self, rest: bytes) -> None:
        super().__init__(505)
        self.rest = rest


def _tokens(value: bytes) -> set[bytes]:
    return {token.strip(_OWS) for token in value.lower().split(b",")} if value else set()
