"""permessage-deflate for WebSockets, where it was asked for: nothing is kept between messages, and each has a cap.

What differs from wsproto 1.3, and the test that says when the difference can go:

- A message is inflated up to its limit and not beyond, and 1009 closes a socket that wants more (`test_a_bomb_is_1009`).
  Stock inflates whatever comes: 64 KiB make 64 MiB.
- No context is taken over, in either direction: an idle socket has no zlib state (`test_nothing_is_kept_between_messages`).
  It also makes a message's bytes the same for all clients, so that a fan-out compresses once.
- A ping between two fragments leaves the rest of the message what it is (`test_a_ping_within_a_compressed_message`).
- Short messages go out as they are: compressing them takes longer and gains nothing.

Source: RFC 7692.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from typing import NamedTuple, TypeAlias

from wsproto.extensions import Extension
from wsproto.frame_protocol import CloseReason, FrameDecoder, FrameProtocol, Opcode, RsvBits

NAME = "permessage-deflate"
_WINDOW_BITS = 12
"""4 KiB of memory of what was said before: a frame of ours is shorter but for replays. Twice as much saves 2 % there."""
_MEMORY_LEVEL = 5
"""16 KiB of hash tables while a message is compressed."""
_LEVEL = 1
"""The fastest: 6 saves another 9 % of a replay, for twice the time."""
_LARGEST_WINDOW_BITS = 15
_SMALLEST_WINDOW_BITS = 9
"""RFC 7692 has 8 as well, which zlib can't compress with."""
_END_OF_MESSAGE = b"\x00\x00\xff\xff"

_Protocol: TypeAlias = FrameDecoder | FrameProtocol


class _Agreement(NamedTuple):
    header: bytes
    client_window_bits: int


def agree(offers: Iterable[bytes], deflater: Deflater | None, *, message_bytes: int) -> Deflate | None:
    """Return what was agreed upon with a client; None for no compression.

    Args:
        offers: the values of its `sec-websocket-extensions`. The first offer that makes sense counts.
        deflater: what compresses for it; None where nothing is to be compressed.
        message_bytes: what a message of its own may inflate to.
    """
    if deflater is not None:
        for offer in b",".join(offers).split(b","):
            name, *parameters = [part.strip() for part in offer.decode("latin-1").split(";")]
            if name == NAME and (agreement := _agree(parameters)) is not None:
                return Deflate(agreement, deflater, message_bytes=message_bytes)
    return None


def _agree(parameters: list[str]) -> _Agreement | None:
    """Agree to one offer. One with a parameter that makes no sense is to be declined. Source: RFC 7692 section 5."""
    answer = [NAME, "server_no_context_takeover", "client_no_context_takeover"]
    client_bits = _LARGEST_WINDOW_BITS
    seen = set()
    for parameter in parameters:
        name, equals, value = (part.strip(' \t"') for part in parameter.partition("="))
        if name in seen:
            return None
        seen.add(name)
        bits = int(value) if value.isascii() and value.isdigit() and len(value) < 3 else None
        if name == "server_max_window_bits" and bits is not None and _WINDOW_BITS <= bits <= 15:
            answer.append(f"server_max_window_bits={_WINDOW_BITS}")
        elif name == "client_max_window_bits" and not equals:
            client_bits = _WINDOW_BITS
            answer.append(f"client_max_window_bits={client_bits}")
        elif name == "client_max_window_bits" and bits is not None and _SMALLEST_WINDOW_BITS <= bits <= 15:
            client_bits = min(bits, _WINDOW_BITS)
            answer.append(f"client_max_window_bits={client_bits}")
        elif name not in ("server_no_context_takeover", "client_no_context_takeover") or equals:
            return None
    return _Agreement("; ".join(answer).encode("ascii"), client_bits)


class Deflater:
    """Compresses messages, each by itself."""

    def __init__(self, from_bytes: int) -> None:
        self._from_bytes = from_bytes

    def deflate(self, message: bytes) -> bytes | None:
        """Return a message compressed; None if it is better sent as it is."""
        if len(message) < self._from_bytes:
            return None
        compressor = zlib.compressobj(_LEVEL, zlib.DEFLATED, -_WINDOW_BITS, _MEMORY_LEVEL)
        data = compressor.compress(message) + compressor.flush(zlib.Z_SYNC_FLUSH)
        deflated = data[: -len(_END_OF_MESSAGE)]
        return deflated if len(deflated) < len(message) else None


class Deflate(Extension):
    """The extension on one socket, for wsproto."""

    name = NAME

    def __init__(self, agreement: _Agreement, deflater: Deflater, *, message_bytes: int) -> None:
        self.header = agreement.header
        """`sec-websocket-extensions` of the answer."""
        self._client_window_bits = agreement.client_window_bits
        self._deflater = deflater
        self._message_bytes = message_bytes
        self._room = 0
        """What the present message may yet inflate to."""
        self._inflater: zlib._Decompress | None = None
        """Of the present message, if it is compressed."""
        self._control = False
        """Whether the present frame is a control frame, which may come between a message's fragments."""

    def enabled(self) -> bool:
        """Say that it was agreed upon."""
        return True

    def offer(self) -> bool | str:
        """Offer nothing: this is the server's end."""
        return False

    def frame_inbound_header(
        self, proto: _Protocol, opcode: Opcode, rsv: RsvBits, payload_length: int
    ) -> CloseReason | RsvBits:
        """Begin a frame. Returns which reserved bits may be set: the first, on a message's first frame."""
        self._control = opcode.iscontrol()
        if self._control or opcode is Opcode.CONTINUATION:
            return RsvBits(False, False, False)
        self._room = self._message_bytes
        self._inflater = zlib.decompressobj(-self._client_window_bits) if rsv.rsv1 else None
        return RsvBits(True, False, False)

    def frame_inbound_payload_data(self, proto: _Protocol, data: bytes) -> bytes | CloseReason:
        """Inflate a piece."""
        if self._control or self._inflater is None:
            return data
        return self._inflate(self._inflater, data)

    def frame_inbound_complete(self, proto: _Protocol, fin: bool) -> bytes | CloseReason | None:
        """End a frame, and with the last one its message."""
        if self._control or self._inflater is None or not fin:
            return None
        inflater, self._inflater = self._inflater, None
        return self._inflate(inflater, _END_OF_MESSAGE)

    def _inflate(self, inflater: zlib._Decompress, data: bytes) -> bytes | CloseReason:
        if inflater.eof:
            return b""  # What follows its own end is not kept.
        try:
            inflated = inflater.decompress(data, self._room + 1)
        except zlib.error:
            return CloseReason.INVALID_FRAME_PAYLOAD_DATA
        self._room -= len(inflated)
        return inflated if self._room >= 0 else CloseReason.MESSAGE_TOO_BIG

    def frame_outbound(
        self, proto: _Protocol, opcode: Opcode, rsv: RsvBits, data: bytes, fin: bool
    ) -> tuple[RsvBits, bytes]:
        """Compress a message that is one frame, as all of ours are."""
        if fin and opcode in (Opcode.TEXT, Opcode.BINARY):
            deflated = self._deflater.deflate(data)
            if deflated is not None:
                return RsvBits(True, rsv.rsv2, rsv.rsv3), deflated
        return rsv, data
