"""One client's socket: who reads it, who writes it, until when, and how it is closed.

Tasks: `run` reads; each request's app has one (`apps.py`); a flusher lives only while the socket is full.

- **Write.** `send` first tries the socket itself, without waiting. What does not fit is kept, and the flusher writes it,
  in order, in the peer's own nursery: so a `send` can be cancelled at any time (its bytes are written all the same),
  nothing is shielded, and the flusher's deadline `write_stall_s` is the only one that a full socket needs.
- **Read.** What is there is taken at once; a cancel scope round each wait has the deadline of the moment: idle, head,
  body, linger. The protocols move `deadline`; there is no timer task. One that is put off is not moved in Trio: the
  reader wakes for the old one, and waits on. `kick` wakes the reader for work that no bytes announce.
- **Close.** `close`, `hang_up` and `abort` are synchronous. Hypercorn closes with awaits in the app's own task, which an
  app that is cancelled by its own disconnect (Quart-Trio) never finishes (`test_quart_trio_connections_close`).
- **Guard.** An exception in one connection is logged and counted, and closes that connection. In Hypercorn 0.18 it ends
  the process (`test_server_hostile.py`).

Hypercorn's `trio.TCPServer` is what this file replaces; nothing of it was left to inherit.
"""

from __future__ import annotations

from math import inf

import trio
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.protocol.h11 import H2ProtocolAssumedError
from hypercorn.typing import ConnectionState

from penstock.errors import ClientGoneError
from penstock.server.apps import AppTasks, Inbox
from penstock.server.direct import DirectStream
from penstock.server.http1 import Http1
from penstock.server.http2 import Http2
from penstock.server.log import indented_traceback, logger, summary
from penstock.server.service import Service
from penstock.server.tcp import TcpStream, address_of

_READ_BYTES = 64 << 10
_TLS_WRITE_BYTES = 64 << 10
_SENDS_PER_CHECKPOINT = 32
"""Writes in a row without a scheduler pass: an app that writes to a fast client must not hold the others."""
_READS_PER_CHECKPOINT = 8
"""Reads in a row without one: neither must a client that always has more to say."""


