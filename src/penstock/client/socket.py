"""One WebSocket to a server: connects, carries text both ways, notices silence, closes.

run ── our nursery
    ├── the block   takes every message as it comes, so that pings are answered
    ├── writer      the only task that sends messages: none is ever cut in the middle by somebody's cancellation
    ├── listener    pings a server that says nothing, and gives it up
    └── trio-websocket's reader, in its shelter; see `penstock.websocket`
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import httpx2
import trio

from penstock.errors import LocalProtocolError
from penstock.http import tls_context
from penstock.limits import ClientLimits
from penstock.websocket import Closed, WebSocket, connect

_PINGS_PER_SILENCE = 3
"""So often a quiet server is asked before it is given up, as over SSE it would have sent so many comments."""
_FRAME_CHARS = 4 << 10
"""What may be round an event in its frame."""


class End(NamedTuple):
    """How a socket ended: an error, or the server's close code and words."""

    error: Exception | None
    code: int = 1006
    reason: str = ""


class Socket:
    """A WebSocket. It calls `hear` with each message, and `ended` once; both at once and without a checkpoint."""

    def __init__(self, hear: Callable[[str | bytes], None], ended: Callable[[End], None]) -> None:
        self._hear = hear
        self._ended = ended
        # Each caller waits for an answer before it says more: what waits here is as much as there are callers.
        self._outgoing, self._to_write = trio.open_memory_channel[str](math.inf)
        self._websocket: WebSocket | None = None
        self._gone = trio.Event()
        self._closing = False
        self._cause: httpx2.TransportError | None = None
        """Why we have given the server up."""

    @property
    def heard_at(self) -> float:
        """When bytes came last, by Trio's clock."""
        return -math.inf if self._websocket is None else self._websocket.heard_at

    def say(self, text: str) -> None:
        """Have a message sent; what is said after `close` is not."""
        try:
            self._outgoing.send_nowait(text)
        except (trio.ClosedResourceError, trio.BrokenResourceError):
            pass  # `ended` tells, or has told, what becomes of it.

    def close(self) -> None:
        """Begin to close, after what was said."""
        self._outgoing.close()

    async def aclose(self) -> None:
        """Close, and wait for the end: a second at most, after what was said."""
        self.close()
        await self._gone.wait()

    async def run(  # noqa: ASYNC114  # the linter's list has bare names, and this one is everybody's
        self,
        url: httpx2.URL,
        headers: Sequence[tuple[bytes, bytes]],
        limits: ClientLimits,
        *,
        task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
    ) -> None:
        """Connect, say so with `started`, and carry messages to the socket's end. Raises nothing after that.

        Args:
            url: of the socket, with http or https.
            headers: of the handshake.
            limits: the deadlines.

        Raises:
            httpx2.TransportError: no connection, or no answer.
            UpgradeRefusedError: another status than 101.
            LocalProtocolError: a header can't be sent.

        Cancellation: the socket is closed at once.
        """
        end = End(httpx2.ReadError("cancelled"))
        failure: Exception | None = None
        stream = await _connect(url, limits)
        try:
            async with trio.open_nursery() as nursery:
                try:
                    websocket = self._websocket = await _upgrade(nursery, stream, url, headers, limits)
                except Exception as exc:
                    failure = exc
                else:
                    task_status.started()
                    nursery.start_soon(self._write, websocket, nursery, limits)
                    nursery.start_soon(self._listen, websocket, nursery, limits)
                    while not isinstance(message := await websocket.receive(), Closed):
                        self._hear(message)
                    end = End(None, message.code, message.reason)
                if not self._closing:
                    nursery.cancel_scope.cancel("the socket has ended")
        finally:
            self._outgoing.close()
            self._to_write.close()
            self._ended(end if self._cause is None else End(self._cause))
            self._gone.set()
            await trio.aclose_forcefully(stream)
        if failure is not None:
            raise failure

    async def _write(self, websocket: WebSocket, nursery: trio.Nursery, limits: ClientLimits) -> None:
        with trio.CancelScope() as writing:
            try:
                async for text in self._to_write:
                    writing.deadline = trio.current_time() + limits.silence_s
                    await websocket.send(text)
                    writing.deadline = math.inf
            except trio.BrokenResourceError:
                return  # The reader says how it ended.
        if writing.cancelled_caught:
            self._cause = httpx2.WriteTimeout("nothing was taken")
        else:
            self._closing = True
            await websocket.aclose()
        nursery.cancel_scope.cancel("the socket is closed")

    async def _listen(self, websocket: WebSocket, nursery: trio.Nursery, limits: ClientLimits) -> None:
        pinged_at = -math.inf
        while True:
            heard_at = max(websocket.heard_at, pinged_at)
            await trio.sleep_until(heard_at + limits.silence_s / _PINGS_PER_SILENCE)
            now = trio.current_time()
            if now >= websocket.heard_at + limits.silence_s:
                self._cause = httpx2.ReadTimeout("nothing was heard")
                nursery.cancel_scope.cancel("the server is silent")
            elif websocket.heard_at <= heard_at:
                pinged_at = now
                nursery.start_soon(_ping, websocket)


async def _ping(websocket: WebSocket) -> None:
    try:
        await websocket.ping()
    except trio.BrokenResourceError:
        pass  # The reader says how it ended.


async def _connect(url: httpx2.URL, limits: ClientLimits) -> trio.abc.Stream:
    port = url.port or (443 if url.scheme == "https" else 80)
    try:
        with trio.fail_after(limits.connect_s):
            stream = await trio.open_tcp_stream(url.host, port)
        if url.scheme != "https":
            return stream
        encrypted = trio.SSLStream(
            stream, tls_context(url.scheme), server_hostname=url.host, https_compatible=True
        )
        try:
            with trio.fail_after(limits.connect_s):
                await encrypted.do_handshake()
        except BaseException:
            await trio.aclose_forcefully(stream)
            raise
    except trio.TooSlowError as exc:
        raise httpx2.ConnectTimeout("no connection in time") from exc
    except (OSError, trio.BrokenResourceError) as exc:
        raise httpx2.ConnectError("no connection") from exc
    return encrypted


async def _upgrade(
    nursery: trio.Nursery,
    stream: trio.abc.Stream,
    url: httpx2.URL,
    headers: Sequence[tuple[bytes, bytes]],
    limits: ClientLimits,
) -> WebSocket:
    try:
        with trio.fail_after(limits.silence_s):
            return await connect(
                nursery,
                stream,
                host=url.netloc.decode("ascii"),
                target=url.raw_path.decode("ascii"),
                headers=headers,
                message_chars=limits.event_bytes + _FRAME_CHARS,
            )
    except trio.TooSlowError as exc:
        raise httpx2.ReadTimeout("the handshake was not answered") from exc
    except trio.BrokenResourceError as exc:
        raise httpx2.ReadError("the handshake was cut") from exc
    except ValueError as exc:
        raise LocalProtocolError("a header of the client has a value that can't be sent") from exc
