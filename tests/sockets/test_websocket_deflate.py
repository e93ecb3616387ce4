"""permessage-deflate, where it was asked for: what is agreed upon, what is sent, and what it may cost."""

from __future__ import annotations

import gc
import json
import os
import tracemalloc
import zlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from chat_socket import ChatSocket, chat_server, connect
from hypothesis import given, settings
from hypothesis import strategies as st
from raw import Message, Receive, Scope, Send, TestServer, open_server
from test_websocket import hello
from test_websocket_hostile import BROKEN, PEACEFUL, expect_close, raw_frame
from test_websocket_over_http2 import client_of, open_stream
from wsproto.connection import Connection, ConnectionType
from wsproto.events import TextMessage

from penstock import chat_app
from penstock.limits import ServerLimits
from penstock.server.deflate import Deflate, Deflater, agree
from penstock.wire.websocket import text_message

LIMITS = ServerLimits(linger_s=0.2, drain_s=0.3, abort_s=0.1)
OFFER = "permessage-deflate; client_max_window_bits"
AGREED = (
    "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=12"
)


def agreed(offer: bytes = OFFER.encode(), message_bytes: int = 1 << 20) -> Deflate:
    """What comes of an offer that is good."""
    deflate = agree([offer], Deflater(512), message_bytes=message_bytes)
    assert deflate is not None
    return deflate


@pytest.mark.parametrize(
    ("offer", "answer"),
    [
        ("permessage-deflate", "s c"),
        ("permessage-deflate; client_max_window_bits", "s c client_max_window_bits=12"),
        ("permessage-deflate; client_max_window_bits=10", "s c client_max_window_bits=10"),
        ('permessage-deflate; client_max_window_bits="15"', "s c client_max_window_bits=12"),
        ("permessage-deflate; server_max_window_bits=15", "s c server_max_window_bits=12"),
        ("permessage-deflate; server_no_context_takeover; client_no_context_takeover", "s c"),
        ("x-webkit-deflate-frame, permessage-deflate", "s c"),
        ("permessage-deflate; server_max_window_bits=9, permessage-deflate", "s c"),
        ("permessage-deflate; server_max_window_bits=9", None),
        ("permessage-deflate; server_max_window_bits", None),
        ("permessage-deflate; server_max_window_bits=16", None),
        ("permessage-deflate; client_max_window_bits=8", None),
        ("permessage-deflate; client_max_window_bits=x", None),
        ("permessage-deflate; client_max_window_bits=\u00b2", None),
        ("permessage-deflate; client_max_window_bits; client_max_window_bits", None),
        ("permessage-deflate; server_no_context_takeover=1", None),
        ("permessage-deflate; unknown", None),
        ("permessage-deflate-2", None),
        ("", None),
    ],
)
async def test_what_is_answered_to_an_offer(offer: str, answer: str | None) -> None:
    deflate = agree([offer.encode("latin-1")], Deflater(512), message_bytes=1)
    if answer is None:
        assert deflate is None
    else:
        assert deflate is not None
        short = {"s": "server_no_context_takeover", "c": "client_no_context_takeover"}
        words = [short.get(word, word) for word in answer.split()]
        assert deflate.header.decode() == "; ".join(["permessage-deflate", *words])
    assert agree([offer.encode("latin-1")], None, message_bytes=1) is None


@given(st.binary(max_size=3_000).map(lambda data: data * 3))
@settings(max_examples=50)
def test_what_is_compressed_can_be_read_by_any_inflater(data: bytes) -> None:
    """With the window that was promised, and with none of what went before."""
    deflated = Deflater(0).deflate(data)
    if deflated is not None:
        assert len(deflated) < len(data)
        assert zlib.decompressobj(-12).decompress(deflated + b"\0\0\xff\xff") == data


class Echo:
    """An app that says what it was told, in JSON, directly or not."""

    def __init__(self) -> None:
        self.messages: list[Message] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "websocket":
            return
        await receive()
        await send({"type": "websocket.accept"})
        while (message := await receive())["type"] == "websocket.receive":
            self.messages.append(message)
            text = message["text"] or ""
            stream = scope["extensions"]["penstock.stream"]
            if stream.direct and text.startswith("direct"):
                assert stream.write(text_message(text.encode()))
            else:
                await send({"type": "websocket.send", "text": text})


