"""The bodies of HTTP/1.1 responses, incrementally: bytes of the socket in, bytes of the body out.

Source: RFC 9112 section 6 and 7. A body knows when it has ended; one that ends with the connection never does.
"""

from __future__ import annotations

from typing import Protocol

_SIZE_DIGITS = 16
_LINE_BYTES = 16 << 10
"""A chunk's head or a trailer. Longer ones are nobody's."""


class Body(Protocol):
    """How the end of a body is told."""

    ended: bool

    def feed(self, data: bytes) -> bytes:
        """Take what came; return what of it is body. Raises ValueError for what breaks the protocol."""

    @property
    def between(self) -> bool:
        """Whether what comes next is the head of a chunk."""

    def close(self) -> bool:
        """Say whether the body may end with the connection, here and now."""


class OpenBody:
    """A body that ends with its connection."""

    ended = False
    between = False

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        return data

    def close(self) -> bool:
        """See `Body`."""
        return True


class LengthBody:
    """A body whose length was announced."""

    between = False

    def __init__(self, length: int) -> None:
        self._left = length
        self.ended = not length

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        data = data[: self._left]
        self._left -= len(data)
        self.ended = not self._left
        return data

    def close(self) -> bool:
        """See `Body`."""
        return self.ended


class ChunkedBody:
    """A body in chunks."""

    def __init__(self) -> None:
        self.ended = False
        self._left = 0
        """Bytes of the present chunk that are missing."""
        self._after = False
        """Whether the line end after a chunk's data is missing."""
        self._trailer = False
        self._line = b""

    @property
    def between(self) -> bool:
        """See `Body`."""
        return not (self._left or self._line or self._after or self._trailer)

    def feed(self, data: bytes) -> bytes:
        """See `Body`."""
        pieces: list[bytes] = []
        at = _take_whole(data, pieces) if self.between else 0
        end = len(data)
        while at < end and not self.ended:
            if self._left:
                piece = data[at : at + self._left]
                at += len(piece)
                self._left -= len(piece)
                self._after = not self._left
                pieces.append(piece)
                continue
            stop = data.find(b"\n", at)
            if stop < 0:
                self._line += data[at:]
                if len(self._line) > _LINE_BYTES:
                    raise ValueError("a chunk's head is too long")
                break
            line = self._line + data[at:stop]
            at, self._line = stop + 1, b""
            self._take_line(line.removesuffix(b"\r"))
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _take_line(self, line: bytes) -> None:
        if self._after:
            if line:
                raise ValueError("a chunk is longer than it said")
            self._after = False
        elif self._trailer:
            self.ended = not line
        else:
            self._left = int(line.partition(b";")[0], 16)
            if self._left < 0:
                raise ValueError("a chunk's size is negative")
            self._trailer = not self._left

    def close(self) -> bool:
        """See `Body`."""
        return self.ended


def _take_whole(data: bytes, pieces: list[bytes]) -> int:
    """Take the chunks that are all there, which most are, and return where the others begin."""
    at = 0
    find, append = data.find, pieces.append
    while True:
        start = find(b"\r\n", at, at + _SIZE_DIGITS + 2) + 2
        try:
            end = start + int(data[at : start - 2], 16)
        except ValueError:
            return at
        if start == 1 or end <= start or data[end : end + 2] != b"\r\n":
            return at
        append(data[start:end])
        at = end + 2


class Head:
    """A response's head: its status and fields, and the body that they announce."""

    def __init__(self, block: bytes) -> None:
        """Take a head apart. Raises ValueError if it is none."""
        first, *lines = block.decode("latin-1").split("\r\n")
        version, _, rest = first.partition(" ")
        if not version.startswith("HTTP/1.") or not rest[:3].isdigit():
            raise ValueError("this is no HTTP/1.1 response")
        self.status = int(rest[:3])
        self.fields = {
            name.strip().lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)
        }

    def body(self) -> Body:
        """Return the body that follows. Raises ValueError for a length that is no number."""
        if "chunked" in self.fields.get("transfer-encoding", "").lower():
            return ChunkedBody()
        if self.status in (204, 304):
            return LengthBody(0)
        if "content-length" in self.fields:
            return LengthBody(int(self.fields["content-length"]))
        return OpenBody()
