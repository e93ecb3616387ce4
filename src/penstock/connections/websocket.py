"""A WebSocket of any ASGI server on Trio, as a connection's transport.

What a connection writes here are messages as `penstock.wire.websocket.text_message` makes them: on our own server they are
what goes to the client, one or many in one piece.
"""

from __future__ import annotations

from collections.abc import Callable

from penstock.asgi import DirectStream, Message, Scope, Send
from penstock.closing import CloseReason
from penstock.wire.websocket import PING_JSON, payloads


class AsgiWebSocket:
    """A WebSocket.

    The messages that come in are the caller's to `receive`; it says with `client_left` that the client has gone, which
    only our own server tells without being asked. On a server that is not ours a ping is a message.

        transport = AsgiWebSocket(scope, send)
        async with open_connection(transport, opening=b"", ending=b"", keepalive_frame=PING_FRAME) as connection:
            connection.on_close(lambda reason: log(reason, transport.client_close))
            while (message := await receive())["type"] != "websocket.disconnect":
                ...
            transport.client_left(message)
    """

    __slots__ = ("_disconnect", "_gone", "_hears_out", "_send", "_stream", "_subprotocol", "direct")

    def __init__(self, scope: Scope, send: Send, *, hears_out: bool = False) -> None:
        """Take the scope and `send` of an app.

        Args:
            hears_out: a client that leaves with a close frame is gone only when the caller says so: it receives first
                what the client said before. Else the client is gone at once, and that is lost.
        """
        self._hears_out = hears_out
        self._send = send
        # A browser fails the connection if none of what it offers is chosen.
        self._subprotocol: str | None = next(iter(scope.get("subprotocols", ())), None)
        self._stream: DirectStream | None = scope.get("extensions", {}).get("penstock.stream")
        self._gone: Callable[[], None] | None = None
        self._disconnect: Message | None = None
        self.direct = False

    @property
    def client_close(self) -> tuple[int, str] | None:
        """The close code and reason that the client left with, for on-close callbacks; None while it has not left.

        1006 stands for no close frame, 1005 for one without a code. Where the client broke a rule of the protocol it
        is what the server answered.
        """
        message = self._disconnect
        if message is None and self._stream is not None:
            message = self._stream.disconnect  # It may have left while nobody waited for its next message.
        return None if message is None else (message.get("code", 1005), message.get("reason") or "")

    def start_nowait(self, opening: bytes) -> bool:
        """See `Transport.start_nowait`. Accepting takes a wait."""
        return False

    async def start(self, opening: bytes) -> None:
        """See `Transport.start`."""
        await self._send({"type": "websocket.accept", "subprotocol": self._subprotocol, "headers": []})
        self.direct = self._stream is not None and self._stream.direct
        if opening:
            await self.write(opening)

    async def write(self, data: bytes) -> None:
        """See `Transport.write`."""
        if self._stream is None or not self.direct:
            for text in payloads(data):
                if text or self._stream is None:
                    await self._send({"type": "websocket.send", "text": (text or PING_JSON).decode()})
                else:
                    await self._stream.ping()
            return
        while not self._stream.write(data):
            await self._stream.wait_writable()
        await self._stream.wait_writable()

    def write_nowait(self, data: bytes) -> bool:
        """See `Transport.write_nowait`."""
        return self.direct and self._stream is not None and self._stream.write(data)

    def finish_nowait(self, ending: bytes, reason: CloseReason) -> bool:
        """See `Transport.finish_nowait`. So does closing."""
        return False

    async def finish(self, ending: bytes, reason: CloseReason) -> None:
        """See `Transport.finish`."""
        if ending:
            await self.write(ending)
        assert reason.code is not None  # else it is cut
        await self._send({"type": "websocket.close", "code": reason.code, "reason": reason.value})

    def abort(self) -> None:
        """See `Transport.abort`."""
        if self._stream is not None:
            self._stream.abort()

    def on_gone(self, gone: Callable[[], None]) -> bool:
        """See `Transport.on_gone`."""
        self._gone = gone
        if self._stream is not None:
            self._stream.on_gone(self._stream_ended)
        return True

    def _stream_ended(self) -> None:
        left_without_a_word = self.client_close is None or self.client_close[0] == 1006
        if self._gone is not None and (left_without_a_word or not self._hears_out):
            self._gone()

    async def wait_gone(self) -> None:
        """See `Transport.wait_gone`."""
        raise NotImplementedError("`on_gone` is enough")

    def client_left(self, disconnect: Message) -> None:
        """Note that the client has left, as the app was told."""
        self._disconnect = disconnect
        if self._gone is not None:
            self._gone()