@asynccontextmanager
async def echo(**limits: Any) -> AsyncIterator[tuple[TestServer, Echo]]:
    """Serve it with compression."""
    app = Echo()
    async with open_server(
        app, limits=ServerLimits(linger_s=0.1, drain_s=0.2, **limits), ws_deflate=True
    ) as server:
        yield server, app


def deflated(data: bytes) -> bytes:
    """Compress as any client would."""
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    return (compressor.compress(data) + compressor.flush(zlib.Z_SYNC_FLUSH))[:-4]


async def read_frame(client: ChatSocket) -> tuple[int, bytes]:
    """Read one frame of the server's: its first byte and its payload."""
    raw = client.raw
    raw.seen += client.protocol._proto._frame_decoder.buffer.buffer
    client.protocol._proto._frame_decoder.buffer.buffer.clear()

    async def take(count: int) -> bytes:
        while len(raw.seen) < count:
            raw.seen += await raw.stream.receive_some(1 << 16)
        data = bytes(raw.seen[:count])
        del raw.seen[:count]
        return data

    with trio.fail_after(2):
        first, size = await take(2)
        if size >= 126:
            size = int.from_bytes(await take(2 if size == 126 else 8), "big")
        return first, await take(size)


async def close_code(client: ChatSocket) -> int:
    """Read to the close frame, and return its code."""
    while (frame := await read_frame(client))[0] != 0x88:
        pass
    return int.from_bytes(frame[1][:2], "big")


@pytest.mark.parametrize("how", ["direct ", "send "])
async def test_long_messages_are_compressed_and_short_ones_are_not(how: str) -> None:
    async with echo() as (server, app):
        client = await connect(server, sec_websocket_extensions=OFFER)
        assert client.headers["sec-websocket-extensions"] == AGREED
        long = how + json.dumps({"words": ["é word"] * 1_000})
        await client.send_bytes(raw_frame(1, deflated(long.encode()), rsv=4) + raw_frame(1, how.encode()))
        first, payload = await read_frame(client)
        assert first == 0xC1
        assert len(payload) < len(long) / 20
        assert zlib.decompressobj(-12).decompress(payload + b"\0\0\xff\xff") == long.encode()
        assert await read_frame(client) == (0x81, how.encode())
        assert app.messages[0]["text"] == long


async def test_who_offers_nothing_gets_nothing_compressed() -> None:
    async with echo() as (server, _):
        client = await connect(server)
        assert "sec-websocket-extensions" not in client.headers
        await client.send_bytes(raw_frame(1, b"direct " + b"x" * 2_000))
        assert (await read_frame(client))[0] == 0x81
        await client.send_bytes(raw_frame(1, deflated(b"x"), rsv=4))
        assert await close_code(client) == 1002


async def test_a_ping_within_a_compressed_message() -> None:
    """Cut into fragments anywhere, with control frames between."""
    text = "words " * 500
    data = deflated(text.encode())
    frames = raw_frame(1, data[:5], fin=False, rsv=4)
    for number in range(5, len(data)):
        frames += raw_frame(9, b"p") + raw_frame(0, data[number : number + 1], fin=False)
    async with echo() as (server, app):
        client = await connect(server, sec_websocket_extensions=OFFER)
        await client.send_bytes(frames + raw_frame(0))
        while (await read_frame(client))[0] != 0xC1:
            pass
        assert app.messages[0]["text"] == text


BOMB = deflated(bytes(200 << 20))
"""200 MiB in 200 KiB."""


