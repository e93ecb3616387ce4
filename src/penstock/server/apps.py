"""The ASGI app's side of a request: what it is told, what it says, and the task it runs in.

Hypercorn starts the app of each request and WebSocket through a "task group"; ours gives the app

- an inbox that is bounded in bytes and in which the disconnect can't be stuck behind unread ones;
- a `send` that raises once the client has left. Hypercorn's own returns, so an app that only writes writes for ever;
- the extensions `penstock.server`, and on HTTP/1.1 without TLS `penstock.stream` (`direct.py`).

What an app raises is logged here, and its unfinished response cut. An app that only notices with `ClientGoneError` that
its client left has done nothing wrong: that is not logged.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from functools import partial
from typing import Any, Protocol

import trio

from penstock.asgi import ASGIApp
from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits
from penstock.metrics import Metrics
from penstock.server.log import indented_traceback, logger, one_line, summary

Message = dict[str, Any]

_MESSAGE_BYTES = 256
"""What a message takes beside its content: a client may send thousands of empty ones."""


class Client(Protocol):
    """The client of an app, as far as this file needs to know it."""

    deadline: float
    """When the client's present task, such as sending its body, must be done; by Trio's clock."""

    def direct_stream(self, inbox: Inbox, *, websocket: bool) -> object | None:
        """Return the request's `penstock.stream`, None where there is none."""


class Inbox:
    """What an app has been told and has not yet received: messages, then the disconnect, which stays the last."""

    __slots__ = ("_bytes", "_changed", "_disconnect", "_messages", "_on_end", "_unread_bytes", "ended")

    def __init__(self, disconnect: Message, *, unread_bytes: int) -> None:
        self.ended = False
        self._disconnect = disconnect
        self._unread_bytes = unread_bytes
        # A list: there are one or two, and an empty deque takes 600 bytes.
        self._messages: list[tuple[Message, int]] = []
        self._bytes = 0
        self._changed = trio.lowlevel.ParkingLot()
        self._on_end: Callable[[], None] | None = None

    async def put(self, message: Message, client: Client) -> None:
        """Tell the app. Waits while more than `unread_bytes` are unread.

        Raises:
            trio.TooSlowError: at the client's deadline. The message is lost, so that nothing may be told after it.
        """
        if message["type"] == self._disconnect["type"]:
            self.end(message)
            return
        await self.wait_for_room(client)
        self.put_nowait(message)

    def put_nowait(self, message: Message) -> None:
        """Tell the app, unless it was told the end."""
        if not self.ended:
            size = (
                len(message.get("body") or message.get("bytes") or message.get("text") or b"")
                + _MESSAGE_BYTES
            )
            self._messages.append((message, size))
            self._bytes += size
            if self._changed:
                self._changed.unpark_all()

    async def wait_for_room(self, client: Client) -> None:
        """Wait while more than `unread_bytes` are unread. Does not wait, nor check for cancellation, where there are not.

        Raises:
            trio.TooSlowError: at the client's deadline.
        """
        if self._bytes > self._unread_bytes:
            with trio.fail_at(client.deadline):
                while self._bytes > self._unread_bytes and not self.ended:
                    await self._changed.park()

    def end(self, disconnect: Message | None = None) -> None:
        """Tell the app that its client has left, or has the whole answer. Only the first call counts."""
        if not self.ended:
            self.ended = True
            self._disconnect = disconnect or self._disconnect
            if self._changed:
                self._changed.unpark_all()
            if self._on_end is not None:
                # Called once, and not kept: it knows who knows us.
                on_end, self._on_end = self._on_end, None
                on_end()

    @property
    def disconnect(self) -> Message | None:
        """What the app is told last, once its client has left or has the whole answer."""
        return self._disconnect if self.ended else None

    def call_when_ended(self, callback: Callable[[], None]) -> None:
        """Have `end` call this, once; at once if it has been called. There is room for one callback."""
        if self.ended:
            callback()
        else:
            self._on_end = callback

    async def receive(self) -> Message:
        """Return the next message; after the disconnect, the disconnect again. Cancelling it loses nothing."""
        while not self._messages:
            if self.ended:
                # An app may ask again and again.
                await trio.lowlevel.checkpoint()
                return self._disconnect
            await self._changed.park()
        await trio.lowlevel.checkpoint_if_cancelled()
        message, size = self._messages.pop(0)
        self._bytes -= size
        if self._changed:
            self._changed.unpark_all()
        return message


