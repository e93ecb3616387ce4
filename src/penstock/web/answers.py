"""Begins the turn that a chat request asks for, whichever transport the request came over."""

from __future__ import annotations

from typing import Literal, TypeAlias

import trio

from penstock.errors import TurnConflictError, TurnNotFoundError
from penstock.limits import HubLimits
from penstock.turns.claim import SUPERSEDED
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import Hub, HubFullError
from penstock.turns.turn import Producer, TurnRequest
from penstock.web.request import HttpError
from penstock.wire.messages import ChatRequest, UIMessage

OnConflict: TypeAlias = Literal["refuse", "stop", "queue"]
"""What becomes of a message while another of its chat is being answered: 409, that answer is stopped, or it waits."""


class Answers:
    """The app's producer, and its rules for a chat that is busy."""

    def __init__(
        self,
        producer: Producer,
        *,
        on_conflict: OnConflict,
        orphan_grace_s: float | None,
        limits: HubLimits,
    ) -> None:
        self._producer = producer
        self._on_conflict: OnConflict = on_conflict
        self._orphan_grace_s = orphan_grace_s
        self._limits = limits

    async def begin(self, hub: Hub, request: ChatRequest, came_as: TurnRequest) -> TurnHandle:
        """Return the turn that answers a request: a new one, the one that it continues, or the one that does already.

        Args:
            hub: where turns are.
            request: what is asked for.
            came_as: the same, as the client sent it.

        Raises:
            HttpError: in a sentence for the user, with the status of a refusal.
            StoreUnavailableError: if the journal can't be asked.
        """
        deadline = trio.current_time() + self._limits.queue_s
        try:
            while True:
                try:
                    return await hub.start_turn(
                        request.chat_id,
                        self._producer,
                        await _history(hub, request),
                        body=request.body,
                        request=came_as,
                        orphan_grace_s=self._orphan_grace_s,
                    )
                except TurnConflictError:
                    if self._on_conflict == "refuse" or trio.current_time() >= deadline:
                        raise
                await self._make_way(hub, request.chat_id, deadline)
        except TurnConflictError:
            raise HttpError(409, "Another message of this chat is being answered.") from None
        except HubFullError:
            raise HttpError(
                503, "Too many answers are being written. Please try again.", (b"retry-after", b"5")
            ) from None
        except TurnNotFoundError:
            raise HttpError(404, "The answer to be continued is not here any more.") from None

    async def _make_way(self, hub: Hub, chat_id: str, deadline: float) -> None:
        """Wait until the chat's running turn has ended, after stopping it if that is the app's way."""
        turn = await hub.newest_turn(chat_id)
        if turn is None:
            return
        if self._on_conflict == "stop":
            await turn.stop(SUPERSEDED)
        else:
            with trio.move_on_at(deadline):
                await turn.wait_ended()


async def _history(hub: Hub, request: ChatRequest) -> list[UIMessage]:
    """Return the whole conversation: the client's own, or the journal's with the client's last message."""
    if request.message is None:
        return request.messages
    chat = await hub.chat(request.chat_id)
    known = [] if chat is None else list(chat.messages)
    # A message that is known already is an edit: what followed it is void.
    for index, message in enumerate(known):
        if message.id == request.message.id:
            del known[index:]
            break
    return [*known, request.message]
