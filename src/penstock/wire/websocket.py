"""The frames of a chat over a WebSocket: those of the AI SDK's `WebSocketChatTransport`, and ours.

One socket carries many requests at once, each with an id that the client chose, and never uses again. All frames are
JSON objects in text messages, with `type` and `requestId`.

| from the client | |
|---|---|
| `send` `{id, messages or message, trigger?, messageId?, headers?, body?}` | a chat request; answered by `chunk` frames and `end` |
| `resume` `{id, headers?, body?, after?}` | the newest turn: whole, or with a position only what follows it |
| `abort` | no more frames of that request; the turn goes on, unless the app says that it stops |
| `stop` `{id, reason?}` | ends the chat's turn; answered by `result` |
| `approve` `{id, approvalId, approved, reason?}` | decides a tool call; answered by `result` |
| `turn` `{id, turnId}` | a turn's state and message; answered by `result` |
| `watch` `{id, types?, lane?, after?}` | the chat, turn after turn, as `event` frames |
| `unwatch` | ends that |

| from the server | |
|---|---|
| `start` `{turn}` | a turn was found or begun |
| `chunk` `{sequence, chunk, position?}` | one chunk; `sequence` counts from 0 in each request |
| `end` | the turn's last chunk was sent |
| `no-active` | there is nothing to resume |
| `error` `{errorText, status, retryMs?}` | the request is over: why, in one sentence, with the status of HTTP |
| `result` `{value}` | what a `stop`, an `approve` or a `turn` came to |
| `event` `{event, data, position?}` | what an `EventSource` is sent as that event |
| `closing` `{reason, reconnect, retryMs}`, `requestId` `""` | the socket is about to be closed |
| `ping`, `requestId` `""` | a sign of life where the server can't send protocol pings |

A client of the AI SDK ignores frames whose `requestId` it does not know, so that those without a request are safe.

What is encoded here is RFC 6455's own form, to the byte: `text_message` puts a text into it, and `payloads` takes it out again.

Sources: `WebSocketChatTransport` of the npm package `ai` 7.0; RFC 6455 section 5.2.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any, Literal, TypeAlias

import msgspec

from penstock.errors import RemoteProtocolError
from penstock.limits import WIRE, WireLimits
from penstock.wire.codec import convert, decode_json, encode_json
from penstock.wire.messages import ChatRequest, check_chat_id, read_chat_value

REQUEST_ID_CHARACTERS = 128
"""The AI SDK's are 16. Each is repeated in every frame that answers it."""

_HEADER_NAME = re.compile(r"[-!#$%&'*+.^_`|~0-9A-Za-z]{1,128}")
_HEADER_VALUE = re.compile(r"[\t\x20-\x7e\x80-\xff]*")

PING_JSON = encode_json({"type": "ping", "requestId": ""})


class Send(msgspec.Struct, frozen=True):
    """A chat request."""

    request_id: str
    chat: ChatRequest
    headers: dict[str, str]
    fields: dict[str, Any]
    """The chat request as a POST's body would have it."""


class Resume(msgspec.Struct, frozen=True):
    """Asks for the newest turn of a chat."""

    request_id: str
    chat_id: str
    headers: dict[str, str]
    after: str | None
    """A position; None for the whole turn."""


class Watch(msgspec.Struct, frozen=True):
    """Asks for a chat's events."""

    request_id: str
    chat_id: str
    headers: dict[str, str]
    types: str | None
    lane: str | None
    after: str | None


class Detach(msgspec.Struct, frozen=True):
    """Ends what a request still gets: `abort` and `unwatch`."""

    request_id: str


class Act(msgspec.Struct, frozen=True):
    """Asks for one value of a chat: `turn`; or does something to it: `stop` and `approve`."""

    request_id: str
    chat_id: str
    headers: dict[str, str]
    kind: Literal["stop", "approve", "turn"]
    fields: dict[str, Any]
    """The frame's other fields, as they came."""


ClientFrame: TypeAlias = Send | Resume | Watch | Detach | Act


class FrameError(RemoteProtocolError):
    """A client's frame can't be understood. With a request id it is that request's error, and the socket goes on."""

    def __init__(self, sentence: str, request_id: str | None = None, *, status: int = 400) -> None:
        super().__init__(sentence, status=status)
        self.request_id = request_id


class _Head(msgspec.Struct, rename="camel"):
    type: str
    request_id: str


class _Fields(msgspec.Struct, rename="camel"):
    id: str = ""
    headers: dict[str, str] = {}
    """Not yet checked."""
    types: str | None = None
    lane: str | None = None
    after: str | None = None


