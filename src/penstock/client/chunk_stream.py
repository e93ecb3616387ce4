"""One turn's chunks, to its end: what `send` and `follow` give."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from penstock.client.answer import Answer, Asked
from penstock.client.endpoint import Endpoint
from penstock.client.event_stream import EventStream
from penstock.client.events import Gap, Received, read_closing, read_position
from penstock.errors import RemoteProtocolError, RequestRefusedError, ServerUnreachableError, StreamLostError
from penstock.journal.position import Position
from penstock.wire.chunks import Error, Finish, Start
from penstock.wire.codec import decode_chunk
from penstock.wire.sse_parser import ServerSentEvent

RESTARTED = "the position is void or trimmed: the message comes again from its start"


class ChunkStream(EventStream[Received | Gap]):
    """An async iterator of `Received(chunk, position)`, and of a `Gap` wherever the message begins again.

    It ends after `finish` or `error`, and at nothing else. `finish` ends it also where the turn is only suspended, for
    an approval.

    Raises, from `async with` and from iterating:
        RequestRefusedError: the server refused; the sentence is its own.
        ServerUnreachableError: nobody answered the first request.
        StreamLostError: a drop that can't be made good: by a server that isn't penstock, after too many attempts, or
            because the turn's end is no longer to be had.
        RemoteProtocolError: what came can't be understood.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        jitter: Callable[[], float],
        chat_id: str,
        *,
        after: Position | None = None,
        post: dict[str, Any] | None = None,
        new_message_id: str | None = None,
        continues: bool = False,
    ) -> None:
        super().__init__(endpoint, jitter)
        self._chat_id = chat_id
        self._post = post
        self._new_message_id = new_message_id
        """Of a message that was not in the chat before this request."""
        self._position = self._asked_after = after
        self._turn_id: str | None = None
        self._penstock = False
        self._holds_some = continues or after is not None
        """Whether the caller has a part of the message, which a second beginning would repeat."""
        self._at_first_chunk = True
        self._finished = False

    @property
    def turn_id(self) -> str | None:
        """The turn's id, which is the assistant message's; None if the server doesn't say it."""
        return self._turn_id

    @property
    def position(self) -> Position | None:
        """Where `follow(after=…)` goes on; None while that isn't known."""
        return self._position

    @property
    def _recovers(self) -> bool:
        return self._penstock

    @property
    def _complete(self) -> bool:
        return self._finished

    async def _next_request(self) -> Asked:
        self._at_first_chunk = True
        if self._post is not None and not self._answered and not await self._arrived():
            return Asked("send", self._chat_id, self._post, "")
        self._asked_after = self._position
        return Asked("resume", self._chat_id, {}, "" if self._position is None else str(self._position))

    async def _arrived(self) -> bool:
        """Whether an earlier POST, whose answer never came, has reached the server.

        Its turn may be over by now, and to POST again would begin another one.
        """
        if self._requests == 0 or self._new_message_id is None:
            return False
        try:
            state = await self._endpoint.state(self._chat_id)
        except (RequestRefusedError, ServerUnreachableError, RemoteProtocolError):
            return False  # the POST will tell
        messages = state.get("messages") if isinstance(state, dict) else None
        asked = [
            message.get("id")
            for message in (messages if isinstance(messages, list) else ())
            if isinstance(message, dict) and message.get("role") == "user"
        ]
        if self._new_message_id in asked[:-1]:
            raise StreamLostError("The stream was cut, and the chat has gone on to another message.")
        return self._new_message_id in asked

    def _nothing(self) -> None:
        if self._post is not None or self._answered:
            raise StreamLostError("The stream was cut, and the server does not have the rest any more.")

    def _accept(self, answer: Answer) -> None:
        self._penstock = answer.turn_id is not None
        if self._turn_id is not None and answer.turn_id != self._turn_id:
            raise StreamLostError("The stream was cut, and the chat has gone on to another answer.")
        self._turn_id = answer.turn_id

    def _take(self, event: ServerSentEvent) -> Received | Gap | None:
        if event.event == "closing" and not self._finished:
            closing = read_closing(event.data, self._endpoint.wire)
            if not closing.reconnect:
                raise StreamLostError("The stream was cut, and the server does not want us back.")
            self._next_wait_s = closing.retry_s
        if event.event != "message":
            return None
        if event.data == "[DONE]":
            # Alone, it is the answer to a question for what follows the turn's last chunk.
            self._finished = self._finished or (self._at_first_chunk and self._asked_after is not None)
            return None
        chunk = decode_chunk(event.data.encode(), limits=self._endpoint.wire)
        position = read_position(event.last_event_id)
        if self._at_first_chunk and self._holds_some and not self._continued_by(position):
            if type(chunk) is not Start:
                raise RemoteProtocolError("The server went on at another place than it was asked to.")
            self._events.appendleft(event)
            self._holds_some = False
            return Gap(RESTARTED, self._position)
        self._at_first_chunk, self._holds_some = False, True
        if position is not None and position != self._asked_after:
            self._backoff.reset()
        self._position = position
        self._finished = isinstance(chunk, Finish | Error)
        return Received(chunk, position)

    def _continued_by(self, position: Position | None) -> bool:
        before = self._position
        return (
            before is not None
            and position is not None
            and (position.turn_id, position.epoch) == (before.turn_id, before.epoch)
            and position.offset > before.offset
        )
