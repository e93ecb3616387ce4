"""What one connection sends ends that connection at most: the process lives, and other streams run on."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import h2.config
import h2.connection
import h2.events
import pytest
import trio
from raw import GET, Receive, Scope, Send, TestServer, open_server, respond, start_stream

from penstock.limits import ServerLimits

LIMITS = ServerLimits(linger_s=0.1, drain_s=0.2)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Tick, refuse a body early, accept a WebSocket, or answer."""
    if scope["type"] == "websocket":
        await receive()
        await send({"type": "websocket.accept"})
        while (await receive())["type"] != "websocket.disconnect":
            pass
    elif scope["path"] == "/tick":
        await start_stream(send)
        while True:
            await send({"type": "http.response.body", "body": b"tick", "more_body": True})
            await trio.sleep(0.005)
    elif scope["method"] == "POST":
        await respond(send, b"too large", 413)
    else:
        await respond(send, b"hello")


@asynccontextmanager
async def other_stream_runs(*, http2: bool = False) -> AsyncIterator[TestServer]:
    """Serve with a stream open; after the block it must still run, and new clients be served."""
    async with open_server(app, limits=LIMITS, http2=http2) as server:
        other = await server.connect(b"GET /tick HTTP/1.1\r\nhost: test\r\n\r\n")
        await other.read_until(b"tick")
        yield server
        other.seen.clear()
        with trio.fail_after(1):
            for _ in range(3):
                await other.read_until(b"tick")
        assert (await server.get())[0] == 200


def h2_client() -> h2.connection.H2Connection:
    """An HTTP/2 client that checks nothing of what it sends."""
    config = h2.config.H2Configuration(
        client_side=True, validate_outbound_headers=False, normalize_outbound_headers=False
    )
    connection = h2.connection.H2Connection(config)
    connection.initiate_connection()
    return connection


def h2_headers(*fields: tuple[bytes, bytes]) -> bytes:
    """A connection that asks for one stream, without a body."""
    connection = h2_client()
    connection.send_headers(1, fields, end_stream=True)
    return connection.data_to_send()


def priority_flood() -> bytes:
    """PRIORITY frames for 1,500 streams that do not exist."""
    connection = h2_client()
    frames = connection.data_to_send()
    for stream in range(1, 3001, 2):
        frames += b"\x00\x00\x05\x02\x00" + stream.to_bytes(4, "big") + b"\x00\x00\x00\x00\x10"
    return frames


SCHEME = ((b":scheme", b"http"), (b":authority", b"test"))
H2_ATTACKS = {
    "priority flood": priority_flood(),
    "a PING of one byte": h2_client().data_to_send() + b"\x00\x00\x01\x06\x00\x00\x00\x00\x00x",
}


@pytest.mark.parametrize("attack", H2_ATTACKS)
async def test_http2_attacks(attack: str, caplog: pytest.LogCaptureFixture) -> None:
    async with other_stream_runs(http2=True) as server:
        client = await server.connect(H2_ATTACKS[attack])
        with trio.fail_after(1):
            await client.read_to_end()
    for record in caplog.records:
        assert "\n" not in record.getMessage() or record.levelno == logging.DEBUG


async def test_http2_early_answer_while_data_comes() -> None:
    """Ordinary traffic, not an attack: the connection and its other streams go on."""
    async with other_stream_runs(http2=True) as server:
        connection = h2_client()
        head = [(b":method", b"POST"), (b":path", b"/"), *SCHEME]
        connection.send_headers(1, head)
        client = await server.connect(connection.data_to_send())
        status = await _h2_status(client, connection, 1)
        assert status == b"413"
        for _ in range(3):
            connection.send_data(1, bytes(10_000))
            await client.send(connection.data_to_send())
        connection.send_headers(3, [(b":method", b"GET"), (b":path", b"/"), *SCHEME], end_stream=True)
        await client.send(connection.data_to_send())
        assert await _h2_status(client, connection, 3) == b"200"
        assert server.metrics.get("server_connection_errors") == 0


async def _h2_status(client: object, connection: h2.connection.H2Connection, stream: int) -> bytes:
    with trio.fail_after(1):
        while True:
            data = await client.stream.receive_some(1 << 16)  # type: ignore[attr-defined]
            assert data
            for event in connection.receive_data(data):
                if isinstance(event, h2.events.ResponseReceived) and event.stream_id == stream:
                    assert event.headers is not None
                    return dict(event.headers)[b":status"]