def read_client_frame(data: bytes, limits: WireLimits = WIRE) -> ClientFrame:
    """Read one frame of a client's.

    Raises:
        FrameError: one sentence, fit for the peer; with the request's id where the frame has one.
    """
    try:
        value = decode_json(data, limits=limits)
        head = convert(value, _Head, "The frame")
    except FrameError:
        raise
    except RemoteProtocolError as exc:
        raise FrameError(str(exc)) from exc
    if not 0 < len(head.request_id) <= REQUEST_ID_CHARACTERS:
        raise FrameError(f"A requestId must be 1 to {REQUEST_ID_CHARACTERS} characters.")
    try:
        return _read(head, value, limits)
    except RemoteProtocolError as exc:
        raise FrameError(str(exc), head.request_id) from exc


def _read(head: _Head, value: dict[str, Any], limits: WireLimits) -> ClientFrame:
    if head.type in ("abort", "unwatch"):
        return Detach(head.request_id)
    fields = convert(value, _Fields, "The frame")
    headers = _headers(fields.headers)
    if head.type == "send":
        more = value.get("body", {})
        if not isinstance(more, dict):
            raise RemoteProtocolError("The frame's body must be an object.")
        # What an HTTP client puts beside the message, a WebSocket's puts into `body`.
        own = {name: field for name, field in value.items() if name not in _OWN_FIELDS}
        post = {**more, **own}
        return Send(head.request_id, read_chat_value(post, limits), headers, post)
    check_chat_id(fields.id)
    match head.type:
        case "resume":
            return Resume(head.request_id, fields.id, headers, fields.after)
        case "watch":
            return Watch(head.request_id, fields.id, headers, fields.types, fields.lane, fields.after)
        case "stop" | "approve" | "turn" as kind:
            return Act(head.request_id, fields.id, headers, kind, value)
    raise RemoteProtocolError("The frame's type is not known.")


def _headers(said: dict[str, str]) -> dict[str, str]:
    """Return a frame's headers by their lower-case names, if they could be those of a request."""
    headers = {name.lower(): value for name, value in said.items()}
    if (
        len(headers) != len(said)
        or not all(map(_HEADER_NAME.fullmatch, headers))
        or not all(map(_HEADER_VALUE.fullmatch, headers.values()))
    ):
        raise RemoteProtocolError("The frame has headers that no request could have.")
    return headers


_OWN_FIELDS = frozenset(["type", "requestId", "headers", "body", "metadata"])


def frame(kind: str, request_id: str, **fields: Any) -> bytes:
    """Encode a frame of the server's, as a message."""
    return text_message(encode_json({"type": kind, "requestId": request_id, **fields}))


def message_head(size: int, first: int = 0x81) -> bytes:
    """Return how a message of so many bytes begins.

    Args:
        size: of its payload.
        first: its first byte; else that of a whole text, which is not compressed.
    """
    if size < 126:
        return b"%c%c" % (first, size)
    if size < 1 << 16:
        return b"%c\x7e%b" % (first, size.to_bytes(2, "big"))
    return b"%c\x7f%b" % (first, size.to_bytes(8, "big"))


USUAL = 1024
HEADS = tuple(message_head(size) for size in range(USUAL))
"""How texts of fewer than `USUAL` bytes begin: a turn's end may bring a hundred thousand of them."""


def text_message(text: bytes) -> bytes:
    """Return a text message as a server sends it."""
    return (HEADS[len(text)] if len(text) < USUAL else message_head(len(text))) + text


def payloads(messages: bytes) -> Iterator[bytes]:
    """Return what is in messages that `text_message` has made; of a ping between them, nothing."""
    at = 0
    while at < len(messages):
        size, start = messages[at + 1], at + 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, start = int.from_bytes(messages[start : start + width], "big"), start + width
        at = start + size
        yield messages[start:at]


def chunk_head(request_id: str) -> bytes:
    """Return how every chunk frame of a request begins, up to its sequence."""
    return b'{"type":"chunk","requestId":%b,"sequence":' % encode_json(request_id)


CHUNK = b'%b%d,"chunk":%b,"position":"%b%d"}'
"""A chunk frame: the head, the sequence, the chunk's JSON, the position's two parts."""
CHUNK_WITHOUT_POSITION = b'%b%d,"chunk":%b}'
EVENT = b'{"type":"event","requestId":'
"""How every event frame begins, up to its request's id."""
EVENT_CHUNK = b',"event":"chunk","data":%b,"position":"%b%d"}\n'
"""What follows that id in the frame of a chunk, and a line feed: the chunk's JSON, the position's two parts."""