class AppTasks:
    """Runs the apps of one client in that client's nursery. This is what Hypercorn calls a task group.

    Hypercorn's own gives each app a channel of ten messages: an app that does not read blocks the reader, and with it
    the news that the client left (`test_a_body_nobody_reads_does_not_hide_the_disconnect`).
    """

    __slots__ = ("_client", "_going_away", "_inboxes", "_limits", "_metrics", "_nursery")

    def __init__(
        self,
        nursery: trio.Nursery,
        client: Client,
        *,
        going_away: Message,
        limits: ServerLimits,
        metrics: Metrics,
    ) -> None:
        self._nursery = nursery
        self._client = client
        self._going_away = going_away
        self._limits = limits
        self._metrics = metrics
        self._inboxes: list[Inbox] = []

    async def spawn_app(
        self,
        app: ASGIApp,
        _config: object,
        scope: Any,
        send: Callable[[Any], Awaitable[None]],
    ) -> Callable[[Any], Awaitable[None]]:
        """Start the app and return how to tell it something. Does not wait."""
        inbox = self.open_inbox(scope)

        async def send_or_raise(message: Message) -> None:
            if inbox.ended and message["type"] != "websocket.close":
                # The checkpoint is for an app that swallows the error and tries again, for ever.
                await trio.lowlevel.checkpoint()
                raise ClientGoneError("the client has left, or has the whole response")
            await send(message)

        self.start(app, scope, inbox, send_or_raise, partial(send, None))
        return partial(inbox.put, client=self._client)

    def open_inbox(self, scope: Message) -> Inbox:
        """Return what tells the app of this scope, which gets its extensions."""
        websocket = scope["type"] == "websocket"
        if websocket:
            disconnect: Message = {"type": "websocket.disconnect", "code": 1006}
        else:
            disconnect = {"type": "http.disconnect"}
        inbox = Inbox(disconnect, unread_bytes=self._limits.unread_bytes)
        scope["extensions"]["penstock.server"] = self._going_away
        if (stream := self._client.direct_stream(inbox, websocket=websocket)) is not None:
            scope["extensions"]["penstock.stream"] = stream
        return inbox

    def start(
        self,
        app: ASGIApp,
        scope: Message,
        inbox: Inbox,
        send: Callable[[Message], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        """Start the app. `send` takes what it says, and raises once its inbox has ended; `end` is told that it has ended."""
        self._inboxes.append(inbox)
        self._metrics.count("server_requests", type=scope["type"])
        self._nursery.start_soon(self._run, app, scope, inbox, send, end)

    def spawn(self, function: Callable[..., Awaitable[object]], *args: object) -> None:
        """Start a task of the protocol's own."""
        self._nursery.start_soon(function, *args)

    def end_all(self) -> None:
        """Tell every app of this client that it has left. Synchronous."""
        for inbox in list(self._inboxes):
            inbox.end()

    async def _run(
        self,
        app: ASGIApp,
        scope: Message,
        inbox: Inbox,
        send: Callable[[Message], Awaitable[None]],
        end: Callable[[], Awaitable[None]],
    ) -> None:
        try:
            await app(scope, inbox.receive, send)
        except* ClientGoneError:
            logger.debug("the app of %s stopped because its client had left", one_line(scope["path"]))
        except* Exception as error:
            self._metrics.count("server_app_errors")
            path = one_line(scope["path"])
            logger.error("the app failed at %s: %s\n%s", path, summary(error), indented_traceback(error))
        finally:
            self._inboxes.remove(inbox)
        # Not reached when cancelled: then the client's socket is being closed under all of this.
        await end()
