"""The client's side of RFC 6455, as much of it as a load needs: the handshake, messages in, pings answered.

Each text or binary message is one event, and its payload is the event's data. No extension is offered.
"""

from __future__ import annotations

import base64
import hashlib
import os
import struct

from penstock.bench.body import Head

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
_CONTINUATION, _TEXT, _BINARY, _CLOSE, _PING, _PONG = 0, 1, 2, 8, 9, 10
_PROPER_ENDS = {1000, 1001, 1005}
"""Close codes of a server that has said what it had to say, or goes away politely."""


def new_key() -> str:
    """Return a key for one handshake."""
    return base64.b64encode(os.urandom(16)).decode()


def check_accepted(head: Head, key: str) -> None:
    """Raise ValueError if this is not the answer to a handshake with that key."""
    due = base64.b64encode(hashlib.sha1(key.encode() + _GUID, usedforsecurity=False).digest()).decode()
    if head.fields.get("sec-websocket-accept") != due:
        raise ValueError("the handshake's answer is another's")


def client_frame(payload: bytes, opcode: int = _TEXT) -> bytes:
    """Make one masked frame."""
    size = len(payload)
    if size < 126:
        head = struct.pack("!BB", 0x80 | opcode, 0x80 | size)
    elif size < 1 << 16:
        head = struct.pack("!BBH", 0x80 | opcode, 0x80 | 126, size)
    else:
        head = struct.pack("!BBQ", 0x80 | opcode, 0x80 | 127, size)
    mask = os.urandom(4)
    masks = int.from_bytes((mask * (size // 4 + 1))[:size], "big")
    return head + mask + (int.from_bytes(payload, "big") ^ masks).to_bytes(size, "big")


def close_frame() -> bytes:
    """Make the frame that says that we are done."""
    return client_frame((1000).to_bytes(2, "big"), _CLOSE)


class WebSocketEvents:
    """Messages of one WebSocket, counted as `Events`.

    Args:
        end: how the last message begins.
    """

    def __init__(self, end: bytes) -> None:
        self.whole = b""
        self.ended = False
        self.keepalives = 0
        self.replies = b""
        """Frames to send: pongs, and the answer to a close."""
        self.close_code = 0
        """Set when the server has closed; whether that is a proper end, `closed_well` says."""
        self._end = end
        self._rest = b""
        self._message: list[bytes] = []

    @property
    def rest(self) -> bool:
        """See `Events`."""
        return bool(self._rest or self._message)

    @property
    def closed_well(self) -> bool:
        """Whether the server has closed, and not for an error."""
        return self.close_code in _PROPER_ENDS

    def feed(self, data: bytes) -> int:
        """See `Events`. Raises ValueError for what breaks the protocol."""
        if self._rest:
            data = self._rest + data
        messages: list[bytes] = []
        at, end = 0, len(data)
        while end - at >= 2:
            first, size = data[at], data[at + 1]
            start = at + 2
            if size > 125:
                # A masked frame counts as one that is far too long, which it is not allowed to be either.
                if size > 127:
                    raise ValueError("the server masks its frames")
                width = 2 if size == 126 else 8
                if end - start < width:
                    break
                size = int.from_bytes(data[start : start + width], "big")
                start += width
            if end - start < size:
                break
            at = start + size
            if first == 0x80 | _TEXT:
                messages.append(data[start:at])
            else:
                self._take(first, data[start:at], messages)
        self._rest = data[at:]
        self.whole = messages[0] if len(messages) == 1 else b"\n\n".join(messages)
        if self._end in self.whole and any(message.startswith(self._end) for message in messages):
            self.ended = True
        return len(messages)

    def _take(self, first: int, payload: bytes, messages: list[bytes]) -> None:
        """Take a frame that is not a whole text."""
        opcode = first & 15
        if first & 0x70:
            raise ValueError("the server uses an extension that was not agreed on")
        if opcode in (_TEXT, _BINARY, _CONTINUATION):
            self._message.append(payload)
            if first & 0x80:
                messages.append(b"".join(self._message))
                self._message.clear()
        elif opcode == _CLOSE:
            self.close_code = int.from_bytes(payload[:2], "big") if payload else 1005
            self.replies += client_frame(payload[:2], _CLOSE)
        elif opcode == _PING:
            self.keepalives += 1
            self.replies += client_frame(payload, _PONG)
        elif opcode != _PONG:
            raise ValueError("the server sends a frame of no known kind")
