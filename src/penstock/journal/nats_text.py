"""How ids, messages and what happens to a turn are written in NATS.

A message of the journal is a head, one line of JSON, and then lines: entries, and after them chat messages. Every change of a
turn is one such message on the turn's subject, a `TurnEvent`, and its head has the whole record as it is from then on.
What is too large for one message is in several, of which the last one makes it true; see `Split`.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from urllib.parse import unquote_to_bytes

import msgspec

from penstock.errors import LocalProtocolError
from penstock.journal.store import TurnRecord
from penstock.wire.messages import UIMessage

_write_message = msgspec.json.Encoder().encode
_read_message = msgspec.json.Decoder(UIMessage, float_hook=float).decode

_UNSAFE = re.compile(rb"[^A-Za-z0-9_~-]")


def token(id: str) -> str:
    """Write an id as one token of a subject: never a dot, a wildcard or a space in it, and never nothing.

    Letters, digits and `_ ~ -` are as they were. Every other byte of its UTF-8 is `=` and two hexadecimal digits, and the
    empty id is `=`. Two ids never have the same token.
    """
    encoded = _UNSAFE.sub(lambda found: b"=%02X" % found.group()[0], id.encode("utf-8", "surrogatepass"))
    return encoded.decode("ascii") or "="


def read_token(text: str) -> str:
    """Read what `token` wrote.

    Raises:
        ValueError: if it didn't.
    """
    id = unquote_to_bytes("" if text == "=" else text.replace("=", "%")).decode("utf-8", "surrogatepass")
    if token(id) != text:
        raise ValueError("this is no token of ours")
    return id


class Split(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How a thing is spread over messages of its subject.

    Each is published on condition that the one before is the subject's last: so a part directly follows the part before
    it, and parts that something else follows were given up.
    """

    part: int = 0
    """How many went before this one."""
    more: bool = False
    """Whether another follows. What the head says of a turn is how it was before, then."""
    begins: int = 0
    """In the last of several: the sequence of the first."""


class TurnEvent(Split, kw_only=True, omit_defaults=True):
    """The head of a change of a turn."""

    kind: str
    """`begin`, `append`, `renew`, `adopt`, `resume`, `seal` or `drop`."""
    record: TurnRecord
    """As it is from now on."""
    first: int = 0
    """The offset of the first of its entries."""
    count: int = 0
    """How many of its lines are entries."""
    messages: int = 0
    """How many of the lines after those are chat messages."""
    base: int = 0
    """The sequence of the `resume` that brought the chat's messages; 0 for those with which the turn began."""
    said: tuple[int, ...] = ()
    """The sequences of the seals before this one that brought a message since."""


class ChatHead(Split, kw_only=True, omit_defaults=True):
    """The head of a chat. Its lines are the messages."""

    began_at: float
    """When its newest turn began."""
    turns: tuple[str, ...] = ()
    """Turns that may be there, oldest first."""
    newest: TurnRecord | None = None
    """The newest, as it began; None if retention took it."""
    before: int = 0
    """In a part that others follow: the sequence of the last of the chat as it is."""


write_head = msgspec.json.Encoder().encode
read_turn_event = msgspec.json.Decoder(TurnEvent).decode
read_chat_head = msgspec.json.Decoder(ChatHead).decode


def lines(entries: Sequence[bytes]) -> bytes:
    """Write entries, each with a line's end.

    Raises:
        LocalProtocolError: if one has another in it.
    """
    data = b"".join([entry + b"\n" for entry in entries])
    if data.count(b"\n") != len(entries):
        raise LocalProtocolError("an entry must be one line")
    return data


def encode_messages(messages: Sequence[UIMessage]) -> bytes:
    """Write chat messages as lines.

    Raises:
        LocalProtocolError: if one has no JSON form.
    """
    try:
        return b"".join([_write_message(message) + b"\n" for message in messages])
    except (TypeError, ValueError) as exc:
        raise LocalProtocolError(f"a message has no JSON form: {exc}") from exc


def decode_messages(found: Sequence[bytes]) -> list[UIMessage]:
    """Read chat messages from lines."""
    return [_read_message(line) for line in found]


def split_lines(data: bytes) -> list[bytes]:
    """Return the lines of a message after its head."""
    return data.split(b"\n")[:-1]


def head_and_rest(data: bytes) -> tuple[bytes, bytes]:
    """Cut a message after its head."""
    head, _, rest = data.partition(b"\n")
    return head, rest


def cut(data: bytes, size: int) -> Iterator[bytes]:
    """Cut data into parts of a size; nothing is one part, too."""
    for start in range(0, len(data) or 1, size):
        yield data[start : start + size]