def bombs() -> dict[str, tuple[bytes, int]]:
    """Bytes after the handshake, and the close code that they are answered with. A message may have 10,000 bytes."""
    fits, over = (deflated(os.urandom(size // 2).hex().encode()) for size in (10_000, 10_002))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -12)
    ended = compressor.compress(b"{}") + compressor.flush()
    return {
        "a bomb": (raw_frame(2, BOMB, rsv=4), 1009),
        "a bomb in fragments": (
            raw_frame(2, BOMB[:1_000], rsv=4, fin=False) + raw_frame(0, BOMB[1_000:]),
            1009,
        ),
        "a bomb of a frame that never ends": (
            raw_frame(2, BOMB[:2_000], rsv=4, length=b"\x7f\x40" + bytes(7)),
            1009,
        ),
        "just too large": (raw_frame(1, over, rsv=4), 1009),
        "just not too large": (raw_frame(1, fits, rsv=4) + raw_frame(8, b"\x03\xe8"), 1000),
        "noise": (raw_frame(2, b"\xff" * 100, rsv=4), 1007),
        "not UTF-8 inside": (raw_frame(1, deflated(b"\xff"), rsv=4), 1007),
        "a reserved bit on a continuation": (
            raw_frame(1, deflated(b"x")[:1], fin=False, rsv=4) + raw_frame(0, b"", rsv=4),
            1002,
        ),
        "a reserved bit on a ping": (raw_frame(9, deflated(b"x"), rsv=4), 1002),
        "the second reserved bit": (raw_frame(1, deflated(b"x"), rsv=6), 1002),
        "a stream with an end, and much after it": (
            raw_frame(2, ended, rsv=4, fin=False)
            + raw_frame(0, bytes(60_000), fin=False) * 20
            + raw_frame(0)
            + raw_frame(8, b"\x03\xe8"),
            1000,
        ),
        "an empty message": (raw_frame(1, b"\x00", rsv=4) + raw_frame(8, b"\x03\xe8"), 1000),
        "nothing at all": (raw_frame(1, b"", rsv=4) + raw_frame(8, b"\x03\xe8"), 1000),
    }


async def test_a_bomb_is_1009() -> None:
    """And whatever else can be wrong has its code, and costs no memory."""
    async with echo(websocket_message_bytes=10_000) as (server, app):
        bystander = await connect(server, sec_websocket_extensions=OFFER)
        for case, (data, code) in bombs().items():
            client = await connect(server, sec_websocket_extensions=OFFER)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(_send_if_taken, client, data)
                assert await close_code(client) == code, case
        assert all(len(message["bytes"] or message["text"] or "") <= 10_000 for message in app.messages)
        await bystander.send_bytes(raw_frame(1, b"still here"))
        assert (await read_frame(bystander))[1] == b"still here"
        assert server.metrics.get("server_connection_errors") == 0


async def _send_if_taken(client: ChatSocket, data: bytes) -> None:
    try:
        await client.send_bytes(data)
    except trio.BrokenResourceError:
        pass  # It was answered before its end.


def test_a_bomb_costs_no_more_than_the_cap() -> None:
    """Whatever a read brings of it."""
    connection = Connection(ConnectionType.SERVER, [agreed()])
    tracemalloc.start()
    connection.receive_data(raw_frame(2, BOMB, rsv=4))
    assert [getattr(event, "code", None) for event in connection.events()][-1] == 1009
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 5 << 20


async def test_what_is_wrong_uncompressed_is_as_wrong_with_compression_on() -> None:
    """But for the first reserved bit, which has a meaning now."""
    async with chat_server(chat_app(hello), LIMITS, ws_deflate=True) as server:
        for case, (data, code) in {**BROKEN, **PEACEFUL}.items():
            if case != "reserved bit 1":
                await expect_close(server, data, code, sec_websocket_extensions=OFFER)


async def test_compression_over_http2() -> None:
    async with client_of(Echo(), ws_deflate=True) as (_, client):
        stream = await open_stream(client, 1, sec_websocket_extensions=OFFER)
        assert client.heads[1]["sec-websocket-extensions"] == AGREED
        await stream.send_bytes(raw_frame(1, deflated(b"word " * 1_000), rsv=4))
        while len(client.data[1]) < 2:
            await client.more()
        assert client.data[1][0] == 0xC1
        bomb = await open_stream(client, 3, sec_websocket_extensions=OFFER)
        await bomb.send_bytes(raw_frame(2, BOMB, rsv=4))
        assert await bomb.close_code() == 1009


def test_nothing_is_kept_between_messages() -> None:
    """An idle socket has no state of zlib's, and each message stands for itself."""
    connection = Connection(ConnectionType.SERVER, [agreed()])
    sent = set()
    for _ in range(3):
        connection.receive_data(raw_frame(1, deflated(b"word " * 1_000), rsv=4))
        (event,) = connection.events()
        assert isinstance(event, TextMessage)
        assert event.data == "word " * 1_000
        sent.add(connection.send(TextMessage(data="word " * 1_000)))
    assert len(sent) == 1
    gc.collect()
    assert not [thing for thing in gc.get_objects() if type(thing) in (type(_INFLATER), type(_DEFLATER))]


_INFLATER, _DEFLATER = zlib.decompressobj(), zlib.compressobj()
