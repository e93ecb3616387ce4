"""Turns and chats as somebody saw them in a journal's stream, and changes that are made on that."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import msgspec

from penstock.errors import LocalProtocolError, TurnSealedError
from penstock.journal.nats_stream import Message
from penstock.journal.nats_text import ChatHead, TurnEvent, head_and_rest, lines, read_turn_event
from penstock.journal.store import Batch, TurnRecord, TurnState


class Seen(NamedTuple):
    """A turn as somebody saw it."""

    record: TurnRecord
    sequence: int
    """Of the last message of its subject; 0 if it has none."""
    base: int
    """Of the message that brought the chat's messages; 0 for those with which the turn began."""
    said: tuple[int, ...]
    """Of the seals since that brought a message."""


class SeenChat(NamedTuple):
    """A chat as somebody saw it."""

    head: ChatHead | None
    """None if there is no such chat."""
    lines: list[bytes]
    """Its messages."""
    sequence: int
    """Of the last message of its subject, which may be a part that was given up."""
    committed: int
    """Of the one that counts."""
    connection: int
    """Over which it was seen."""


class Change:
    """A change of a turn, which is made again and again until it happened or can't."""

    __slots__ = ("chat_id", "decide", "fresh", "refusal", "seen", "turn_id")

    def __init__(self, turn: TurnRecord, decide: Callable[[Seen | None], Next | Exception | None]) -> None:
        self.chat_id = turn.chat_id
        self.turn_id = turn.turn_id
        self.decide = decide
        """Says, of a turn as it was seen, what is to be next, why nothing can be, or None: nothing needs to be."""
        self.seen: Seen | None = None
        self.fresh = False
        self.refusal: Exception | None = None


class Next(NamedTuple):
    """What is to happen to a turn."""

    event: TurnEvent
    data: bytes = b""


def seen_in(message: Message) -> Seen:
    """Return how a turn is after a message of its subject."""
    return seen_after(read_turn_event(head_and_rest(message.payload)[0]), message.sequence)


def seen_after(event: TurnEvent, sequence: int) -> Seen:
    """Return how a turn is after something happened to it."""
    if event.kind == "resume":
        return Seen(event.record, sequence, sequence, ())
    said = (*event.said, sequence) if event.kind == "seal" and event.messages else event.said
    return Seen(event.record, sequence, event.base, said)


def owned(seen: Seen, turn: TurnRecord) -> bool:
    """Say whether a turn is running and the record is of its epoch: then its owner asks."""
    return seen.record.state is TurnState.running and seen.record.epoch == turn.epoch


def appended(batch: Batch, seen: Seen | None) -> Next | Exception | None:
    """Say what is to be next of a turn to which entries are appended; see `Change.decide`."""
    if seen is None or not owned(seen, batch.turn):
        return TurnSealedError("a turn is not running, or not this owner's")
    record = seen.record
    if batch.offset > record.entries:
        return LocalProtocolError("entries past the end of a turn would leave a hole")
    new = batch.entries[record.entries - batch.offset :]
    if not new:
        return None
    after = msgspec.structs.replace(record, entries=record.entries + len(new))
    event = TurnEvent(
        kind="append", record=after, first=record.entries, count=len(new), base=seen.base, said=seen.said
    )
    try:
        return Next(event, lines(new))
    except LocalProtocolError as exc:
        return exc  # and the other turns' entries are stored
