"""A chat's events across its turns, for as long as anybody looks: what `watch` gives."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeAlias

import msgspec

from penstock.client.answer import Asked
from penstock.client.endpoint import Endpoint, as_object
from penstock.client.event_stream import EventStream
from penstock.client.events import (
    Closing,
    Gap,
    Message,
    Other,
    Received,
    Snapshot,
    read_closing,
    read_position,
)
from penstock.journal.position import Position
from penstock.wire.codec import convert, decode_chunk, decode_json
from penstock.wire.messages import UIMessage
from penstock.wire.sse_parser import ServerSentEvent

WatchEvent: TypeAlias = Snapshot | Received | Message | Gap | Closing | Other


class _Gap(msgspec.Struct):
    reason: str = ""


class WatchStream(EventStream[WatchEvent]):
    """An async iterator of what happens in a chat. It ends only where the server says that coming back is no use.

    Raises as `ChunkStream` does; a `StreamLostError` means that the attempts are used up.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        jitter: Callable[[], float],
        chat_id: str,
        *,
        types: Sequence[str] | None,
        lane: str | None,
        after: Position | None,
    ) -> None:
        super().__init__(endpoint, jitter)
        self._chat_id = chat_id
        self._query = {}
        if types is not None:
            self._query["types"] = ",".join(types)
        if lane is not None:
            self._query["lane"] = lane
        self._last_event_id = "" if after is None else str(after)

    @property
    def last_event_id(self) -> str:
        """The newest event's id; empty if there was none."""
        return self._last_event_id

    @property
    def _recovers(self) -> bool:
        return True

    async def _next_request(self) -> Asked:
        return Asked("watch", self._chat_id, self._query, self._last_event_id)

    def _nothing(self) -> None:
        """As in a browser, 204 tells a client to stay away. Source: WHATWG HTML 9.2.3."""

    def _take(self, event: ServerSentEvent) -> WatchEvent | None:
        if event.last_event_id and event.last_event_id != self._last_event_id:
            self._last_event_id = event.last_event_id
            self._backoff.reset()
        wire = self._endpoint.wire
        data = event.data.encode()
        position = read_position(event.last_event_id)
        match event.event:
            case "chunk":
                return Received(decode_chunk(data, limits=wire), position)
            case "message":
                value = decode_json(data, limits=wire)
                return Message(convert(value, UIMessage, "The message"), position)
            case "snapshot":
                return Snapshot(as_object(decode_json(data, limits=wire)), position)
            case "gap":
                gap = convert(decode_json(data, limits=wire), _Gap, "The gap")
                return Gap(gap.reason, position)
            case "closing":
                closing = read_closing(event.data, wire)
                self._over = not closing.reconnect
                self._next_wait_s = closing.retry_s
                return closing
        return Other(event.event, event.data)
