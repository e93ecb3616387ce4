"""`{prefix}/ws`: a chat's turns over one WebSocket, many requests at a time. The frames are in `wire/websocket.py`.

    connection's nursery ── the reader: takes frames, starts requests
                            └── a task for each request: begins or finds a turn, and pumps it; or watches a chat

All requests share the connection, and so its writer, its keepalive and its bounds; each has its own place in its turn. A
request sends a batch, then waits its turn for room like the others, and what goes wrong with one is no other's end.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import trio

from penstock.asgi import Message, Receive, Scope
from penstock.closing import CloseReason
from penstock.connections.connection import Connection
from penstock.connections.pump import pump
from penstock.connections.websocket import AsgiWebSocket
from penstock.errors import ConnectionClosedError, RemoteProtocolError, StoreUnavailableError
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import Hub
from penstock.turns.turn import TurnRequest
from penstock.web.actions import approve, stop
from penstock.web.answers import Answers
from penstock.web.auth import Action, Authorize, Request, authorized
from penstock.web.frames import Chunks, Events
from penstock.web.request import HttpError
from penstock.web.resume import cursor_at, is_old, replayed
from penstock.web.state import whole_turn
from penstock.web.watch import retry_s, watch
from penstock.wire.versions import SdkVersion
from penstock.wire.websocket import (
    Act,
    Detach,
    FrameError,
    Resume,
    Send,
    Watch,
    frame,
    read_client_frame,
)

logger = logging.getLogger("penstock.web")


class _Request:
    """A request that is being served."""

    __slots__ = ("asked", "scope", "turn")

    def __init__(self, asked: Send | Resume | Watch | Act) -> None:
        self.asked = asked
        self.scope = trio.CancelScope()
        self.turn: TurnHandle | None = None
        """What it follows, once that is known."""


class Session:
    """One client's requests on one WebSocket."""

    def __init__(
        self,
        connection: Connection,
        transport: AsgiWebSocket,
        scope: Scope,
        *,
        hub: Hub,
        answers: Answers,
        authorize: Authorize,
        version: SdkVersion,
        abort_stops: bool,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._connection = connection
        self._transport = transport
        self._scope = scope
        self._hub = hub
        self._answers = answers
        self._authorize = authorize
        self._version = version
        self._abort_stops = abort_stops
        self._limits = limits
        self._metrics = metrics
        self._requests: dict[str, _Request] = {}
        self._nursery: trio.Nursery
        self._served: trio.Event | None = None
        """Made when the hub drains, and set with the end of the last request."""

    async def run(self, receive: Receive) -> None:
        """Serve requests until the connection closes, or the hub drains and the turns that are followed have ended."""
        draining = self._hub.draining
        async with trio.open_nursery() as self._nursery:
            while not draining.is_set():
                # Only the waiting ends there: what a frame asks for is begun, or refused, in any case.
                with draining.cut() as until_then:
                    message = await receive()
                if not until_then.cancelled_caught:
                    await self._hear(message)
            if self._requests:
                self._served = trio.Event()
                self._nursery.start_soon(self._read, receive)
                await self._served.wait()
            self._nursery.cancel_scope.cancel("the socket is closing")
        await self.send_away(self._hub.draining.reason)

    async def send_away(self, reason: CloseReason) -> None:
        """Close, with a word of why, and of when to come back; if it is being closed already, wait for that."""
        try:
            await self._connection.send_frame(self._farewell(reason))
        except ConnectionClosedError:
            pass
        await self._connection.aclose(reason)

    async def _read(self, receive: Receive) -> None:
        """Take frames until the connection closes, which cancels us."""
        while True:
            await self._hear(await receive())

    async def _hear(self, message: Message) -> None:
        """Take a frame, or the news that the client has left: that closes the connection, and so cancels us."""
        if message["type"] == "websocket.disconnect":
            self._transport.client_left(message)
            await trio.sleep_forever()
        elif message["type"] == "websocket.receive":
            text = message.get("text")
            await self._take(text.encode() if text is not None else message["bytes"])

    async def _take(self, data: bytes) -> None:
        """Start what a frame asks for."""
        try:
            asked = read_client_frame(data, self._limits.wire)
            if isinstance(asked, Detach):
                self._detach(asked.request_id)
            else:
                self._start(asked)
        except FrameError as exc:
            if exc.request_id is None:
                # Nobody could be told which of the requests it was about.
                await self._connection.aclose(CloseReason.bad_frame)
            else:
                await self._refuse(exc.request_id, exc)

    def _start(self, asked: Send | Resume | Watch | Act) -> None:
        request_id = asked.request_id
        if (request := self._requests.get(request_id)) is not None:
            # The client can't tell whose end the error is, so it is the end of both.
            self._cancel(request, "its id was used again")
            raise FrameError("There is a request with this requestId already: both are over.", request_id)
        if len(self._requests) >= self._limits.connection.requests:
            raise FrameError("There are too many requests on this socket.", request_id, status=429)
        request = self._requests[request_id] = _Request(asked)
        self._nursery.start_soon(self._serve, request)

    def _detach(self, request_id: str) -> None:
        """Send no more of a request. Its turn goes on, unless the app says that this stops it."""
        request = self._requests.get(request_id)
        if request is None:
            return  # It has ended, and the client has not yet heard.
        self._cancel(request, "the client has let go of it")
        if request.turn is not None:
            self._aborted(request.turn, request.asked)

    def _aborted(self, turn: TurnHandle, asked: Send | Resume | Watch | Act) -> None:
        if self._abort_stops:
            # A task of its own, whose first step stops the producer: the client may leave with its next word.
            self._nursery.start_soon(self._stop, turn, asked)

    async def _stop(self, turn: TurnHandle, asked: Send | Resume | Watch | Act) -> None:
        try:
            if isinstance(asked, Resume):
                await self._check(asked.headers, asked.chat_id, "stop")
            await turn.stop("aborted")
        except HttpError:
            pass  # Who may read need not be who may stop.
        except StoreUnavailableError as exc:
            logger.error("turn %s could not be stopped: %s", turn.id, exc)

    async def _serve(self, request: _Request) -> None:
        """Serve one request; what it refuses is answered with an `error` frame."""
        request_id = request.asked.request_id
        try:
            with request.scope:
                error = await self._answer(request)
                if error is not None:
                    await self._refuse(request_id, error)
        except ConnectionClosedError:
            pass  # Whoever closed it cancels us, too.
        finally:
            self._forget(request)

    def _cancel(self, request: _Request, reason: str) -> None:
        """Send no more of a request. Its id and its place are free at once."""
        request.scope.cancel(reason)
        self._forget(request)

    def _forget(self, request: _Request) -> None:
        if self._requests.get(request.asked.request_id) is request:
            del self._requests[request.asked.request_id]
        if self._served is not None and not self._requests:
            self._served.set()

    async def _answer(self, request: _Request) -> HttpError | RemoteProtocolError | None:
        """Do what is asked; return why not."""
        try:
            match request.asked:
                case Send() as asked:
                    await self._send(asked, request)
                case Resume() as asked:
                    await self._resume(asked, request)
                case Watch() as asked:
                    await self._watch(asked)
                case Act() as asked:
                    await self._act(asked)
        except ConnectionClosedError:
            raise
        except (HttpError, RemoteProtocolError) as exc:
            return exc
        except StoreUnavailableError as exc:
            logger.error("a request could not be answered: %s", exc)
            return HttpError(503, "The journal is not available.", (b"retry-after", b"5"))
        except Exception:
            # Such as the app's own `authorize`. The other requests of the socket have nothing to do with it.
            logger.exception("a request on a WebSocket failed")
            return HttpError(500, "The server failed to answer this request.")
        return None

    async def _refuse(self, request_id: str, why: HttpError | RemoteProtocolError) -> None:
        """Answer a request with an `error` frame: what an HTTP response would say, in its status and headers too.

        If the connection is being closed already, that is the answer.
        """
        fields: dict[str, object] = {"errorText": str(why), "status": why.status}
        if isinstance(why, HttpError) and (after := dict(why.headers).get(b"retry-after")) is not None:
            fields["retryMs"] = int(after) * 1000
        try:
            await self._say("error", request_id, **fields)
        except ConnectionClosedError:
            pass

    async def _send(self, asked: Send, request: _Request) -> None:
        came_as = Request.of(self._scope, asked.headers)
        await authorized(self._authorize, came_as, asked.chat.chat_id, "write")
        turn = await self._answers.begin(self._hub, asked.chat, TurnRequest(asked.fields, came_as.headers))
        if request.scope.cancel_called:
            self._aborted(turn, asked)
        held = self._connection.on_close(lambda reason: turn.holder_gone())
        turn.holder_came()
        try:
            await self._follow(request, turn, turn.first_entry - 1)
        finally:
            # Unless the connection has closed, which says so itself.
            if held.unregister():
                turn.holder_gone()

    async def _resume(self, asked: Resume, request: _Request) -> None:
        hub = self._hub
        try:
            await self._check(asked.headers, asked.chat_id, "read")
            turn = await hub.newest_turn(asked.chat_id)
        except HttpError as exc:
            if exc.status != 404:
                raise
            turn = None  # another's chat: the same answer as for none
        after = None if turn is None or asked.after is None else cursor_at(asked.after, turn)
        if turn is None or (after is None and is_old(turn, self._limits.hub.replay_finished_s)):
            await self._say("no-active", asked.request_id)
        elif after is not None:
            await self._follow(request, turn, after)
        else:
            before = replayed(turn, self._version, self._limits)
            await self._follow(request, turn, turn.entries - 1, before)

    async def _follow(
        self, request: _Request, turn: TurnHandle, after: int, before: Sequence[bytes] = ()
    ) -> None:
        request_id, connection = request.asked.request_id, self._connection
        request.turn = turn
        position = str(turn.position)
        chunks = Chunks(request_id, self._version, connection.offer)
        # Followed before anything is awaited: a turn whose follower has left may be cancelled at once.
        with turn.follow(after) as subscription:
            await self._say("start", request_id, turn=turn.id)
            if before:
                await connection.send_frame(chunks.replay(before, position))
            await pump(
                subscription,
                connection,
                chunks,
                limits=self._limits.viewer,
                metrics=self._metrics,
                offer=chunks.offer,
                farewell=lambda: self._farewell(CloseReason.slow_consumer),
            )
        await self._say("end", request_id)

    async def _watch(self, asked: Watch) -> None:
        await self._check(asked.headers, asked.chat_id, "read")
        await watch(
            self._hub,
            asked.chat_id,
            self._connection,
            Events(asked.request_id, asked.types, asked.lane),
            asked.after,
            limits=self._limits,
            metrics=self._metrics,
        )

    async def _act(self, asked: Act) -> None:
        hub, wire = self._hub, self._limits.wire
        action: Action = "read" if asked.kind == "turn" else asked.kind
        who = await self._check(asked.headers, asked.chat_id, action)
        value: dict[str, Any]
        if asked.kind == "turn":
            turn_id = asked.fields.get("turnId")
            if not isinstance(turn_id, str):
                raise HttpError(400, "Say which turn: turnId.")
            value = await whole_turn(hub, asked.chat_id, turn_id)
        elif asked.kind == "stop":
            value = dict(await stop(hub, asked.chat_id, who, asked.fields, wire))
        else:
            approval_id = asked.fields.get("approvalId")
            if not isinstance(approval_id, str):
                raise HttpError(400, "Say which approval this is about: approvalId.")
            value = dict(await approve(hub, asked.chat_id, approval_id, who, asked.fields, wire))
        await self._say("result", asked.request_id, value=value)

    async def _check(self, headers: dict[str, str], chat_id: str, action: Action) -> str:
        return await authorized(self._authorize, Request.of(self._scope, headers), chat_id, action)

    async def _say(self, kind: str, request_id: str, **fields: Any) -> None:
        await self._connection.send_frame(frame(kind, request_id, **fields))

    def _farewell(self, reason: CloseReason) -> bytes:
        """Frame the last word on a socket: why it closes, and when to come back."""
        retry_ms = round(retry_s() * 1000)
        return frame("closing", "", reason=reason.value, reconnect=reason.reconnect, retryMs=retry_ms)
