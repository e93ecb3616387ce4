"""A client of a chat endpoint.

    async with open_client("http://127.0.0.1:8000/api/chat") as client:
        async with client.send("chat-1", "Hello") as stream:
            async for event in stream:
                match event:
                    case Gap(): ...                     # forget the message: it follows anew
                    case Received(chunk, position): ...

Streams reconnect by themselves; see `event_stream.py`. The other requests are made once.
"""

from __future__ import annotations

import random
import secrets
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, Literal, TypeAlias

import httpx2
import trio

from penstock.client.chunk_stream import ChunkStream
from penstock.client.endpoint import Endpoint, as_object
from penstock.client.socket_endpoint import SocketEndpoint
from penstock.client.watch_stream import WatchStream
from penstock.errors import LocalProtocolError, RemoteProtocolError
from penstock.http import http_client
from penstock.journal.position import Position
from penstock.limits import ClientLimits
from penstock.wire.messages import UIMessage, check_chat_id

Transport: TypeAlias = Literal["sse", "websocket"]

_HTTP_OF = {"ws": "http", "wss": "https"}


class Client:
    """A chat endpoint to talk to. Made by `open_client`; any number of its streams may be open at once.

    Every method raises LocalProtocolError for an id that can't be one.
    """

    def __init__(self, endpoint: Endpoint, jitter: Callable[[], float]) -> None:
        self._endpoint = endpoint
        self._jitter = jitter

    def __repr__(self) -> str:
        return f"<Client of {self._endpoint.server}>"

    def send(
        self,
        chat_id: str,
        content: str | Sequence[UIMessage],
        *,
        body: Mapping[str, Any] | None = None,
    ) -> ChunkStream:
        """Send a message and stream its answer.

        A drop after the answer began is made good from the last position. After one before that nobody knows whether
        the turn began: then the request is made again with the same message id, and a server whose turn still runs
        joins it. Of a text, whose id is new, the chat is looked at first, so that a turn that is over by then is not
        begun a second time; of messages whose ids are the caller's that can't be told, and it may be.

        Args:
            chat_id: the chat.
            content: the user's text, for a chat whose history the server has; or the whole history, which replaces it.
            body: fields of the request to add or replace, such as `trigger`.
        """
        _check(chat_id)
        if isinstance(content, str):
            message = UIMessage(
                id=f"user_{secrets.token_hex(12)}", role="user", parts=[{"type": "text", "text": content}]
            )
            own: dict[str, Any] = {"message": message}
            new_message_id, continues = message.id, False
        else:
            if not content:
                raise LocalProtocolError("there is no message to send")
            own = {"messages": list(content)}
            new_message_id, continues = None, content[-1].role == "assistant"
        return ChunkStream(
            self._endpoint,
            self._jitter,
            chat_id,
            post={"id": chat_id, **own, "trigger": "submit-message", **(body or {})},
            new_message_id=new_message_id,
            continues=continues,
        )

    def follow(self, chat_id: str, after: Position | None = None) -> ChunkStream:
        """Stream a chat's newest turn: all of it, or what follows a position. Without one it ends at once."""
        _check(chat_id)
        return ChunkStream(self._endpoint, self._jitter, chat_id, after=after)

    def watch(
        self,
        chat_id: str,
        *,
        types: Sequence[str] | None = None,
        lane: str | None = None,
        after: Position | None = None,
    ) -> WatchStream:
        """Stream what happens in a chat, across its turns.

        Args:
            chat_id: the chat.
            types: kinds of chunks and events to be sent; None for all.
            lane: a lane to be sent as a whole.
            after: the position from which to go on; None begins with a snapshot.
        """
        _check(chat_id)
        return WatchStream(self._endpoint, self._jitter, chat_id, types=types, lane=lane, after=after)

    async def stop(self, chat_id: str, reason: str = "") -> str:
        """Stop a chat's running turn. Idempotent.

        Returns:
            How the newest turn ended: `stopped`, or as it had before.

        Raises:
            RequestError: what was asked for did not happen, or nobody knows.
        """
        _check(chat_id)
        state = as_object(await self._endpoint.stop(chat_id, reason)).get("state")
        if not isinstance(state, str):
            raise RemoteProtocolError("The server does not say how the turn ended.")
        return state

    async def approve(self, chat_id: str, approval_id: str, approved: bool, reason: str = "") -> None:
        """Decide about a tool call that waits for it.

        Raises:
            RequestRefusedError: it waits no longer, or never did.
            RequestError: nobody knows.
        """
        _check(chat_id)
        decision = {"approved": approved, **({"reason": reason} if reason else {})}
        await self._endpoint.approve(chat_id, approval_id, decision)

    async def state(self, chat_id: str) -> dict[str, Any] | None:
        """Return a chat's state, as `docs/wire.md` has it; None if there is no such chat.

        Raises:
            RequestError: it can't be had.
        """
        _check(chat_id)
        return await self._endpoint.state(chat_id)

    async def turn(self, chat_id: str, turn_id: str) -> dict[str, Any] | None:
        """Return a turn's state, with its message so far; None if there is no such turn.

        Raises:
            RequestError: it can't be had.
        """
        _check(chat_id)
        return await self._endpoint.turn(chat_id, turn_id)