class Peer:
    """One client's socket, from accept to close."""

    __slots__ = (
        "_backlog",
        "_deadline",
        "_flushed",
        "_flushing",
        "_kicked",
        "_linger",
        "_nursery",
        "_protocol",
        "_reads",
        "_sends",
        "_tcp",
        "_tls",
        "_wait",
        "_wakes_at",
        "address",
        "apps",
        "closing",
        "limits",
        "service",
    )

    def __init__(self, service: Service, tcp: TcpStream, address: tuple[str, int] | None) -> None:
        self.service = service
        self.limits = service.limits
        self.address = address
        self.apps: AppTasks
        self.closing = False
        self._tcp = tcp
        self._tls: trio.SSLStream[TcpStream] | None = None
        self._protocol: Http1 | Http2 | None = None
        self._nursery: trio.Nursery
        self._deadline = inf
        self._wait: trio.CancelScope | None = None
        self._wakes_at = inf
        """Its deadline; to ask the scope, or to move it, costs more."""
        self._kicked = False
        self._backlog = bytearray()
        self._flushing = False
        self._flushed = trio.lowlevel.ParkingLot()
        self._linger = False
        self._reads = self._sends = 0

    @property
    def gone(self) -> bool:
        """Whether the socket is closed, by whichever side."""
        return self._tcp.closed

    @property
    def deadline(self) -> float:
        """When the reader gives up waiting for bytes and asks the protocol what to do; by Trio's clock."""
        return self._deadline

    @deadline.setter
    def deadline(self, deadline: float) -> None:
        self._deadline = deadline
        if self._wait is not None and deadline < self._wakes_at:
            self._wakes_at = self._wait.deadline = deadline

    async def run(self) -> None:
        """Serve this client until it has left, or was sent away, and its apps have ended. Raises only Cancelled."""
        self.service.metrics.gauge("server_connections", 1)
        try:
            async with trio.open_nursery() as self._nursery:
                self.apps = AppTasks(
                    self._nursery,
                    self,
                    going_away=self.service.drain.extension,
                    limits=self.limits,
                    metrics=self.service.metrics,
                )
                try:
                    if not self.gone and await self._start():
                        await self._read()
                except ClientGoneError:
                    pass  # It left while it was answered: its apps are told below, as ever.
                self.hang_up()
                if self._protocol is not None:
                    await self._protocol.handle(Closed())
        except* (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # The client left while something was written to it.
        except* Exception as error:
            self.service.metrics.count("server_connection_errors")
            logger.warning("a connection was closed: %s", summary(error))
            logger.debug("its traceback:\n%s", indented_traceback(error))
        finally:
            self.abort()  # Where it is not closed yet, it failed or was cancelled: no polite end.
            self.service.metrics.gauge("server_connections", -1)
            self.service.drain.discard(self)

    # Reading

    async def _start(self) -> bool:
        http2 = False
        if self.service.tls is not None:
            self._tls = trio.SSLStream(self._tcp, self.service.tls, server_side=True, https_compatible=True)
            with trio.move_on_after(self.limits.head_s) as handshake:
                try:
                    await self._tls.do_handshake()
                except (trio.BrokenResourceError, trio.ClosedResourceError):
                    return False
            if handshake.cancelled_caught:
                self.service.metrics.count("server_timeouts", phase="handshake")
                return False
            http2 = self._tls.selected_alpn_protocol() == "h2"
        await self._speak(Http2 if http2 else Http1)
        return True

    async def _speak(self, protocol: type[Http1 | Http2]) -> None:
        state = ConnectionState(self.service.state)
        self._protocol = protocol(self, state, address_of(self._tcp.local_address()))
        self.deadline = trio.current_time() + self.limits.keep_alive_s
        await self._protocol.initiate()

    async def _read(self) -> None:
        while not self.gone:
            assert self._protocol is not None
            data = None if self._kicked else await self._receive()
            try:
                if data is None:
                    if not await self._wake():
                        return
                elif not data:
                    return
                elif not self.closing:
                    await self._handle(data)
            except trio.TooSlowError:  # The app did not take the client's bytes in the client's time.
                await self._protocol.time_out()

    async def _receive(self) -> bytes | None:
        """Return bytes; empty when the client has left; None at a kick or at the deadline."""
        assert self._protocol is not None
        self._reads += 1
        if self._reads % _READS_PER_CHECKPOINT:
            await trio.lowlevel.checkpoint_if_cancelled()
        else:
            await trio.lowlevel.checkpoint()
        try:
            while not self._kicked and trio.current_time() < self._deadline:
                full = self._protocol.full and not self.closing
                if not full and self._tls is None:
                    data = self._tcp.receive_nowait(_READ_BYTES)
                    if data is not None:
                        return data
                self._wakes_at = self._deadline
                with trio.CancelScope(deadline=self._wakes_at) as self._wait:
                    if full:
                        await trio.sleep_forever()
                    elif self._tls is None:
                        await self._tcp.wait_readable()
                    else:
                        return bytes(await self._tls.receive_some(_READ_BYTES))
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""
        finally:
            self._wait = None
        return None

    async def _wake(self) -> bool:
        """Do what no bytes announce, and return whether to read on."""
        assert self._protocol is not None
        if self._kicked:
            self._kicked = False
            if not self.closing:
                await self._protocol.resume()
        elif self.closing:
            return False  # It has had its time to hear our last words.
        else:
            await self._protocol.time_out()
        return True

    async def _handle(self, data: bytes) -> None:
        assert self._protocol is not None
        try:
            await self._protocol.handle(RawData(data))
        except H2ProtocolAssumedError as error:
            await self._speak(Http2)
            await self._protocol.handle(RawData(error.data))

    def kick(self) -> None:
        """Let the reader call the protocol's `resume`, soon and in the reader's own task."""
        self._kicked = True
        if self._wait is not None:
            self._wait.cancel()

    # Writing

    async def send(self, event: Event) -> None:
        """Do what a Hypercorn protocol asks for: write, close, or note that it is idle.

        Returns when the bytes are in the kernel's hands. Cancellation: they are written all the same.

        Raises:
            ClientGoneError: the socket is closed. It may also have been closed with these bytes undelivered.
        """
        if isinstance(event, RawData):
            await self.write(event.data)
        elif isinstance(event, Closed):
            self.close(linger=True)
        elif isinstance(event, Updated):
            idle_s = self.limits.keep_alive_s if event.idle else inf
            self.deadline = trio.current_time() + idle_s
            if event.idle and self.service.drain.draining.is_set():
                self.close(linger=True)

    async def write(self, data: bytes) -> None:
        """Write bytes; see `send`."""
        if self.closing or self.gone:
            await trio.lowlevel.checkpoint()
            raise ClientGoneError("the connection is closed")
        if self._flushing:
            self._backlog += data
        else:
            self._send(data)
        if self._flushing:
            await self.wait_writable()
            return
        self._sends += 1
        if self._sends >= _SENDS_PER_CHECKPOINT:
            self._sends = 0
            await trio.lowlevel.checkpoint()

    def write_nowait(self, data: bytes) -> bool:
        """Write bytes without waiting. False, and nothing is taken, while earlier ones wait; see `send`."""
        if self._flushing:
            return False
        if self.closing:
            raise ClientGoneError("the connection is closed")
        self._send(data)  # A socket that is closed says so itself.
        return True

    async def wait_writable(self) -> None:
        """Wait until all is in the kernel's hands; see `send`."""
        while self._flushing:
            await self._flushed.park()
        if self.gone:
            raise ClientGoneError("the client has left, or took nothing for too long")

    def direct_stream(self, inbox: Inbox, *, websocket: bool) -> DirectStream | None:
        """Return the present request's `penstock.stream`."""
        service, protocol = self.service, self._protocol
        if isinstance(protocol, Http1):
            messages = service.deflated if protocol.deflates else None
            return DirectStream(inbox, protocol, self, messages if websocket else service.chunks)
        if websocket and isinstance(protocol, Http2):
            tunnel = protocol.tunnel(inbox)
            return DirectStream(inbox, tunnel, tunnel, None)
        return None

    def _send(self, data: bytes) -> None:
        """Hand bytes to the socket, and what it has no room for to the flusher."""
        try:
            sent = self._tcp.send_nowait(data) if self._tls is None else 0
        except OSError as error:
            self.hang_up()
            raise ClientGoneError("the client has left") from error
        if sent == len(data):
            return
        self._backlog += memoryview(data)[sent:]
        self._flushing = True
        self._nursery.start_soon(self._flush)

    async def _flush(self) -> None:
        while self._backlog:
            with trio.move_on_after(self.limits.write_stall_s) as patience:
                try:
                    await self._flush_some()
                except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
                    self.hang_up()
            if patience.cancelled_caught:
                self.service.metrics.count("server_write_stalls")
                self.abort()
        self._stop_flushing()
        if self.closing:
            self._finish_closing()

    def _stop_flushing(self) -> None:
        self._flushing = False
        if self._flushed:
            self._flushed.unpark_all()

    async def _flush_some(self) -> None:
        if self._tls is not None:
            piece = bytes(self._backlog[:_TLS_WRITE_BYTES])
            await self._tls.send_all(piece)
            del self._backlog[: len(piece)]
        else:
            await self._tcp.wait_send_all_might_not_block()
            del self._backlog[: self._tcp.send_nowait(self._backlog)]

    # Closing

    def close(self, *, linger: bool) -> None:
        """Close once all is written; with `linger`, read and drop for `linger_s` what the client still sends."""
        if not self.closing:
            self.closing = True
            self._linger = linger
            if not self._backlog:
                self._finish_closing()

    def _finish_closing(self) -> None:
        if self._linger and not self.gone:
            self._tcp.end()
            self.deadline = trio.current_time() + self.limits.linger_s
            self.kick()
        else:
            self.hang_up()

    def hang_up(self) -> None:
        """Close the socket at once, drop what is not yet written, and tell the apps. Idempotent."""
        self._tcp.close()
        self._let_go()

    def abort(self) -> None:
        """Reset the socket at once, drop what is not delivered, and tell the apps. Idempotent."""
        self._tcp.abort()
        self._let_go()

    def _let_go(self) -> None:
        self._backlog.clear()
        self._stop_flushing()
        self.kick()
        if self._protocol is not None:
            self.apps.end_all()

    def go_away(self) -> None:
        """Begin to end: at once when no request is being answered or sent, else after its answer."""
        if self._protocol is None:
            self.hang_up()
        elif self._protocol.idle:
            self._protocol.go_away()
