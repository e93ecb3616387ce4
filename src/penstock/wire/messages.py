"""Messages and the requests that carry them, as the AI SDK's client sends them.

This file knows the shape of a `UIMessage` and of a chat request, and what of both may be trusted afterwards: ids are
short and printable, roles are known, counts are bounded, every part is an object with a type. What is inside a part is
between the client and the producer.

Source: `UIMessage` and `HttpChatTransport` of `ai` 5, 6 and 7.
"""

from __future__ import annotations

import re
from typing import Any, Literal, TypeAlias

import msgspec
from msgspec import UNSET

from penstock.errors import LimitExceededError, RemoteProtocolError
from penstock.limits import WIRE, WireLimits
from penstock.wire.codec import convert, decode_json

Role: TypeAlias = Literal["system", "user", "assistant"]
Trigger: TypeAlias = Literal["submit-message", "regenerate-message"]

_CHAT_ID = re.compile(r"[A-Za-z0-9._~-]{1,128}")
_MESSAGE_ID = re.compile(r"[^\x00-\x1f\x7f-\x9f\u2028\u2029]{1,128}")
_OWN_FIELDS = frozenset(["id", "messages", "message", "trigger", "messageId"])


class UIMessage(msgspec.Struct, frozen=True, kw_only=True):
    """One message of a chat. Its JSON is what the client sent, but for top-level fields that no client has."""

    id: str
    role: Role
    metadata: Any = UNSET
    parts: list[dict[str, Any]]

    @property
    def text(self) -> str:
        """The text of all its text parts, joined."""
        texts = (part.get("text") for part in self.parts if part.get("type") == "text")
        return "".join(text for text in texts if isinstance(text, str))


class ChatRequest(msgspec.Struct, frozen=True, kw_only=True):
    """What a client asks for when it sends, edits, regenerates or continues."""

    chat_id: str
    messages: list[UIMessage]
    """The whole history, or empty when the client sends only `message`."""
    message: UIMessage | None
    """The newest message, from a client that leaves the history to the server."""
    trigger: Trigger
    message_id: str | None
    """The message to replace, or the assistant's message to continue after an approval."""
    body: dict[str, Any]
    """The request's other fields, as the app's own client sent them."""


class _Envelope(msgspec.Struct, rename="camel"):
    """The request's own fields, before what is inside the messages is looked at."""

    id: str
    messages: list[UIMessage] = []
    message: UIMessage | None = None
    trigger: Trigger = "submit-message"
    message_id: str | None = None


def read_chat_request(data: bytes, limits: WireLimits = WIRE) -> ChatRequest:
    """Read the body of a chat request, in either form: `{id, messages, …}` or `{id, message, …}`.

    A `messageId` or `metadata` of null counts as absent, for clients that are not written in JavaScript.

    Raises:
        RemoteProtocolError: one sentence, fit for the peer; its child LimitExceededError for too much of something.
    """
    return read_chat_value(decode_json(data, limits=limits), limits)


def read_chat_value(value: Any, limits: WireLimits = WIRE) -> ChatRequest:
    """Like `read_chat_request`, for JSON that is decoded already."""
    if not isinstance(value, dict):
        raise RemoteProtocolError("The request must be a JSON object.")
    if isinstance(value.get("messages"), list) and len(value["messages"]) > limits.messages:
        raise LimitExceededError("The request has too many messages.")
    envelope = convert(value, _Envelope, "The request")
    check_chat_id(envelope.id)
    if envelope.message_id is not None:
        check_message_id(envelope.message_id)
    if not envelope.messages and envelope.message is None:
        raise RemoteProtocolError("The request has no message.")
    if len({message.id for message in envelope.messages}) != len(envelope.messages):
        raise RemoteProtocolError("The request has two messages with the same id.")
    return ChatRequest(
        chat_id=envelope.id,
        messages=[_checked(message, limits) for message in envelope.messages],
        message=None if envelope.message is None else _checked(envelope.message, limits),
        trigger=envelope.trigger,
        message_id=envelope.message_id,
        body={name: field for name, field in value.items() if name not in _OWN_FIELDS},
    )


def check_chat_id(text: str) -> str:
    """Return a chat id that is fit for a URL's path and a log line.

    Raises:
        RemoteProtocolError: it is not 1 to 128 of `A-Z a-z 0-9 . _ ~ -`, or it is `.` or `..`.
    """
    if not _CHAT_ID.fullmatch(text) or text in {".", ".."}:
        raise RemoteProtocolError(
            "A chat id must be 1 to 128 letters, digits or any of . _ ~ -, and neither . nor .. alone."
        )
    return text


def check_message_id(text: str) -> str:
    """Return an id that is fit for a log line.

    Raises:
        RemoteProtocolError: it is not 1 to 128 characters, or has control characters.
    """
    if not _MESSAGE_ID.fullmatch(text):
        raise RemoteProtocolError("A message id must be 1 to 128 characters without control characters.")
    return text


def _checked(message: UIMessage, limits: WireLimits) -> UIMessage:
    check_message_id(message.id)
    if len(message.parts) > limits.message_parts:
        raise LimitExceededError("A message of the request has too many parts.")
    if not all(isinstance(part.get("type"), str) for part in message.parts):
        raise RemoteProtocolError("Every part of a message must be an object with a string as its type.")
    if message.metadata is None:
        return msgspec.structs.replace(message, metadata=UNSET)
    return message
