"""The state of chats and turns, as the HTTP contract has it."""

from __future__ import annotations

from typing import Any

from penstock.journal.store import ChatRecord, TurnState
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import Hub
from penstock.web.request import HttpError
from penstock.wire.messages import UIMessage


def chat_state(record: ChatRecord, turn: TurnHandle | None) -> dict[str, Any]:
    """Return a chat's state as the HTTP contract has it."""
    messages: list[UIMessage] = list(record.messages)
    if turn is not None and turn.state is TurnState.running:
        messages = [message for message in messages if message.id != turn.id] + [turn.message()]
    return {
        "id": record.chat_id,
        "turn": None if turn is None else turn_state(turn),
        "messages": messages,
    }


async def whole_turn(hub: Hub, chat_id: str, turn_id: str) -> dict[str, Any]:
    """Return a turn's state and its message so far.

    Raises:
        HttpError: 404, if the chat has no such turn.
        StoreUnavailableError: if the journal can't be asked.
    """
    turn = await hub.turn(turn_id)
    if turn is None or turn.chat_id != chat_id:
        raise HttpError(404, "There is no such turn.")
    return {**turn_state(turn), "message": turn.message()}


def turn_state(turn: TurnHandle) -> dict[str, Any]:
    """Return a turn's state as the HTTP contract has it."""
    position = turn.position
    return {
        "id": turn.id,
        "state": turn.state.value,
        "position": None if position is None else str(position),
        # What its dead process had not stored yet is not there, and nobody knows whether there was any.
        "missing": turn.state is TurnState.lost,
        "startedAt": turn.record.started_at,
        "endedAt": turn.ended_at,
    }
