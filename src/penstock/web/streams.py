"""The routes that stream, as plain ASGI: they see the client leave, batch their writes, and can cut a response.

`Streams` answers `POST {prefix}`, `GET {prefix}/{chat}/stream` and `GET {prefix}/{chat}/watch` itself, owns the hub for the length of the app's
lifespan, and hands every other request to the app behind it.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TypeAlias

import trio

from penstock.asgi import ASGIApp, Receive, Scope, Send
from penstock.connections.connection import OPENING, open_connection
from penstock.connections.keepalive import Keepalive
from penstock.connections.pump import first_batch, pump
from penstock.connections.transport import AsgiTransport
from penstock.errors import (
    ClientGoneError,
    RemoteProtocolError,
    StoreUnavailableError,
)
from penstock.journal.store import Retention
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.abandoned import Recover
from penstock.turns.error_text import ErrorText
from penstock.turns.handle import TurnHandle
from penstock.turns.hub import Hub, open_hub
from penstock.turns.turn import Producer, TurnRequest
from penstock.web.answers import Answers, OnConflict
from penstock.web.auth import NO_CHAT, Authorize, Request, authorized
from penstock.web.hub_life import HubLife
from penstock.web.request import (
    HttpError,
    answer_error,
    header,
    query_parameter,
    read_json_body,
    refuse_websocket,
    sdk_version,
)
from penstock.web.resume import Run, cursor_of, is_old, renderer, replay, run_header, turn_headers
from penstock.web.sessions import Sessions
from penstock.web.watch import filter_of, retry_s, watch
from penstock.wire.messages import check_chat_id, read_chat_request
from penstock.wire.sse import comment
from penstock.wire.versions import SdkVersion

logger = logging.getLogger("penstock.web")

NOT_ON_TRIO = (
    "penstock runs on Trio, and this server does not: use `penstock serve`, or hypercorn with `-k trio`."
)

_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, must-revalidate, no-transform"),
    (b"x-accel-buffering", b"no"),
)


Route: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
ChatRoute: TypeAlias = Callable[[str, Scope, Receive, Send], Awaitable[None]]


class Streams:
    """The streaming half of an app, in front of the other half."""

    def __init__(
        self,
        behind: ASGIApp,
        answer: Producer,
        *,
        prefix: str,
        journal: str,
        sdk_version: SdkVersion,
        orphan_grace_s: float | None,
        error_text: ErrorText | None,
        recover: Recover | None,
        authorize: Authorize,
        on_conflict: OnConflict,
        retention: Retention | None,
        origins: Sequence[str],
        abort_stops: bool,
        nats_mirror: str | None,
        nats_watch: str | None,
        degraded: bool,
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._behind = behind
        self._answers = Answers(
            answer, on_conflict=on_conflict, orphan_grace_s=orphan_grace_s, limits=limits.hub
        )
        self._prefix = prefix
        self._sdk_version: SdkVersion = sdk_version
        self._authorize = authorize
        self._abort_stops = abort_stops
        self._limits = limits
        self._metrics = metrics
        self._keepalive = Keepalive()
        self._sessions = Sessions(
            self._answers,
            self._keepalive,
            authorize=authorize,
            origins=origins,
            abort_stops=abort_stops,
            limits=limits,
            metrics=metrics,
        )
        self._life = HubLife(
            partial(
                open_hub,
                journal=journal,
                limits=limits,
                metrics=metrics,
                error_text=error_text,
                recover=recover,
                retention=retention,
            ),
            nats_mirror=nats_mirror,
            nats_watch=nats_watch,
            degraded=degraded,
            limits=limits,
            metrics=metrics,
        )

    @property
    def hub(self) -> Hub | None:
        """The hub, while there is one."""
        return self._life.hub

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if not trio.lowlevel.in_trio_task():
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.failed", "message": NOT_ON_TRIO})
                return
            raise RuntimeError(NOT_ON_TRIO)
        if scope["type"] == "lifespan":
            await self._life.run(self._behind, self._keepalive, scope, receive, send)
        elif scope["type"] == "websocket" and scope["path"] == f"{self._prefix}/ws":
            await self._socket(scope, receive, send)
        elif scope["type"] != "http":
            await self._behind(scope, receive, send)
        elif scope["path"] == self._prefix:
            await self._answer_in_sentences(self._post, scope, receive, send)
        elif (found := self._stream_of(scope["path"])) is not None:
            route, chat_id = found
            await self._answer_in_sentences(partial(route, chat_id), scope, receive, send)
        else:
            await self._behind(scope, receive, send)

    def _stream_of(self, path: str) -> tuple[ChatRoute, str] | None:
        """Return the route and the chat of `{prefix}/{chat}/stream` or `{prefix}/{chat}/watch`."""
        chat_id, _, verb = path.removeprefix(f"{self._prefix}/").rpartition("/")
        if not path.startswith(f"{self._prefix}/") or not chat_id or "/" in chat_id:
            return None
        route = {"stream": self._resume, "watch": self._watch}.get(verb)
        return None if route is None else (route, chat_id)

    async def _answer_in_sentences(self, route: Route, scope: Scope, receive: Receive, send: Send) -> None:
        """Run a route; what it refuses before its stream began is answered with a status and a sentence."""
        try:
            await route(scope, receive, send)
        except ClientGoneError:
            pass
        except (HttpError, RemoteProtocolError) as exc:
            await answer_error(send, exc)
        except StoreUnavailableError as exc:
            logger.error("a request could not be answered: %s", exc)
            await answer_error(send, HttpError(503, "The journal is not available.", (b"retry-after", b"5")))

    def open_hub(self) -> Hub:
        """Return the hub.

        Raises:
            HttpError: 503, while the app is not being served, or has no journal.
        """
        if self.hub is None:
            raise HttpError(503, "The server is starting or shutting down.", (b"retry-after", b"1"))
        return self.hub

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "POST":
            raise HttpError(405, "Send a chat message with POST.", (b"allow", b"POST"))
        version = sdk_version(scope, self._sdk_version)
        exact = header(scope, b"x-penstock-exact") == "1"
        body = await read_json_body(scope, receive, self._limits.wire)
        asked = read_chat_request(body, self._limits.wire)
        request = Request.of(scope)
        await authorized(self._authorize, request, asked.chat_id, "write")
        turn = await self._answers.begin(self.open_hub(), asked, TurnRequest(body, request.headers))
        await self._stream(
            turn,
            turn.first_entry - 1,
            (),
            version,
            scope,
            receive,
            send,
            skip=0 if exact else None,
            holds=True,
        )

    async def _resume(self, chat_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise HttpError(405, "Resume a stream with GET.", (b"allow", b"GET"))
        check_chat_id(chat_id)
        version = sdk_version(scope, self._sdk_version)
        hub = self.open_hub()
        if (start_index := query_parameter(scope, "startIndex")) is not None:
            await self._resume_at_index(hub, chat_id, start_index, scope, receive, send)
            return
        try:
            await authorized(self._authorize, Request.of(scope), chat_id, "read")
            turn = await hub.newest_turn(chat_id)
        except HttpError as exc:
            if exc.status != 404:
                raise
            turn = None  # another's chat: the same answer as for none
        after = None if turn is None else cursor_of(scope, turn)
        if turn is None or (after is None and is_old(turn, self._limits.hub.replay_finished_s)):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
        elif after is not None:
            await self._stream(turn, after, (), version, scope, receive, send)
        else:
            # Taken in one go with the offset that follows it: nothing is awaited between.
            after = turn.entries - 1
            before = replay(turn, version, self._limits)
            await self._stream(turn, after, before, version, scope, receive, send)

    async def _watch(self, chat_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["method"] != "GET":
            raise HttpError(405, "Watch a chat with GET.", (b"allow", b"GET"))
        check_chat_id(chat_id)
        hub = self.open_hub()
        await authorized(self._authorize, Request.of(scope), chat_id, "read")
        wanted = filter_of(
            query_parameter(scope, "types"),
            query_parameter(scope, "lane"),
            query_parameter(scope, "envelope") == "1",
        )
        last_event_id = header(scope, b"last-event-id") or query_parameter(scope, "after")
        transport = AsgiTransport(scope, receive, send, _event_stream_headers(scope))
        try:
            async with open_connection(
                transport,
                limits=self._limits.connection,
                metrics=self._metrics,
                opening=comment("ok") + b"retry: %d\n\n" % round(retry_s() * 1000),
                ending=b"",
                keepalive=self._keepalive,
            ) as connection:
                await watch(
                    hub,
                    chat_id,
                    connection,
                    wanted,
                    last_event_id,
                    limits=self._limits,
                    metrics=self._metrics,
                )
        except StoreUnavailableError as exc:
            logger.error("a watch of chat %s was cut: %s", chat_id, exc)

    async def _resume_at_index(
        self, hub: Hub, run_id: str, start_index: str, scope: Scope, receive: Receive, send: Send
    ) -> None:
        """Serve `WorkflowChatTransport`, which counts the chunks it got: on its streams none are joined."""
        run = Run.parse(run_id, start_index)
        if run is None:
            raise HttpError(404, NO_CHAT)
        turn = await hub.turn(run.turn_id)
        if turn is None:
            # On a new page it knows no run, and says the chat's id.
            run, turn = run.chat(run_id), await hub.newest_turn(run_id)
        if turn is None:
            raise HttpError(404, NO_CHAT)
        await authorized(self._authorize, Request.of(scope), turn.chat_id, "read")
        tail_index = (b"x-workflow-stream-tail-index", b"%d" % (run.sent(turn) - 1))
        after = run.first - 1
        await self._stream(
            turn, after, (), run.version, scope, receive, send, tail_index, skip=run.skip(turn)
        )

    async def _socket(self, scope: Scope, receive: Receive, send: Send) -> None:
        await receive()  # websocket.connect
        try:
            hub = self.open_hub()
            version = self._sessions.check(scope)
        except (HttpError, RemoteProtocolError) as exc:
            await refuse_websocket(scope, send, exc)
            return
        # An `abort` may be the last word before the close frame.
        await self._sessions.serve(hub, version, scope, receive, send, hears_out=self._abort_stops)

    async def _stream(
        self,
        turn: TurnHandle,
        after: int,
        before: Sequence[bytes],
        version: SdkVersion,
        scope: Scope,
        receive: Receive,
        send: Send,
        *headers: tuple[bytes, bytes],
        skip: int | None = None,
        holds: bool = False,
    ) -> None:
        # Followed before anything is awaited: a turn whose follower has left may be cancelled at once.
        with turn.follow(after) as subscription:
            # A client that counts is told of what; a replay is short, and has nothing to count.
            run = () if before else (run_header(turn, after + 1, version),)
            transport = AsgiTransport(
                scope, receive, send, [*_event_stream_headers(scope), *turn_headers(turn), *run, *headers]
            )
            render = renderer(version, skip)
            first = b"" if before else first_batch(subscription, render, self._limits.viewer)
            try:
                async with open_connection(
                    transport,
                    limits=self._limits.connection,
                    metrics=self._metrics,
                    opening=OPENING + first,
                    keepalive=self._keepalive,
                ) as connection:
                    if holds:
                        turn.holder_came()
                        connection.on_close(lambda reason: turn.holder_gone())
                    for frame in before:
                        await connection.send_frame(frame)
                    await pump(
                        subscription,
                        connection,
                        render,
                        limits=self._limits.viewer,
                        metrics=self._metrics,
                        exact=skip is not None,
                        ends=True,
                    )
            except StoreUnavailableError as exc:
                # Cut already, by leaving the block with an error: it is not known how the turn goes on.
                logger.error("a stream of turn %s was cut: %s", turn.id, exc)


def _event_stream_headers(scope: Scope) -> list[tuple[bytes, bytes]]:
    headers = list(_HEADERS)
    if scope["http_version"].startswith("1."):
        headers.append((b"connection", b"keep-alive"))
    return headers
