"""Going away: at once for new and idle clients, in `drain_s` for the busy ones, and then for everybody."""

from __future__ import annotations

import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from raw import GET, Message, Receive, Scope, Send, open_server, respond, start_stream, wait_for

from penstock.errors import ClientGoneError
from penstock.limits import ServerLimits
from penstock.server import serve

LIMITS = ServerLimits(drain_s=0.3, abort_s=0.2)


async def test_with_nothing_to_wait_for_it_ends_at_once() -> None:
    """Idle connections, old and new, do not count."""

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async with open_server(app, limits=ServerLimits()) as server:
        used = await server.connect(GET)
        await used.read_response()
        fresh = await server.connect()
        await wait_for(lambda: server.metrics.get("server_connections") == 2)
        asked_at = trio.current_time()
        server.shutdown.set()
        assert await used.read_to_end() == (b"", "eof")
        assert await fresh.read_to_end() == (b"", "eof")
    assert trio.current_time() - asked_at < 1


async def test_requests_in_flight_are_answered_and_closed() -> None:
    """And nobody new gets in meanwhile."""
    started = trio.Event()
    release = trio.Event()
    drainings: list[bool] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        draining = scope["extensions"]["penstock.server"]["draining"]
        drainings.append(draining.is_set())
        started.set()
        await draining.wait()
        await release.wait()
        await send(
            {
                "type": "http.response.start",
                "status": 200,
                "headers": [(b"Connection", b"keep-alive"), (b"content-length", b"4")],
            }
        )
        await send({"type": "http.response.body", "body": b"done"})

    async with open_server(app, limits=ServerLimits()) as server:
        client = await server.connect(GET)
        await started.wait()
        server.shutdown.set()
        await trio.sleep(0.02)
        with pytest.raises(OSError, match="refused"):
            await server.connect()
        release.set()
        answer, end = await client.read_to_end()
        assert answer.lower().count(b"connection:") == 1
        assert b"\r\nconnection: close\r\n" in answer
        assert answer.endswith(b"\r\n\r\ndone")
        assert end == "eof"
    assert drainings == [False]


async def test_a_request_that_is_arriving_is_answered() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await respond(send)

    async with open_server(app, limits=ServerLimits()) as server:
        client = await server.connect(GET[:10])
        await trio.sleep(0.02)
        server.shutdown.set()
        await trio.sleep(0.02)
        await client.send(GET[10:])
        status, headers, _ = await client.read_response()
        assert (status, headers["connection"]) == (200, "close")


async def test_streams_that_were_begun_before_may_end_politely() -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await start_stream(send)
        await scope["extensions"]["penstock.server"]["draining"].wait()
        await send({"type": "http.response.body", "body": b"last"})

    async with open_server(app, limits=ServerLimits()) as server:
        client = await server.connect(GET)
        await client.read_until(b"first")
        server.shutdown.set()
        answer, end = await client.read_to_end()
        assert answer.endswith(b"last\r\n0\r\n\r\n")
        assert end == "eof"


async def test_who_stays_is_reset_after_drain_s() -> None:
    """A stream that goes on, a reader that reads nothing, an app that ignores everything: each is told, then cut."""
    ends: dict[str, str] = {}

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        path = scope["path"]
        try:
            await start_stream(send)
            if path == "/stalled":
                await send({"type": "http.response.body", "body": bytes(8 << 20), "more_body": True})
            elif path == "/told":
                message: Message = {}
                while message.get("type") != "http.disconnect":
                    message = await receive()
                await trio.sleep(0.05)  # `abort_s` is there for such an end
                ends[path] = "disconnect"
            else:
                await trio.sleep_forever()
        except ClientGoneError:
            ends[path] = "gone"
            raise
        except trio.Cancelled:
            ends[path] = "cancelled"
            raise

    async with open_server(app, limits=LIMITS) as server:
        clients = {}
        for path in ("/stalled", "/told", "/deaf"):
            clients[path] = await server.connect(f"GET {path} HTTP/1.1\r\nhost: test\r\n\r\n".encode())
            await clients[path].read_until(b"first")
        idle = await server.connect()
        await wait_for(lambda: server.metrics.get("server_connections") == 4)
        asked_at = trio.current_time()
        server.shutdown.set()
        await idle.read_to_end()
        assert trio.current_time() - asked_at < 0.29
        await wait_for(lambda: len(ends) == 3)
        for client in clients.values():
            assert (await client.read_to_end())[1] == "reset"
    assert 0.3 <= trio.current_time() - asked_at < 1.3
    assert ends == {"/stalled": "gone", "/told": "disconnect", "/deaf": "cancelled"}


