"""The same server under TLS, with a certificate made for the test."""

from __future__ import annotations

import ssl
from typing import Any

import pytest
import trio
from raw import GET, RawClient, Receive, Scope, Send, TestServer, open_server, respond, start_stream, wait_for

from certificate import make_certificate
from penstock.limits import ServerLimits
from penstock.server import serve

LIMITS = ServerLimits(head_s=0.3, write_stall_s=0.3, drain_s=0.3)


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A self-signed certificate: the options of `serve` that name it."""
    made = make_certificate(tmp_path_factory.mktemp("tls"))
    return {"certfile": made.cert, "keyfile": made.key}


async def connect(server: TestServer, certificate: dict[str, Any], *alpn: str) -> RawClient:
    raw = await server.connect()
    context = ssl.create_default_context(cafile=certificate["certfile"])
    context.set_alpn_protocols(list(alpn))
    assert isinstance(raw.stream, trio.SocketStream)
    stream = trio.SSLStream(raw.stream, context, server_hostname="127.0.0.1", https_compatible=True)
    await stream.do_handshake()
    return RawClient(stream, raw.socket)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer with the scheme, with a lot, or with a stream that waits for its client to leave."""
    if scope["path"] == "/big":
        await respond(send, bytes(4 << 20))
    elif scope["path"] == "/stream":
        await start_stream(send)
        while (await receive())["type"] != "http.disconnect":
            pass
    else:
        await respond(send, scope["scheme"].encode())


async def test_requests_and_pipelining(certificate: dict[str, Any]) -> None:
    async with open_server(app, limits=LIMITS, **certificate) as server:
        client = await connect(server, certificate)
        await client.send(GET + GET.replace(b" / ", b" /big ") + GET)
        assert (await client.read_response())[2] == b"https"
        assert (await client.read_response())[2] == bytes(4 << 20)
        assert (await client.read_response())[2] == b"https"


async def test_two_writers_keep_their_order(certificate: dict[str, Any]) -> None:
    async def write(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        async with trio.open_nursery() as nursery:
            for _ in range(10):
                body = {"type": "http.response.body", "body": bytes(300_000), "more_body": True}
                nursery.start_soon(send, body)
        await send({"type": "http.response.body", "body": b""})

    async with open_server(write, limits=LIMITS, **certificate) as server:
        client = await connect(server, certificate)
        await client.send(GET)
        assert (await client.read_response())[2] == b"first" + bytes(3_000_000)


async def test_the_disconnect_is_seen(certificate: dict[str, Any]) -> None:
    async with open_server(app, limits=LIMITS, **certificate) as server:
        client = await connect(server, certificate)
        await client.send(GET.replace(b" / ", b" /stream ") + b"\r\n")
        await client.read_until(b"first")
        client.reset()
        left_at = trio.current_time()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert trio.current_time() - left_at < 0.5


async def test_a_stalled_reader_is_reset(certificate: dict[str, Any]) -> None:
    async with open_server(app, limits=LIMITS, **certificate) as server:
        client = await connect(server, certificate)
        await client.send(GET.replace(b" / ", b" /big "))
        await wait_for(lambda: server.metrics.get("server_connections") == 1)
        await wait_for(lambda: server.metrics.get("server_connections") == 0)


@pytest.mark.parametrize("data", [b"", GET, b"\x16\x03\x01\xff\xff"])
async def test_who_does_not_shake_hands_is_closed(certificate: dict[str, Any], data: bytes) -> None:
    async with open_server(app, limits=LIMITS, **certificate) as server:
        client = await server.connect(data)
        with trio.fail_after(1):
            await client.read_to_end()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
        assert server.metrics.get("server_connection_errors") == 0


@pytest.mark.parametrize(("http2", "chosen"), [(False, "http/1.1"), (True, "h2")])
async def test_http2_is_offered_where_asked_for(
    certificate: dict[str, Any], http2: bool, chosen: str
) -> None:
    async with open_server(app, limits=LIMITS, http2=http2, **certificate) as server:
        client = await connect(server, certificate, "h2", "http/1.1")
        assert isinstance(client.stream, trio.SSLStream)
        assert client.stream.selected_alpn_protocol() == chosen


@pytest.mark.parametrize("half", [{"certfile": "cert.pem"}, {"keyfile": "key.pem"}])
async def test_half_of_a_certificate_is_an_error(half: dict[str, str]) -> None:
    """Not a server that speaks in clear."""
    with pytest.raises(ValueError, match="both"):
        await serve(app, port=0, **half)  # type: ignore[arg-type]


async def test_it_drains(certificate: dict[str, Any]) -> None:
    async with open_server(app, limits=LIMITS, **certificate) as server:
        client = await connect(server, certificate)
        await client.send(GET)
        await client.read_response()
        asked_at = trio.current_time()
        server.shutdown.set()
        await client.read_to_end()
    assert trio.current_time() - asked_at < 0.29