HANDSHAKE = (
    b"GET / HTTP/1.1\r\nhost: test\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
)
REFUSED = {
    "non-ASCII protocol": (400, HANDSHAKE + b"sec-websocket-protocol: caf\xe9\r\n\r\n"),
    "non-ASCII connection": (400, HANDSHAKE + b"connection: \xff\r\n\r\n"),
    "two keys": (400, HANDSHAKE + b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"),
    "short key": (400, HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"c2hvcnQ=") + b"\r\n"),
    "key not base64": (400, HANDSHAKE.replace(b"dGhlIHNhbXBsZSBub25jZQ==", b"!") + b"\r\n"),
    "no key": (400, HANDSHAKE.replace(b"sec-websocket-key", b"x-key") + b"\r\n"),
    "version 8": (400, HANDSHAKE.replace(b"13", b"8") + b"\r\n"),
    "two versions": (400, HANDSHAKE + b"sec-websocket-version: 8\r\n\r\n"),
    "HTTP/1.0": (400, HANDSHAKE.replace(b"HTTP/1.1", b"HTTP/1.0") + b"\r\n"),
    "with a body": (400, HANDSHAKE + b"content-length: 3\r\n\r\nabc"),
    "length and chunked": (
        400,
        b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"
        + GET,
    ),
    "chunked in HTTP/1.0": (400, b"POST / HTTP/1.0\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n"),
    "two lengths": (400, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n"),
    "signed length": (400, b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: +5\r\n\r\n"),
    "unknown coding": (501, b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: gzip\r\n\r\n"),
    "no host": (400, b"GET / HTTP/1.1\r\n\r\n"),
    "two hosts": (400, b"GET / HTTP/1.1\r\nhost: a\r\nhost: b\r\n\r\n"),
    "space before colon": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx : b\r\n\r\n"),
    "NUL in a value": (400, b"GET / HTTP/1.1\r\nhost: a\r\nx: \x00\r\n\r\n"),
    "non-ASCII path": (400, b"GET /\xff HTTP/1.1\r\nhost: a\r\n\r\n"),
    "TLS to a clear port": (400, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"),
    "CONNECT": (501, b"CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n"),
    "HTTP/2 by prior knowledge": (
        505,
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00",
    ),
    "HTTP/3.0": (505, b"GET / HTTP/3.0\r\nhost: a\r\n\r\n"),
}


@pytest.mark.parametrize("case", REFUSED)
async def test_malformed_requests_are_refused_and_closed(case: str) -> None:
    """Nothing behind a request that could not be understood is answered (smuggling)."""
    status, data = REFUSED[case]
    async with other_stream_runs() as server:
        client = await server.connect(data)
        answered, headers, body = await client.read_response()
        assert answered == status
        assert headers["connection"] == "close"
        assert body.endswith(b".\n")
        assert (await client.read_to_end()) == (b"", "eof")
        assert server.metrics.get("server_requests_refused", status=str(status)) == 1
        assert server.metrics.get("server_connection_errors") == 0


@pytest.mark.parametrize("data", [b"1\rx", b"zz\r\n", b"fffffffffffffffffffff\r\n", b"1\r\nxx\r\n"])
async def test_broken_chunks_are_refused(data: bytes) -> None:
    async def read(scope: Scope, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "http.request":
            pass

    async with open_server(read, limits=LIMITS) as server:
        client = await server.connect(
            b"POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n" + data + b"\r\n" * 10
        )
        answer, _ = await client.read_to_end()
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert answer.count(b"HTTP/1.1 ") == 1


async def test_h2c_upgrade_is_ignored() -> None:
    """RFC 9113 section 3.1: the mechanism is obsolete."""
    upgrade = (
        b"upgrade: h2c\r\nconnection: upgrade, http2-settings\r\nhttp2-settings: AAMAAABkAAQAAP__\r\n\r\n"
    )
    for http2 in (False, True):
        async with other_stream_runs(http2=http2) as server:
            client = await server.connect(GET[:-2] + upgrade)
            assert (await client.read_response())[2] == b"hello"
            await client.send(GET)
            assert (await client.read_response())[2] == b"hello"


async def test_http2_attack_in_a_later_request_is_refused() -> None:
    async with other_stream_runs(http2=True) as server:
        client = await server.connect(GET + H2_ATTACKS["a PING of one byte"])
        assert (await client.read_response())[0] == 200
        assert (await client.read_response())[0] == 505


async def test_a_fault_in_a_protocol_is_logged_in_one_line(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guard, whatever the fault: here one that no client knows how to make."""

    async def fail(self: object, data: bytes) -> None:
        await trio.lowlevel.checkpoint()
        raise RuntimeError("broken\r\nforged record \x1b[2J")

    async with other_stream_runs() as server:
        monkeypatch.setattr("penstock.server.http1.Http1._take", fail)
        with caplog.at_level(logging.INFO, "penstock.server"):
            client = await server.connect(GET)
            assert (await client.read_to_end())[0] == b""
        monkeypatch.undo()
        assert server.metrics.get("server_connection_errors") == 1
    (record,) = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert record.getMessage() == r"a connection was closed: RuntimeError: broken\r\nforged record \x1b[2J"
