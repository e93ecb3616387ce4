"""One TCP connection to the server: from `connect` until the request is out, and its closing. TLS where it is asked for."""

from __future__ import annotations

import contextlib
import errno
import functools
import socket
import ssl
import struct
import time
from collections.abc import Callable

from penstock.bench.loop import GONE, READABLE, WRITABLE, Loop
from penstock.bench.plan import Address
from penstock.bench.recorder import Recorder

_SMALL_BUFFER = 4 << 10
"""Receive buffer of a client that stops reading: the server shall notice soon, and not after megabytes."""
_RESET = struct.pack("ii", 1, 0)
_KINDS = {
    errno.ECONNREFUSED: "refused",
    errno.ECONNRESET: "reset",
    errno.EPIPE: "reset",
    errno.ETIMEDOUT: "timed out",
    errno.EADDRNOTAVAIL: "no free port",
    errno.EMFILE: "no free descriptor",
}


class Link:
    """One connection. Whoever inherits says what becomes of what is read (`_asked`) and of the end (`_ended`).

    Args:
        loop: who calls.
        recorder: where times go.
        address: where to connect.
        due_ns: when it was to begin; all times count from then.
        small: whether to take little at a time.
    """

    __slots__ = (
        "_address",
        "_due_ns",
        "_fd",
        "_loop",
        "_out",
        "_read_some",
        "_recorder",
        "_small",
        "_socket",
        "closed",
    )

    def __init__(
        self, loop: Loop, recorder: Recorder, address: Address, due_ns: int, *, small: bool = False
    ) -> None:
        self._loop = loop
        self._recorder = recorder
        self._address = address
        self._due_ns = due_ns
        self._small = small
        self._socket: socket.socket
        self._read_some: Callable[[int], bytes]
        self._fd = -1
        self._out = b""
        self.closed = False

    def _asked(self) -> None:
        """The request is out."""
        raise NotImplementedError

    def _ended(self, error: str) -> None:
        """The connection is closed. `error` is empty where that was meant to be."""
        raise NotImplementedError

    def open(self, request: bytes) -> None:
        """Connect and send a request; not before it is due."""
        self._out = request
        try:
            sock = socket.socket(self._address.family, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        except OSError as error:
            self._end_with(kind_of(error, "no socket"))
            return
        self._socket = sock
        self._fd = sock.fileno()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if self._small:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _SMALL_BUFFER)
        error_number = sock.connect_ex(self._address.sockaddr)
        self._loop.add(self._fd, WRITABLE, self._connected)
        if error_number not in (0, errno.EINPROGRESS):
            self._end_with(kind_of(OSError(error_number, ""), "unreachable"))

    def _connected(self, mask: int) -> None:
        error_number = self._socket.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
        if error_number:
            self._end_with(kind_of(OSError(error_number, ""), "unreachable"))
            return
        self._recorder.times["connect"].append(time.time_ns() - self._due_ns)
        if self._address.tls:
            self._start_tls(mask)
        else:
            self._read_some = self._socket.recv
            self._send(mask)

    def _start_tls(self, mask: int) -> None:
        secure = _tls_context().wrap_socket(
            self._socket, server_hostname=self._address.host, do_handshake_on_connect=False
        )
        self._socket = secure

        def shake_hands(mask: int) -> None:
            try:
                secure.do_handshake()
            except ssl.SSLWantReadError:
                self._loop.change(self._fd, READABLE, shake_hands)
            except ssl.SSLWantWriteError:
                self._loop.change(self._fd, WRITABLE, shake_hands)
            except ssl.SSLCertVerificationError:
                self._end_with("certificate")
            except OSError as error:
                self._end_with(kind_of(error, "TLS"))
            else:
                self._send(mask)

        def read(size: int) -> bytes:
            """Read one record. OpenSSL takes no more from the socket, so epoll knows of all that is left."""
            try:
                return secure.recv(size)
            except ssl.SSLWantReadError:
                raise BlockingIOError from None
            except ssl.SSLEOFError:
                return b""

        self._read_some = read
        shake_hands(mask)

    def _send(self, mask: int) -> None:
        try:
            self._out = self._out[self._socket.send(self._out) :]
        except (BlockingIOError, ssl.SSLWantWriteError, ssl.SSLWantReadError):
            pass
        except OSError as error:
            self._end_with(kind_of(error, "reset"))
            return
        if self._out:
            self._loop.change(self._fd, WRITABLE, self._send)
        else:
            self._asked()

    def leave(self, *, reset: bool = False) -> None:
        """Close from our side, perhaps with a reset. Idempotent."""
        if reset and not self.closed:
            with contextlib.suppress(OSError):
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
        self._end_with("")

    def stop_reading(self, gone: Callable[[], None]) -> None:
        """Read no more, and answer nothing; call `gone` when the other side gives up."""

        def look(mask: int) -> None:
            if mask & GONE:
                gone()

        self._loop.change(self._fd, GONE, look)

    def _end_with(self, error: str) -> None:
        if self.closed:
            return
        self.closed = True
        if self._fd >= 0:
            self._loop.remove(self._fd)
            self._socket.close()
        self._ended(error)


def kind_of(error: OSError, otherwise: str) -> str:
    """Return the name by which an error is counted."""
    return _KINDS.get(error.errno or 0, otherwise)


@functools.cache
def _tls_context() -> ssl.SSLContext:
    """Return this process's TLS context: to load the authorities takes a tenth of a second."""
    return ssl.create_default_context()
