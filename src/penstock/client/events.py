"""What a stream yields. All but `Received` are structs, so that none of them can be taken for a chunk by unpacking."""

from __future__ import annotations

from typing import Any, NamedTuple

import msgspec

from penstock.errors import RemoteProtocolError
from penstock.journal.position import Position
from penstock.limits import WireLimits
from penstock.wire.chunks import AnyChunk
from penstock.wire.codec import convert, decode_json
from penstock.wire.messages import UIMessage


class Received(NamedTuple):
    """A chunk, and where one can go on after it."""

    chunk: AnyChunk
    position: Position | None
    """None in a message that is sent again as a whole: only its newest chunk has one."""


class Gap(msgspec.Struct, frozen=True):
    """What came before can't be gone on with. Forget the message; it follows anew, or the snapshot of its chat does."""

    reason: str
    after: Position | None
    """Where this client was."""


class Snapshot(msgspec.Struct, frozen=True):
    """A chat's state, with its running turn's message so far; see `docs/wire.md`."""

    state: dict[str, Any]
    position: Position | None


class Message(msgspec.Struct, frozen=True):
    """A whole message of the chat: the user's, or the assistant's at the end of its turn."""

    message: UIMessage
    position: Position | None


class Closing(msgspec.Struct, frozen=True):
    """The server ends this stream, and says why. With `reconnect`, the client comes back by itself."""

    reason: str
    reconnect: bool
    retry_s: float


class Other(msgspec.Struct, frozen=True):
    """An event of a kind that this client doesn't know."""

    event: str
    data: str


def read_position(event_id: str) -> Position | None:
    """Read an event's id as a position; None if it is none."""
    try:
        return Position.parse(event_id)
    except RemoteProtocolError:
        return None


class _Closing(msgspec.Struct, rename="camel"):
    reason: str = ""
    reconnect: bool = True
    retry_ms: float = 0.0


def read_closing(data: str, limits: WireLimits) -> Closing:
    """Read what a server says before it ends a stream. Raises RemoteProtocolError."""
    closing = convert(decode_json(data.encode(), limits=limits), _Closing, "The closing")
    return Closing(closing.reason, closing.reconnect, closing.retry_ms / 1000)
