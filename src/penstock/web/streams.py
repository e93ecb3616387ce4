"""The routes that stream, as plain ASGI: they see the client leave, batch their writes, and can cut a response.

`Streams` answers `POST {prefix}` itself, owns the hub for the length of the app's lifespan, and hands every other
request to the app behind it.
"""

from __future__ import annotations

import logging

import trio
from penstock.connections.connection import Connection, open_connection
from penstock.connections.transport import ASGIApp, AsgiTransport, Receive, Scope, Send
from penstock.errors import RemoteProtocolError, StoreUnavailableError, TurnConflictError
from penstock.journal.subscription import Subscription
from penstock.limits import Limits
from penstock.metrics import Metrics
from penstock.turns.hub import Hub, HubFullError, TurnHandle, open_hub
from penstock.turns.runner import ErrorText
from penstock.turns.turn import Producer
from penstock.web.request import ClientGoneError, HttpError, answer_error, read_json_body, sdk_version
from penstock.wire.messages import ChatRequest, UIMessage, read_chat_request
from penstock.wire.versions import SdkVersion, speaks

logger = logging.getLogger("penstock.web")

NOT_ON_TRIO = (
    "penstock runs on Trio, and this server does not: use `penstock serve`, or hypercorn with `-k trio`."
)

_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"cache-control", b"no-cache, no-store, must-revalidate, no-transform"),
    (b"x-accel-buffering", b"no"),
    (b"x-vercel-ai-ui-message-stream", b"v1"),
)


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
        limits: Limits,
        metrics: Metrics,
    ) -> None:
        self._behind = behind
        self._answer = answer
        self._prefix = prefix
        self._journal = journal
        self._sdk_version: SdkVersion = sdk_version
        self._orphan_grace_s = orphan_grace_s
        self._error_text = error_text
        self._limits = limits
        self._metrics = metrics
        self.hub: Hub | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Serve one ASGI scope."""
        if not trio.lowlevel.in_trio_task():
            if scope["type"] == "lifespan":
                await receive()
                await send({"type": "lifespan.startup.failed", "message": NOT_ON_TRIO})
                return
            raise RuntimeError(NOT_ON_TRIO)
        if scope["type"] == "lifespan":
            await self._live(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == self._prefix:
            await self._post(scope, receive, send)
        else:
            await self._behind(scope, receive, send)

    async def _live(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Hold the hub open round the lifespan of the app behind us."""
        server = scope.get("extensions", {}).get("penstock.server")
        async with open_hub(
            journal=self._journal, limits=self._limits, metrics=self._metrics, error_text=self._error_text
        ) as hub:
            self.hub = hub
            try:
                async with trio.open_nursery() as nursery:
                    if server is not None:
                        nursery.start_soon(_drain_with, hub, server["draining"], server["drain_s"])
                    await self._behind(scope, receive, send)
                    nursery.cancel_scope.cancel("the app has shut down")
            finally:
                self.hub = None

    async def _post(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            if scope["method"] != "POST":
                raise HttpError(405, "Send a chat message with POST.", (b"allow", b"POST"))
            version = sdk_version(scope, self._sdk_version)
            body = await read_json_body(scope, receive, self._limits.wire)
            turn = await self._start(read_chat_request(body, self._limits.wire))
        except ClientGoneError:
            return
        except (HttpError, RemoteProtocolError) as exc:
            await answer_error(send, exc)
            return
        await self._stream(turn, version, AsgiTransport(scope, receive, send, _stream_headers(scope, turn)))

    async def _start(self, request: ChatRequest) -> TurnHandle:
        hub = self.hub
        if hub is None:
            raise HttpError(503, "The server is starting or shutting down.", (b"retry-after", b"1"))
        try:
            return await hub.start_turn(
                request.chat_id,
                self._answer,
                await _history(hub, request),
                body=request.body,
                orphan_grace_s=self._orphan_grace_s,
            )
        except TurnConflictError:
            raise HttpError(409, "Another message of this chat is being answered.") from None
        except HubFullError:
            raise HttpError(
                503, "Too many answers are being written. Please try again.", (b"retry-after", b"5")
            ) from None
        except StoreUnavailableError:
            raise HttpError(503, "The journal is not available.", (b"retry-after", b"5")) from None

    async def _stream(self, turn: TurnHandle, version: SdkVersion, transport: AsgiTransport) -> None:
        # Followed before anything is awaited: a turn whose follower has left may be cancelled at once.
        with turn.follow() as subscription:
            try:
                async with open_connection(
                    transport, limits=self._limits.connection, metrics=self._metrics
                ) as connection:
                    await pump(subscription, connection, version, self._limits.turn.batch_entries)
            except StoreUnavailableError as exc:
                logger.error("a stream of turn %s was cut: %s", turn.id, exc)


async def pump(
    subscription: Subscription, connection: Connection, version: SdkVersion, batch_entries: int
) -> None:
    """Carry a turn to a connection, a batch at a time, to the turn's end.

    What the client's version does not know is left out: one unknown chunk would end its turn.

    Raises:
        StoreUnavailableError: if it is not known how the turn goes on. The connection must be cut then.
    """
    while True:
        try:
            batch = await subscription.next_batch(batch_entries)
        except trio.EndOfChannel:
            return
        data = b"".join([entry.frame for entry in batch if speaks(entry.chunk, version)])
        if data:
            await connection.send_frame(data)


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


async def _drain_with(hub: Hub, draining: trio.Event, drain_s: float) -> None:
    """When the server begins to go away, let turns end; keep a quarter of the time to tell their followers."""
    await draining.wait()
    await hub.drain(drain_s * 0.75)


def _stream_headers(scope: Scope, turn: TurnHandle) -> list[tuple[bytes, bytes]]:
    headers = [*_HEADERS, (b"x-penstock-turn", turn.id.encode("ascii"))]
    if scope["http_version"].startswith("1."):
        headers.append((b"connection", b"keep-alive"))
    return headers
