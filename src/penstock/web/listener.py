"""WebSockets straight from a Trio listener, for a program that has no web app.

The frames, and all that serves them, are those of `{prefix}/ws`; only the way to the client is another: trio-websocket
instead of an ASGI server.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote

import trio

from penstock.asgi import Message, Scope
from penstock.connections.keepalive import Keepalive
from penstock.errors import ClientGoneError, RemoteProtocolError
from penstock.limits import Limits
from penstock.metrics import Metrics, NopMetrics
from penstock.turns.hub import Hub
from penstock.turns.turn import Producer
from penstock.web.answers import Answers, OnConflict
from penstock.web.auth import Authorize, allow_everyone
from penstock.web.request import HttpError
from penstock.web.sessions import Sessions
from penstock.websocket import Closed, Handshake, WebSocket, accept

logger = logging.getLogger("penstock.web")


class _Client:
    """One client as an ASGI server has it: `receive`, `send`, and of the extension `penstock.stream` what isn't direct."""

    direct = False

    def __init__(self, handshake: Handshake, nursery: trio.Nursery, pong_wait_s: float) -> None:
        self._handshake = handshake
        self._nursery = nursery
        self._pong_wait_s = pong_wait_s
        self._websocket: WebSocket | None = None
        self._accepted = trio.Event()
        self._pinging = False
        self.disconnect: dict[str, Any] | None = None

    async def receive(self) -> Message:
        """Wait for a message, or the client's end."""
        await self._accepted.wait()
        assert self._websocket is not None
        message = await self._websocket.receive()
        if isinstance(message, Closed):
            self.disconnect = {"type": "websocket.disconnect", "code": message.code, "reason": message.reason}
            return self.disconnect
        kind = "text" if isinstance(message, str) else "bytes"
        return {"type": "websocket.receive", kind: message}

    async def send(self, message: Message) -> None:
        """Do what an ASGI message says. Raises ClientGoneError."""
        try:
            if message["type"] == "websocket.accept":
                self._websocket = await self._handshake.accept(message["subprotocol"])
                self._accepted.set()
                return
            assert self._websocket is not None
            if message["type"] == "websocket.close":
                await self._websocket.aclose(message["code"], message["reason"])
            else:
                await self._websocket.send(message["text"])
        except trio.BrokenResourceError as exc:
            raise ClientGoneError("the client has left") from exc

    async def ping(self) -> None:
        """Send a ping, and expect a sign of life within `pong_wait_s`."""
        if self._websocket is not None and not self._pinging:
            self._pinging = True
            self._nursery.start_soon(self._ping, self._websocket)
            self._nursery.start_soon(self._await_pong, self._websocket)
        await trio.lowlevel.checkpoint()

    async def _ping(self, websocket: WebSocket) -> None:
        try:
            await websocket.ping()
        except trio.BrokenResourceError:
            pass  # `receive` says so.
        self._pinging = False

    async def _await_pong(self, websocket: WebSocket) -> None:
        began = trio.current_time()
        await trio.sleep(self._pong_wait_s)
        if websocket.heard_at < began:
            self.abort()

    def write(self, data: bytes) -> bool:
        """Refuse: there is no way to write without waiting."""
        return False

    async def wait_writable(self) -> None:
        """Return at once."""
        await trio.lowlevel.checkpoint()

    def abort(self) -> None:
        """Reset the client's socket."""
        if self._websocket is not None:
            self._websocket.reset_on_close()
        self._nursery.cancel_scope.cancel("the client is given up")

    def on_gone(self, callback: object) -> None:
        """Do nothing: who receives is told, and somebody always does."""


