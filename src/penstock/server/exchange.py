"""One request over HTTP/1 and what its app answers: the ASGI side.

`send` is the callable that the app is given: nothing wraps it, and it waits only for the socket. The chunks of a body may
pass it by (`direct.py`).
"""

from __future__ import annotations

from typing import Protocol

import trio

from penstock.errors import ClientGoneError
from penstock.server.apps import Inbox, Message
from penstock.server.direct import Headers
from penstock.server.request import Request
from penstock.server.response import Response


class Socket(Protocol):
    """One client's socket, as far as this file needs to know it."""

    async def write(self, data: bytes) -> None:
        """Write bytes, in order; they are written even if this is cancelled."""

    def write_nowait(self, data: bytes) -> bool:
        """Write without waiting; False, and nothing is taken, while earlier bytes wait."""


class Client(Protocol):
    """The protocol of one client, as far as this file needs to know it."""

    direct: bool
    """Whether a chunked body is under way that may be written directly."""

    @property
    def socket(self) -> Socket:
        """Where the answer goes."""

    @property
    def clear(self) -> bool:
        """Whether there is no TLS."""

    @property
    def closes(self) -> bool:
        """Whether no further request is wanted."""

    def finish(self, exchange: Exchange) -> None:
        """Go on to the next request, or close. Synchronous."""


class Exchange:
    """A request whose app runs."""

    __slots__ = ("_client", "_past_send", "inbox", "request", "response")

    def __init__(self, client: Client, request: Request, inbox: Inbox) -> None:
        self.request = request
        self.inbox = inbox
        """What the app is told. Once it has ended, nothing more is said to the client."""
        self.response: Response | None = None
        """What is said to the client, once anything is."""
        self._client = client
        self._past_send = False
        """Whether it was started without `send`, and so may end."""

    async def send(self, message: Message) -> None:
        """Take what the app says. Cancellation: what was taken is sent all the same.

        Raises:
            ClientGoneError: the client has left, or has the whole response.
            ValueError: a header that can't be sent, or a body of another length than it says.
            RuntimeError: this can't be said now.
        """
        if self.inbox.ended:
            # The checkpoint is for an app that swallows the error and tries again, for ever.
            await trio.lowlevel.checkpoint()
            self._check()
        kind, response = message["type"], self.response
        if kind == "http.response.start" and response is None:
            await self._begin(int(message["status"]), message.get("headers", ()))
        elif kind == "http.response.body" and response is not None and not response.ended:
            data = response.body(bytes(message.get("body", b"")))
            last = not message.get("more_body", False)
            if last:
                data += response.end()
                self._client.direct = False
            if data:
                await self._client.socket.write(data)
            if last:
                self._client.finish(self)
        else:
            raise RuntimeError(f"an app can't say {kind!r} now")

    def start_nowait(self, send: object, status: int, headers: Headers, data: bytes) -> bool:
        """See `DirectStream.start`."""
        self._check()
        if send != self.send or self.response is not None or not self._client.clear:
            return False
        response = Response(self.request)
        head = response.head(status, headers, closes=self._client.closes)
        if not response.chunked or not self._client.socket.write_nowait(head + response.body(data)):
            return False
        self.response = response
        self._client.direct = self._past_send = True
        return True

    def end_nowait(self, data: bytes) -> bool:
        """See `DirectStream.end`."""
        self._check()
        response = self.response
        if response is None or not self._past_send:
            return False
        if not self._client.socket.write_nowait(response.body(data) + response.end()):
            response.ended = False
            return False
        self._client.finish(self)
        return True

    def _check(self) -> None:
        if self.inbox.ended:
            raise ClientGoneError("the client has left, or has the whole response")

    async def end(self) -> None:
        """Answer for an app that has ended before its answer has."""
        if self.inbox.ended:
            return
        response = self.response
        if response is None:
            response = await self._begin(500, [(b"content-length", b"0")], closes=True)
            response.end()
        # An app that gave up its last write would let a client ask on without taking the answers.
        response.closes = True
        self._client.finish(self)

    async def _begin(self, status: int, headers: Headers, *, closes: bool = False) -> Response:
        response = Response(self.request)
        head = response.head(status, headers, closes=closes or self._client.closes)
        self.response = response
        self._client.direct = response.chunked and self._client.clear
        await self._client.socket.write(head)
        return response
