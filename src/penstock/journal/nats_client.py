"""One connection to a NATS server, kept by nats-py: its handshake, TLS, pings, and the reading of its protocol.

nats-py is for asyncio, and lives in a guest loop (trio-asyncio). Crossing over is what costs, some hops of two schedulers for
each call, so nothing of ours waits on the other side: what is to be said is written to the transport at once, by whoever says
it, and what comes is handed on by the task that reads. For that `NatsClient` puts its own method in the place of the one that
nats-py would sort messages into queues and tasks with, which may change in a minor version.
"""

from __future__ import annotations

import asyncio
import logging
import math
import os
import ssl
from collections.abc import Callable, Mapping
from typing import Any

from nats.aio.client import Client
from nats.errors import Error, NoServersError
from nats.protocol import command

from penstock.journal.nats_address import NatsAddress
from penstock.limits import NatsLimits

logger = logging.getLogger("penstock.journal")

_HEAD = b"NATS/1.0"


class NatsClient(Client):
    """A connection.

    Args:
        take: called with the number of a subscription, the subject, the payload and the headers of what comes.
        closed: called when the connection is lost.
    """

    def __init__(
        self, take: Callable[[int, str, bytes, Mapping[str, str]], object], closed: Callable[[], object]
    ) -> None:
        super().__init__()
        self._take = take
        self._tell_closed = closed
        self._failure = ""
        self._secret = False

    @property
    def failure(self) -> str:
        """Why there is no connection, as a person would say it."""
        return self._failure or "the connection was lost"

    async def open(
        self, server: str, address: NatsAddress, tls: ssl.SSLContext | None, limits: NatsLimits
    ) -> bool:
        """Connect to a server, in `connect_s`, and say whether that was possible."""

        async def note(error: Exception) -> None:
            if not isinstance(error, NoServersError):
                self._failure = _text(error)

        async def closed() -> None:
            self._tell_closed()

        self._secret = address.tls
        try:
            await asyncio.wait_for(
                self.connect(
                    f"nats://{server}",
                    name="penstock",
                    user=address.username,
                    password=address.password,
                    token=address.token,
                    tls=tls,
                    connect_timeout=math.ceil(limits.connect_s),
                    # The library's own way back would keep what it had yet to send, and send it when nobody waits.
                    allow_reconnect=False,
                    # It tries twice, with this between, and gives up.
                    max_reconnect_attempts=1,
                    reconnect_time_wait=0,
                    ping_interval=math.ceil(limits.ping_s),
                    error_cb=note,
                    closed_cb=closed,
                ),
                limits.connect_s,
            )
        except (OSError, Error, TimeoutError) as exc:
            await note(exc)
            return False
        return True

    async def _process_info(self, info: dict[str, Any], initial_connection: bool = False) -> None:
        # The library sends the password in clear to whoever doesn't ask for TLS, a man in the middle for example.
        if self._secret and initial_connection and not info.get("tls_required"):
            if not info.get("tls_available"):
                raise Error("it does not offer TLS")
            info["tls_required"] = True
        await super()._process_info(info, initial_connection)

    async def end(self, close_s: float) -> None:
        """Close it, in that time."""
        try:
            await asyncio.wait_for(self.close(), close_s)
        except (OSError, Error, TimeoutError):
            pass

    @property
    def unsent(self) -> int:
        """Bytes that were said, and that the system has yet to take."""
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        return 0 if writer is None else writer.transport.get_write_buffer_size()

    def say(self, data: bytes) -> None:
        """Write commands, and don't wait."""
        if self._transport:
            self._transport.write(data)

    async def _process_msg(
        self, sid: int, subject: bytes, reply: bytes, data: bytes, headers: bytes | None
    ) -> None:
        try:
            self._take(sid, subject.decode(), data, _read_headers(headers) if headers else _NO_HEADERS)
        except Exception:
            logger.exception("what NATS sent could not be taken in")


def publication(
    subject: str, payload: bytes, reply: str = "", headers: Mapping[str, str] | None = None
) -> bytes:
    """Write the command that publishes something."""
    if headers is None:
        written: bytes = command.pub_cmd(subject, reply, payload)
    else:
        head = "".join([f"{name}: {value}\r\n" for name, value in headers.items()])
        written = command.hpub_cmd(subject, reply, b"%b\r\n%b\r\n" % (_HEAD, head.encode()), payload)
    return written


def subscription(subject: str, sid: int) -> bytes:
    """Write the command that subscribes to a subject."""
    written: bytes = command.sub_cmd(subject, "", sid)
    return written


def end_of_subscription(sid: int) -> bytes:
    """Write the command that ends a subscription."""
    written: bytes = command.unsub_cmd(sid, 0)
    return written


_NO_HEADERS: Mapping[str, str] = {}


def _read_headers(raw: bytes) -> dict[str, str]:
    """Read headers; a status is `Status`, and its words `Description`."""
    first, *lines = raw.decode("utf-8", "replace").split("\r\n")
    headers = {}
    for line in lines:
        name, colon, value = line.partition(":")
        if colon:
            headers[name] = value.strip()
    status, _, description = first[len(_HEAD) :].strip().partition(" ")
    if status:
        headers["Status"] = status
        headers["Description"] = description
    return headers


def _text(error: Exception) -> str:
    if isinstance(error, OSError) and error.errno and not isinstance(error, ssl.SSLError):
        return os.strerror(error.errno)
    return str(error) or type(error).__name__
