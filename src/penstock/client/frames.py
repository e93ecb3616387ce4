"""The frames of `wire/websocket.py` as a client writes and reads them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from penstock.client.answer import Asked
from penstock.errors import LimitExceededError, RemoteProtocolError
from penstock.limits import WireLimits
from penstock.wire.codec import encode_json

_NOTHING = msgspec.Raw(b"null")
_AI_SDK = ("message", "messages", "trigger", "messageId")
"""What the AI SDK puts beside the chat's id; the rest is `body`."""


class ServerFrame(msgspec.Struct, rename="camel", frozen=True):
    """A frame of the server's. What a field holds is read by whoever the frame is for."""

    type: str
    request_id: str
    turn: str | None = None
    chunk: msgspec.Raw = _NOTHING
    event: str = ""
    data: msgspec.Raw = _NOTHING
    value: msgspec.Raw = _NOTHING
    position: str = ""
    error_text: str = ""
    status: int = 400
    """Of an `error`, as HTTP would have it."""
    retry_ms: float | None = None


def read_server_frame(text: str | bytes, limits: WireLimits) -> ServerFrame:
    """Read one frame of a server's.

    Raises:
        RemoteProtocolError: it is none.
    """
    data = text.encode() if isinstance(text, str) else text
    if len(data) > limits.sse_event_bytes:
        raise LimitExceededError("The server's frame is too long.")
    try:
        return _READ(data)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as exc:
        raise RemoteProtocolError("The server's frame can't be understood.") from exc


_READ = msgspec.json.Decoder(ServerFrame).decode


def client_frame(kind: str, request_id: str, **fields: Any) -> str:
    """Write a frame.

    Raises:
        LocalProtocolError: a field has no JSON form.
    """
    return encode_json({"type": kind, "requestId": request_id, **fields}).decode()


def fields_of(asked: Asked) -> dict[str, Any]:
    """Return the fields with which a stream is asked for."""
    if asked.kind == "send":
        body = {name: value for name, value in asked.fields.items() if name != "id"}
        own = {name: body.pop(name) for name in _AI_SDK if name in body}
        return {"id": asked.fields["id"], **own, "body": body}
    after: Mapping[str, str] = {"after": asked.after} if asked.after else {}
    return {"id": asked.chat_id, **asked.fields, **after}