def read_all(client: socket.socket) -> str:
    """Read all that comes, and say how it ended: `eof` or `reset`."""
    try:
        while client.recv(1 << 20):
            pass
    except ConnectionResetError:
        return "reset"
    return "eof"


@pytest.mark.parametrize("shielded", [True, False])
async def test_cancelling_the_server_closes_all_at_once(shielded: bool) -> None:
    """Also a stalled write, even one that its app shields, and without the app's shutdown."""
    ends: list[str] = []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            ends.append("shutdown")
        await start_stream(send)
        with trio.CancelScope(shield=shielded, deadline=trio.current_time() + 5):
            await send({"type": "http.response.body", "body": bytes(8 << 20), "more_body": True})
        ends.append("sent")

    listener = socket.create_server(("127.0.0.1", 0))
    server_scope = trio.CancelScope()

    async def run() -> None:
        with server_scope:
            await serve(app, sockets=[listener])
        ends.append("end")

    async with trio.open_nursery() as nursery:
        client = socket.create_connection(listener.getsockname(), timeout=1)
        nursery.start_soon(run)
        with client:
            client.sendall(GET)
            await trio.sleep(0.05)
            assert client.recv(100)
            cancelled_at = trio.current_time()
            server_scope.cancel()
            await wait_for(lambda: "end" in ends)
            assert trio.current_time() - cancelled_at < 1
            assert read_all(client) == "reset"
    assert ends == ["end"]


PROGRAM = """
import sys, trio
from penstock.limits import ServerLimits
from penstock.server import serve_until_signalled

async def app(scope, receive, send):
    if scope["type"] == "lifespan":
        await receive()
        await send({"type": "lifespan.startup.complete"})
        await receive()
        print("stopped", flush=True)
        await send({"type": "lifespan.shutdown.complete"})
        return
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"first", "more_body": True})
    await send({"type": "http.response.body", "body": bytes(8 << 20), "more_body": True})

async def main():
    async with trio.open_nursery() as nursery:
        limits = ServerLimits(drain_s=float(sys.argv[1]), abort_s=0.1)
        urls = await nursery.start(
            lambda task_status: serve_until_signalled(app, port=0, limits=limits, task_status=task_status)
        )
        print(urls[0], flush=True)

trio.run(main)
print("end", flush=True)
"""


@pytest.fixture
def start() -> Iterator[object]:
    """Start the program above; give the process and a client that has read the first chunk and no more."""
    running: list[subprocess.Popen[str]] = []
    clients: list[socket.socket] = []

    def start(drain_s: float) -> tuple[subprocess.Popen[str], socket.socket]:
        process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PROGRAM, str(drain_s)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=Path(__file__).parent,
        )
        running.append(process)
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        client = socket.create_connection(("127.0.0.1", port))
        clients.append(client)
        client.sendall(GET)
        while b"first" not in client.recv(1000):
            pass
        # An idle keep-alive connection as well.
        clients.append(socket.create_connection(("127.0.0.1", port)))
        return process, client

    yield start
    for client in clients:
        client.close()
    for process in running:
        process.kill()
        process.communicate()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_drains_and_exits_with_0(start: object, number: signal.Signals) -> None:
    """Within `drain_s` and a second, with a stalled reader and an idle connection; the app is shut down."""
    process, _ = start(0.3)  # type: ignore[operator]
    process.send_signal(number)
    out, err = process.communicate(timeout=2.3)
    assert (process.returncode, out, err) == (0, "stopped\nend\n", "")


def test_a_second_signal_ends_it_at_once_with_0(start: object) -> None:
    process, client = start(60)  # type: ignore[operator]
    process.send_signal(signal.SIGTERM)
    with pytest.raises(subprocess.TimeoutExpired):
        process.communicate(timeout=0.3)
    process.send_signal(signal.SIGTERM)
    out, err = process.communicate(timeout=2)
    assert (process.returncode, out) == (0, "end\n")
    assert "closing everything at once" in err
    assert read_all(client) == "reset"