@asynccontextmanager
async def open_client(
    url: str,
    *,
    transport: Transport | None = None,
    headers: Mapping[str, str] | None = None,
    limits: ClientLimits = ClientLimits(),
    jitter: Callable[[], float] = random.random,
) -> AsyncIterator[Client]:
    """Open a client of a chat endpoint, whose connections are kept for the next request.

    Args:
        url: the endpoint, as `http://127.0.0.1:8000/api/chat`, or with ws or wss.
        transport: `"websocket"` for one socket that carries all requests, or HTTP with `"sse"`; None for what the URL's
            scheme says. Where a WebSocket is refused, HTTP is used.
        headers: sent with every request, such as `authorization`. Redirects are not followed.
        limits: the numbers that differ from the defaults.
        jitter: numbers from 0 to 1 for the waits; `random.Random(7).random` for the same ones each time.

    Raises:
        ValueError: if the URL can't be used.
    """
    parsed = endpoint_url(url)
    if transport is None:
        transport = "websocket" if parsed.scheme in _HTTP_OF else "sse"
    parsed = parsed.copy_with(scheme=_HTTP_OF.get(parsed.scheme, parsed.scheme))
    failure: Exception | None = None
    async with http_client(parsed, connect_s=limits.connect_s, silence_s=limits.silence_s) as http:
        if transport == "sse":
            yield Client(Endpoint(http, parsed, headers or {}, limits), jitter)
            return
        async with trio.open_nursery() as nursery:
            endpoint = SocketEndpoint(http, parsed, headers or {}, limits, nursery)
            try:
                yield Client(endpoint, jitter)
                await endpoint.aclose()
            except Exception as exc:
                failure = exc  # not in a group: over HTTP it is in none
            nursery.cancel_scope.cancel("the client is closed")
    if failure is not None:
        raise failure


def endpoint_url(url: str) -> httpx2.URL:
    """Return a chat endpoint's URL. Raises ValueError with a sentence."""
    try:
        endpoint = httpx2.URL(url)
    except httpx2.InvalidURL as exc:
        raise ValueError("That URL can't be read.") from exc
    if endpoint.scheme not in ("http", "https", *_HTTP_OF) or not endpoint.host:
        raise ValueError("The URL must begin with http:// or https://, or ws:// or wss://, and name a host.")
    return endpoint.copy_with(fragment=None)


def _check(chat_id: str) -> None:
    try:
        check_chat_id(chat_id)
    except RemoteProtocolError as exc:
        raise LocalProtocolError(str(exc)) from exc
