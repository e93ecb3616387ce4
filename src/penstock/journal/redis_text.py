"""How ids, times, messages and records are written in Redis."""

from __future__ import annotations

from collections.abc import Sequence
from urllib.parse import quote, unquote

import msgspec

from penstock.errors import LocalProtocolError
from penstock.journal.store import TurnRecord, TurnState
from penstock.wire.messages import UIMessage

_write_message = msgspec.json.Encoder().encode
_read_message = msgspec.json.Decoder(UIMessage, float_hook=float).decode


def quoted(id: str) -> str:
    """Return an id that has none of the characters which keys are made of. Those of our own making are as they were."""
    return quote(id, safe="")


def lease_member(turn: TurnRecord) -> str:
    """Write what stands for a turn among the leases."""
    return f"{quoted(turn.turn_id)} {quoted(turn.chat_id)}"


def seconds(value: float) -> str:
    """Write a time so that it is read as the same number."""
    return repr(float(value))


def milliseconds(seconds: float) -> str:
    """Write a time as Redis counts it."""
    return str(round(seconds * 1000))


def message_head(message: UIMessage) -> bytes:
    """Write what a message begins with: its id, so that a script knows it from others."""
    id = message.id.encode()
    return b"%d %b " % (len(id), id)


def encode_messages(messages: Sequence[UIMessage]) -> list[bytes]:
    """Write messages as they are kept, with their ids in front.

    Raises:
        LocalProtocolError: if one has no JSON form.
    """
    try:
        return [message_head(message) + _write_message(message) for message in messages]
    except (TypeError, ValueError) as exc:
        raise LocalProtocolError(f"a message has no JSON form: {exc}") from exc


def decode_message(message: bytes) -> UIMessage:
    """Read what `encode_messages` wrote."""
    length, _, rest = message.partition(b" ")
    return _read_message(rest[int(length) + 1 :])


def record_fields(turn: TurnRecord) -> tuple[str | int, ...]:
    """Write a record as scripts compare it."""
    return (
        turn.epoch,
        turn.request_key,
        turn.state.value,
        turn.entries,
        seconds(turn.started_at),
        "" if turn.ended_at is None else seconds(turn.ended_at),
        "" if turn.lease_until is None else seconds(turn.lease_until),
    )


def read_record(chat_id: str, fields: Sequence[bytes]) -> TurnRecord:
    """Read a record as scripts return it."""
    turn_id, epoch, request_key, state, entries, started_at, ended_at, lease_until = fields
    return TurnRecord(
        chat_id=chat_id,
        turn_id=unquote(turn_id.decode()),
        epoch=int(epoch),
        request_key=request_key.decode(),
        state=TurnState(state.decode()),
        entries=int(entries),
        started_at=float(started_at),
        ended_at=float(ended_at) if ended_at else None,
        lease_until=float(lease_until) if lease_until else None,
    )