class _Listener:
    """What the clients of one listener share."""

    def __init__(self, hub: Hub, sessions: Sessions, limits: Limits) -> None:
        self._hub = hub
        self._sessions = sessions
        self._limits = limits
        self._clients = 0

    async def serve(self, stream: trio.abc.Stream) -> None:
        """Serve one client, from its handshake to its end. Raises nothing."""
        self._clients += 1
        try:
            async with trio.open_nursery() as nursery:
                await self._shake_hands(nursery, stream)
                nursery.cancel_scope.cancel("the client is served")
        except* Exception:
            # The border: what is wrong with one client is no matter of the others.
            logger.exception("a WebSocket was cut")
        finally:
            self._clients -= 1
            await trio.aclose_forcefully(stream)

    async def _shake_hands(self, nursery: trio.Nursery, stream: trio.abc.Stream) -> None:
        limits = self._limits.server
        handshake = None
        with trio.move_on_after(limits.head_s):
            handshake = await accept(nursery, stream, message_chars=limits.websocket_message_bytes)
        if handshake is None:
            return
        client = _Client(handshake, nursery, limits.pong_wait_s)
        scope = _scope(handshake, stream, client)
        try:
            if self._clients > limits.connections:
                raise HttpError(503, "The server is full. Please try again.")
            version = self._sessions.check(scope)
            await self._sessions.serve(self._hub, version, scope, client.receive, client.send)
        except (HttpError, RemoteProtocolError) as exc:
            with trio.move_on_after(limits.linger_s):
                await handshake.refuse(exc.status, str(exc))


def _scope(handshake: Handshake, stream: trio.abc.Stream, client: _Client) -> Scope:
    path, _, query = handshake.target.partition("?")
    transport = stream.transport_stream if isinstance(stream, trio.SSLStream) else stream
    address = transport.socket.getpeername() if isinstance(transport, trio.SocketStream) else None
    return {
        "type": "websocket",
        "http_version": "1.1",
        "path": unquote(path),
        "query_string": query.encode("ascii"),
        "headers": handshake.headers,
        "client": address[:2] if isinstance(address, tuple) else None,
        "subprotocols": handshake.subprotocols,
        "extensions": {"penstock.stream": client},
    }


async def serve_websocket(
    hub: Hub,
    listener: trio.abc.Listener[Any],
    answer: Producer,
    *,
    authorize: Authorize = allow_everyone,
    on_conflict: OnConflict = "refuse",
    orphan_grace_s: float | None = None,
    origins: Sequence[str] = (),
    abort_stops: bool = False,
    limits: Limits = Limits(),
    metrics: Metrics = NopMetrics(),
) -> None:
    """Serve chats over WebSockets on a listener, until the hub drains and the clients are gone.

        async with open_hub(journal="sqlite:chat.db") as hub:
            [listener] = await trio.open_tcp_listeners(8000, host="127.0.0.1")
            await serve_websocket(hub, listener, answer)

    The path of a request means nothing. There is no protection from floods of small frames, as `penstock serve` has it.

    Args:
        hub: where the turns are. When it drains, no more clients are accepted, those that follow nothing are told to come
            back, and the others when their turn has ended: with the code that `Hub.drain` was told.
        listener: any of Trio's, such as one for TLS. It is closed at the end.
        answer: the producer of every turn.
        authorize: who may do what with a chat; see `penstock.web.auth`.
        on_conflict: what becomes of a message while another of its chat is being answered; see `Penstock`.
        orphan_grace_s: seconds that a turn outlives its last follower; None for the hub's own limit.
        origins: sites whose pages may connect, as `https://chat.example`; `*` for all. None may by itself, for no page
            comes from here.
        abort_stops: whether a client's `abort` stops its turn, rather than only letting go of it.
        limits: the numbers that differ from the defaults.
        metrics: where to count.

    Raises:
        OSError: the listener is broken. What goes wrong with a client is logged.

    Cancellation: the clients' sockets are closed at once; turns go on in their hub.
    """
    answers = Answers(answer, on_conflict=on_conflict, orphan_grace_s=orphan_grace_s, limits=limits.hub)
    keepalive = Keepalive()
    sessions = Sessions(
        answers,
        keepalive,
        authorize=authorize,
        origins=origins,
        abort_stops=abort_stops,
        limits=limits,
        metrics=metrics,
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keepalive.run)
        async with trio.open_nursery() as clients:
            serving = _Listener(hub, sessions, limits)
            with hub.draining.cut():
                await trio.serve_listeners(serving.serve, [listener], handler_nursery=clients)
        nursery.cancel_scope.cancel("the clients are gone")
