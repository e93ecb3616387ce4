"""What no honest client sends, byte by byte: the right code, and nothing else happens to anybody."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio
from chat_socket import ChatSocket, chat_server, connect, handshake, user
from raw import TestServer, parse_head, wait_for

from penstock import Turn, chat_app
from penstock.limits import ServerLimits

LIMITS = ServerLimits(linger_s=0.2, drain_s=0.3, abort_s=0.1)
CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10
MEGABYTE = 1 << 20


def raw_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    fin: bool = True,
    rsv: int = 0,
    masked: bool = True,
    length: bytes | None = None,
) -> bytes:
    """Put any frame together; `length` is what it says of its length, first byte and all."""
    size = len(payload)
    if length is None:
        if size < 126:
            length = bytes([size])
        elif size < 65_536:
            length = b"\x7e" + size.to_bytes(2, "big")
        else:
            length = b"\x7f" + size.to_bytes(8, "big")
    first = (0x80 if fin else 0) | rsv << 4 | opcode
    return bytes([first, length[0] | (0x80 if masked else 0)]) + length[1:] + bytes(4) * masked + payload


def text(**fields: Any) -> bytes:
    """A text message of JSON."""
    return raw_frame(TEXT, json.dumps(fields).encode())


def closing(code: int, reason: bytes = b"") -> bytes:
    """A close frame."""
    return raw_frame(CLOSE, code.to_bytes(2, "big") + reason)


def deep(count: int) -> bytes:
    """A frame with nested arrays."""
    return b'{"type":"abort","requestId":"r","x":' + b"[" * count + b"]" * count + b"}"


ABORT = b'{"type":"abort","requestId":"r"}'
E_ACUTE = "é".encode()

BROKEN: dict[str, tuple[bytes, int]] = {
    "unmasked": (raw_frame(TEXT, b"hi", masked=False), 1002),
    "unmasked close": (raw_frame(CLOSE, b"\x03\xe8", masked=False), 1002),
    "reserved bit 1": (raw_frame(TEXT, ABORT, rsv=4), 1002),
    "reserved bit 2": (raw_frame(TEXT, ABORT, rsv=2), 1002),
    "reserved bit 3": (raw_frame(TEXT, ABORT, rsv=1), 1002),
    "reserved bit on a ping": (raw_frame(PING, rsv=4), 1002),
    **{f"opcode {opcode}": (raw_frame(opcode), 1002) for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)},
    "fragmented ping": (raw_frame(PING, fin=False), 1002),
    "fragmented pong": (raw_frame(PONG, fin=False), 1002),
    "fragmented close": (raw_frame(CLOSE, b"\x03\xe8", fin=False), 1002),
    "long ping": (raw_frame(PING, b"x" * 126), 1002),
    "long close": (raw_frame(CLOSE, b"\x03\xe8" + b"x" * 130), 1002),
    "continuation of nothing": (raw_frame(CONTINUATION, ABORT), 1002),
    "continuation after the end": (raw_frame(TEXT, ABORT) + raw_frame(CONTINUATION, b"x"), 1002),
    "text inside a text": (raw_frame(TEXT, b"{", fin=False) + raw_frame(TEXT, b"}"), 1002),
    "binary inside a text": (raw_frame(TEXT, b"{", fin=False) + raw_frame(BINARY, b"}"), 1002),
    "16 bits for a short length": (raw_frame(TEXT, b"hello", length=b"\x7e\x00\x05"), 1002),
    "64 bits for a short length": (raw_frame(TEXT, b"hello", length=b"\x7f" + bytes(7) + b"\x05"), 1002),
    "64 bits for a middle length": (
        raw_frame(TEXT, b"x" * 300, length=b"\x7f" + bytes(6) + b"\x01\x2c"),
        1002,
    ),
    "a length with the top bit": (raw_frame(BINARY, length=b"\x7f" + b"\xff" * 8), 1002),
    "a huge length that comes true": (
        raw_frame(TEXT, b"x" * (MEGABYTE + 1), length=b"\x7f\x40" + bytes(7)),
        1009,
    ),
    "a message too large": (raw_frame(TEXT, b"x" * (MEGABYTE + 1)), 1009),
    "a binary message too large": (raw_frame(BINARY, b"x" * (MEGABYTE + 1)), 1009),
    "characters that are few and bytes that are many": (raw_frame(TEXT, "€".encode() * 400_000), 1009),
    "fragments too large together": (
        raw_frame(TEXT, b"x" * 300_000, fin=False) + raw_frame(CONTINUATION, b"x" * 300_000, fin=False) * 3,
        1009,
    ),
    "not UTF-8": (raw_frame(TEXT, b"\xff\xfe"), 1007),
    "overlong UTF-8": (raw_frame(TEXT, b"\xc0\x80"), 1007),
    "a surrogate in UTF-8": (raw_frame(TEXT, b"\xed\xa0\x80"), 1007),
    "half a character at the end": (raw_frame(TEXT, E_ACUTE[:1]), 1007),
    "half a character at the end of fragments": (
        raw_frame(TEXT, b"{", fin=False) + raw_frame(CONTINUATION, E_ACUTE[:1]),
        1007,
    ),
    "a character broken between fragments": (
        raw_frame(TEXT, E_ACUTE[:1], fin=False) + raw_frame(CONTINUATION, b"x"),
        1007,
    ),
    "close with one byte": (raw_frame(CLOSE, b"\x03"), 1002),
    **{
        f"close with code {code}": (closing(code), 1002)
        for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 2999, 5000, 65_535)
    },
    "close with a reason that is not UTF-8": (closing(1000, b"\xff"), 1007),
    "ping flood": (raw_frame(PING, b"x") * 2_000, 1008),
    "pong flood": (raw_frame(PONG) * 2_000, 1008),
    "message flood": (raw_frame(TEXT, ABORT) * 2_000, 1008),
    "flood of empty fragments": (
        raw_frame(TEXT, fin=False) + raw_frame(CONTINUATION, fin=False) * 2_000,
        1008,
    ),
    "fragments of one byte": (
        raw_frame(TEXT, fin=False) + raw_frame(CONTINUATION, b"x", fin=False) * 2_000,
        1008,
    ),
    "not JSON": (raw_frame(TEXT, b"hello"), 1008),
    "binary and not JSON": (raw_frame(BINARY, os.urandom(100)), 1008),
    "an empty text": (raw_frame(TEXT), 1008),
    "an empty message": (raw_frame(BINARY), 1008),
    "a NUL": (raw_frame(TEXT, b"\0"), 1008),
    "an array": (raw_frame(TEXT, b"[1]"), 1008),
    "JSON too deep": (raw_frame(TEXT, deep(100)), 1008),
    "JSON very deep": (raw_frame(TEXT, deep(400_000)), 1008),
    "JSON of too many containers": (raw_frame(TEXT, b"[" + b"[]," * 200_000 + b"[]]"), 1008),
    "a number of many digits": (
        raw_frame(TEXT, b'{"type":"abort","requestId":"r","x":%b}' % (b"9" * 100_000)),
        1008,
    ),
    "a number beyond any double": (raw_frame(TEXT, b'{"type":"abort","requestId":"r","x":1e999}'), 1008),
    "the same key twice": (raw_frame(TEXT, b'{"type":"abort","requestId":"r","requestId":"s"}'), 1008),
    "a lone surrogate": (raw_frame(TEXT, b'{"type":"abort","requestId":"\\ud800"}'), 1008),
    "UTF-16": (raw_frame(BINARY, ABORT.decode().encode("utf-16")), 1008),
    "a type that is no string": (text(type=[], requestId="r"), 1008),
    "a request id that is no string": (text(type="abort", requestId={}), 1008),
    "a request id of a megabyte": (text(type="abort", requestId="r" * 1_000_000), 1008),
    "no request id": (text(type="send", id="c", messages=[]), 1008),
}
"""Bytes after the handshake, and the close code that they are answered with."""

PEACEFUL: dict[str, tuple[bytes, int]] = {
    "close": (closing(1000), 1000),
    "close without a code": (raw_frame(CLOSE), 1005),
    "close with a code of an app's": (closing(4999, "é".encode()), 4999),
    "close and more": (closing(3000) + raw_frame(TEXT, ABORT) * 100 + b"\xff" * 100, 3000),
    "ping in a message": (
        raw_frame(TEXT, ABORT[:5], fin=False) + raw_frame(PING) + raw_frame(CONTINUATION, ABORT[5:]) + closing(1000),
        1000,
    ),
    "a character over two fragments": (
        raw_frame(TEXT, b'{"type":"abort","requestId":"' + E_ACUTE[:1], fin=False)
        + raw_frame(CONTINUATION, E_ACUTE[1:] + b'"}')
        + closing(1000),
        1000,
    ),
    "empty fragments": (
        raw_frame(TEXT, fin=False) + raw_frame(CONTINUATION, fin=False) * 5 + raw_frame(CONTINUATION, ABORT) + closing(1000),
        1000,
    ),
    "binary JSON": (raw_frame(BINARY, ABORT) + closing(1000), 1000),
    "a large message in fragments of 4 KiB": (
        raw_frame(TEXT, ABORT, fin=False)
        + raw_frame(CONTINUATION, b" " * 4_096, fin=False) * 250
        + raw_frame(CONTINUATION)
        + closing(1000),
        1000,
    ),
}  # fmt: skip
"""The same, of what is unusual and allowed."""

REFUSED: dict[str, tuple[bytes, int]] = {
    "no key": (handshake(sec_websocket_key=""), 400),
    "a short key": (handshake(sec_websocket_key="c2hvcnQ="), 400),
    "a key that is no base64": (handshake(sec_websocket_key="!" * 24), 400),
    "two keys": (handshake(x="y\r\nsec-websocket-key: dGhlIHNhbXBsZSBub25jZQ=="), 400),
    "no version": (handshake(sec_websocket_version=""), 400),
    "an old version": (handshake(sec_websocket_version="8"), 400),
    "two versions": (handshake(x="y\r\nsec-websocket-version: 13"), 400),
    "a protocol that is not ASCII": (handshake(sec_websocket_protocol="chät"), 400),
    "a protocol that is no token": (handshake(sec_websocket_protocol="a b"), 400),
    "an empty protocol": (handshake(sec_websocket_protocol=","), 400),
    "a length": (handshake(content_length="5") + b"hello", 400),
    "a chunked body": (handshake(transfer_encoding="chunked") + b"0\r\n\r\n", 400),
    "HTTP/1.0": (handshake().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    "no host": (handshake(host=""), 400),
    "a folded header": (handshake(x="y\r\n\tz").replace(b"\r\n\tz", b"\r\n\x00z"), 400),
    "a head too large": (handshake(cookie="x" * 20_000), 431),
    "POST": (handshake().replace(b"GET", b"POST", 1), 405),
    "no upgrade": (handshake(upgrade=""), 404),
    "no connection": (handshake(connection="close"), 404),
    "another upgrade": (handshake(upgrade="h2c"), 404),
    "a foreign origin": (handshake(origin="https://evil.example"), 403),
}
"""Handshakes, and their status."""


async def answer(turn: Turn) -> None:
    """A short answer."""
    async with turn.text() as text_part:
        await text_part.write("Hello.")


@asynccontextmanager
async def with_bystander() -> AsyncIterator[tuple[TestServer, ChatSocket]]:
    """Serve, with a client beside the hostile one, that is served as ever all the time and afterwards."""
    async with chat_server(chat_app(answer), LIMITS) as server:
        bystander = await connect(server)
        await bystander.ask("watch", "w", id="c")
        await bystander.until("event", "w")
        yield server, bystander
        await bystander.send("after", "x", chat="other")
        await bystander.until("end", "after")
        assert bystander.text("after") == "Hello."
        assert [frame["type"] for frame in bystander.of("w")] == ["event"]
        await wait_for(lambda: server.metrics.get("server_connections") == 1)
        assert server.metrics.get("server_connection_errors") == 0
        assert server.metrics.get("server_app_errors") == 0


Case: TypeAlias = Callable[[TestServer], Awaitable[None]]


async def expect_close(
    server: TestServer, data: bytes, code: int, *, at_once: bool = False, **headers: str
) -> None:
    """Send bytes, after the handshake or in one packet with it, and read the close code."""
    if at_once:
        client = ChatSocket(await server.connect(handshake() + data[:60_000]))
        await client.accepted()
        data = data[60_000:]
    else:
        client = await connect(server, **headers)
    async with trio.open_nursery() as nursery:

        async def send() -> None:
            try:
                await client.send_bytes(data)
            except trio.BrokenResourceError:
                pass  # It was answered before its end.

        nursery.start_soon(send)
        try:
            # No answer to a close that was the answer: the server is to end all the same.
            while not client.closed:
                await client.next()
        except EOFError:
            pass
    assert client.closed is not None
    assert client.closed[0] == code
    with trio.fail_after(2):
        await client.raw.read_to_end()
    client.raw.close()


@pytest.mark.parametrize("case", [*BROKEN, *PEACEFUL])
async def test_bytes_are_answered_with_their_code(case: str) -> None:
    """After the handshake, and in one packet with it."""
    data, code = {**BROKEN, **PEACEFUL}[case]
    async with with_bystander() as (server, _):
        await expect_close(server, data, code)
        await expect_close(server, data, code, at_once=True)


@pytest.mark.parametrize("case", REFUSED)
async def test_handshakes_are_refused_with_their_status(case: str) -> None:
    data, status = REFUSED[case]
    async with with_bystander() as (server, _):
        client = await server.connect(data)
        with trio.fail_after(2):
            assert parse_head(await client.read_until(b"\r\n\r\n"))[0] == status
            if status not in (404, 405):
                await client.read_to_end()
        client.close()


async def half_close(server: TestServer) -> None:
    """After half a frame."""
    client = await connect(server)
    await client.raw.send(text(type="resume", requestId="r", id="c")[:-5])
    client.raw.half_close()
    with trio.fail_after(2):
        await client.raw.read_to_end()
    client.raw.close()


async def reset_in_a_frame(server: TestServer) -> None:
    """In the middle of a message."""
    client = await connect(server)
    await client.raw.send(raw_frame(TEXT, b"x" * 50_000)[:-100])
    client.raw.reset()


async def reset_before_the_answer(server: TestServer) -> None:
    """To the handshake."""
    (
        await server.connect(handshake() + text(type="send", requestId="r", id="d", messages=[user("x")]))
    ).reset()


async def half_a_handshake(server: TestServer) -> None:
    """And then nothing."""
    (await server.connect(handshake()[:-10])).close()


async def a_message_that_never_ends(server: TestServer) -> None:
    """A length that is not honoured; the client leaves without the rest."""
    client = await connect(server)
    await client.raw.send(raw_frame(TEXT, b"{", length=b"\x7f" + bytes(4) + b"\x01\x00\x00\x00"))
    await trio.sleep(0.02)
    client.raw.close()


async def many_bad_requests(server: TestServer) -> None:
    """Each is answered in its own frame."""
    client = await connect(server)
    for number in range(100):
        await client.ask("send", f"{number}", id=f"../{number}", messages=[])
    for number in range(100):
        assert (await client.next())["requestId"] == f"{number}"
    client.raw.close()


async def requests_that_are_let_go_of(server: TestServer) -> None:
    """As many as one may say."""
    client = await connect(server)
    for number in range(90):
        await client.ask("watch", f"{number}", id="d")
        await client.ask("unwatch", f"{number}")
    await client.ask("resume", "last", id="none")
    await client.until("no-active", "last")
    client.raw.close()


async def a_client_that_reads_nothing(server: TestServer) -> None:
    """And asks and asks."""
    client = ChatSocket(await server.connect(handshake(), receive_buffer=4_096))
    await client.accepted()
    for number in range(150):
        await client.ask("stop", f"{number}" * 20, id="none")
    await trio.sleep(0.02)
    client.raw.reset()


MANNERS: list[Case] = [
    half_close,
    reset_in_a_frame,
    reset_before_the_answer,
    half_a_handshake,
    a_message_that_never_ends,
    many_bad_requests,
    requests_that_are_let_go_of,
    a_client_that_reads_nothing,
]


@pytest.mark.parametrize("manner", MANNERS)
async def test_bad_manners_are_nobody_elses_business(manner: Case) -> None:
    async with with_bystander() as (server, _):
        await manner(server)


async def test_a_close_handshake_without_its_other_half_is_bounded() -> None:
    """The server is asked to close, and its client says nothing and keeps the socket."""
    async with chat_server(chat_app(answer), LIMITS) as server:
        client = await connect(server)
        await client.raw.send(raw_frame(TEXT, b"bad"))
        began = trio.current_time()
        with trio.fail_after(2):
            await client.raw.read_to_end()
            await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert trio.current_time() - began < 1


def resident_bytes() -> int:
    """The process's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


async def test_memory_is_flat() -> None:
    """All of the above again and again: what a round leaves behind is not kept."""
    small = {case: pair for case, pair in {**BROKEN, **PEACEFUL}.items() if len(pair[0]) < 200_000}
    async with with_bystander() as (server, _):

        async def one_round() -> None:
            async with trio.open_nursery() as nursery:
                for data, code in small.values():
                    nursery.start_soon(expect_close, server, data, code)
                for manner in MANNERS:
                    nursery.start_soon(manner, server)
            server.clients.clear()
            await wait_for(lambda: server.metrics.get("server_connections") == 1)

        bystander_raw = server.clients[0]
        for _ in range(2):
            await one_round()
        gc.collect()
        before = resident_bytes()
        for _ in range(3):
            await one_round()
        gc.collect()
        # 80 clients a round, of 25 kB each.
        assert resident_bytes() - before < 4 << 20
        server.clients.append(bystander_raw)
