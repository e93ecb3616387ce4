"""Sockets: listening ones, and the stream over one accepted socket.

This file knows the operating system and nothing of HTTP. Trio's own `SocketStream` is not used, because each of its
writes costs two passes of the scheduler: here `send_nowait` is one system call, and only a full socket waits.

Options are set on the listening socket; Linux and macOS hand them down to every accepted one, at no system call each.
"""

from __future__ import annotations

import errno
import socket
import struct

import trio

from penstock.limits import ServerLimits

_RESET_ON_CLOSE = struct.pack("ii", 1, 0)

_NOTSENT_LOWAT_BYTES = 16 << 10
"""What the kernel may hold unsent for one client: a slow client then holds kilobytes, not megabytes, and hears the
newest text soon after the old. Trio uses the same number."""


class TcpStream(trio.abc.Stream):
    """One accepted socket as a byte stream, with a synchronous write, close and reset.

    `close` and `abort` may be called at any time, from any task: whoever waits for the socket gets
    `trio.ClosedResourceError`. The file descriptor is never used after them, so that its number may be used again.
    """

    __slots__ = ("_socket",)

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self._socket = sock

    @property
    def closed(self) -> bool:
        """Whether `close` or `abort` was called."""
        return self._socket.fileno() == -1

    def local_address(self) -> object:
        """Return the address that the client connected to."""
        return self._socket.getsockname()

    def send_nowait(self, data: bytes | bytearray | memoryview) -> int:
        """Write what the socket takes now, and return how many bytes that were.

        Raises:
            OSError: the peer is gone, or this stream is closed.
        """
        try:
            return self._socket.send(data)
        except BlockingIOError:
            return 0

    def receive_nowait(self, max_bytes: int) -> bytes | None:
        """Return bytes; empty at the peer's end of stream; None while there is nothing.

        Raises:
            trio.BrokenResourceError: the peer is gone.
            trio.ClosedResourceError: this stream is closed.
        """
        if self.closed:
            raise trio.ClosedResourceError("this side closed the socket")
        try:
            return self._socket.recv(max_bytes)
        except BlockingIOError:
            return None
        except OSError as error:
            raise trio.BrokenResourceError(f"the peer is gone: {error}") from error

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """Wait for bytes; empty at the peer's end of stream. Cancelling it loses nothing."""
        # Two checkpoints: a client that always has more to say has its deadline too,
        await trio.lowlevel.checkpoint_if_cancelled()
        while (data := self.receive_nowait(max_bytes or 1 << 16)) is None:
            await self.wait_readable()
        # … and must not keep the other tasks from running.
        await trio.lowlevel.cancel_shielded_checkpoint()
        return data

    async def wait_readable(self) -> None:
        """Wait until there are bytes, the peer's end of stream, or an error."""
        await trio.lowlevel.wait_readable(self._socket)

    async def wait_send_all_might_not_block(self) -> None:
        """Wait until the socket takes bytes, or is broken."""
        if self.closed:
            raise trio.ClosedResourceError("this side closed the socket")
        await trio.lowlevel.wait_writable(self._socket)

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Write everything. Cancelling it leaves an unknown part written."""
        rest = memoryview(data)
        while rest:
            try:
                sent = self.send_nowait(rest)
            except OSError as error:
                raise trio.BrokenResourceError(f"the peer is gone: {error}") from error
            rest = rest[sent:]
            if rest:
                await self.wait_send_all_might_not_block()
        await trio.lowlevel.checkpoint()

    def end(self) -> None:
        """Tell the peer that nothing more comes (FIN), and go on reading."""
        try:
            self._socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass  # It left first; reading will say so.

    def close(self) -> None:
        """Close at once. What was written is still delivered, unless bytes of the peer wait unread: then it is reset."""
        if not self.closed:
            trio.lowlevel.notify_closing(self._socket)
            self._socket.close()

    def abort(self) -> None:
        """Reset at once (RST): what was written and not delivered is lost, and the peer sees an error."""
        if not self.closed:
            try:
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # Some systems refuse it once the peer has reset the socket, which is what it is for.
            self.close()

    async def aclose(self) -> None:
        """Close at once, then let others run."""
        self.close()
        await trio.lowlevel.checkpoint()


async def open_listeners(
    host: str, port: int, *, shared: bool = False, limits: ServerLimits
) -> list[socket.socket]:
    """Bind and listen on every address of `host`; with port 0, on one port that the system picks.

    Args:
        host: a name or address.
        port: 0, or one.
        shared: whether the addresses may be bound again, with this too; the system deals connections out to all.
        limits: what accepted sockets shall have.

    Raises:
        OSError: no such host, or the port is in use. What was bound until then is closed.
    """
    found = await trio.socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    listeners: list[socket.socket] = []
    try:
        for family, kind, protocol, _, address in dict.fromkeys(found):
            listener = socket.socket(family, kind, protocol)
            listeners.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if shared:
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            if family == socket.AF_INET6:
                # Its own IPv4 address is in `found` as well, or was not asked for.
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind((address[0], port, *address[2:]))
            port = listener.getsockname()[1]
            prepare_listener(listener, limits=limits)
    except BaseException:
        for listener in listeners:
            listener.close()
        raise
    return listeners


def prepare_listener(listener: socket.socket, *, limits: ServerLimits) -> None:
    """Let a bound socket listen, without blocking, with the options that its accepted sockets shall have."""
    listener.setblocking(False)
    if listener.family in {socket.AF_INET, socket.AF_INET6}:
        stall_s = max(1, round(limits.write_stall_s))
        listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in (
            # A peer that vanished without a word: unanswered data, a window that stays shut, unanswered probes.
            ("TCP_USER_TIMEOUT", round(limits.write_stall_s * 1000)),
            ("TCP_KEEPIDLE", stall_s),
            ("TCP_KEEPINTVL", max(1, stall_s // 3)),
            ("TCP_KEEPCNT", 3),
            ("TCP_NOTSENT_LOWAT", _NOTSENT_LOWAT_BYTES),
        ):
            if option := getattr(socket, name, None):
                listener.setsockopt(socket.IPPROTO_TCP, option, value)
    listener.listen(limits.backlog)


def url_of(listener: socket.socket, scheme: str) -> str:
    """Return what a client on this machine puts into its address bar."""
    address = listener.getsockname()
    if listener.family == socket.AF_INET6:
        return f"{scheme}://[{address[0]}]:{address[1]}"
    if listener.family == socket.AF_INET:
        return f"{scheme}://{address[0]}:{address[1]}"
    return f"unix:{address}"


def address_of(address: object) -> tuple[str, int] | None:
    """Return a socket address's host and port; None for one that has none, as a Unix socket's."""
    return address[:2] if isinstance(address, tuple) else None


_NO_ROOM = {errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS}
_NOT_A_LISTENER = {errno.EBADF, errno.EINVAL, errno.ENOTSOCK, errno.EOPNOTSUPP}


def accept_nowait(listener: socket.socket) -> tuple[socket.socket, object] | None:
    """Take one waiting connection; None when there is none, or when it failed before we took it.

    Raises:
        OSError: `no_room(error)`: out of descriptors or memory, so the caller waits; else the listener is no listener.
    """
    try:
        return listener.accept()
    except OSError as error:
        # accept(2): errors of the new connection itself (it was reset, a firewall, no route) count as "try again".
        if error.errno in _NO_ROOM | _NOT_A_LISTENER:
            raise
        return None


def no_room(error: OSError) -> bool:
    """Tell whether `accept` failed for want of descriptors or memory, which passes."""
    return error.errno in _NO_ROOM
