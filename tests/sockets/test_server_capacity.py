"""Too many connections: for the configuration, and for the process."""

from __future__ import annotations

import re
import socket
import subprocess
import sys

import pytest
import trio
from raw import GET, Receive, Scope, Send, open_server, respond, start_stream, wait_for

from penstock.limits import ServerLimits

LIMITS = ServerLimits(connections=3, retry_after_s=7, linger_s=0.1, drain_s=0.2)


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    if scope["path"] == "/stream":
        await start_stream(send)
        await receive()
        await receive()
    else:
        await respond(send, b"hello")


async def test_over_the_cap_is_a_503_that_arrives() -> None:
    """Also at a client that sends at once; those who are in stay in; a place that is freed is given again."""
    async with open_server(app, limits=LIMITS) as server:
        inside = []
        for _ in range(3):
            client = await server.connect(b"GET /stream HTTP/1.1\r\nhost: test\r\n\r\n")
            await client.read_until(b"first")
            inside.append(client)
        for data in (b"", GET, GET * 1000):
            client = await server.connect(data)
            status, headers, body = await client.read_response()
            assert (status, headers["retry-after"], headers["connection"]) == (503, "7", "close")
            assert body.endswith(b".\n")
            client.close()
        assert server.metrics.get("server_connections_refused") == 3
        assert server.metrics.get("server_connections") == 3
        inside[0].close()
        await wait_for(lambda: server.metrics.get("server_connections") == 2)
        assert (await server.get())[0] == 200


async def test_a_flood_over_the_cap_holds_few_sockets() -> None:
    """Only so many are answered in words; a client that holds on to its refusal gains nothing."""
    async with open_server(app, limits=LIMITS) as server:
        inside = [await server.connect() for _ in range(3)]
        await wait_for(lambda: server.metrics.get("server_connections") == 3)
        flood = [await server.connect() for _ in range(150)]
        answered = 0
        for client in flood:
            with trio.fail_after(1):
                answer, _ = await client.read_to_end()
            answered += answer.startswith(b"HTTP/1.1 503")
        assert 1 <= answered < 150
        inside[0].close()
        await wait_for(lambda: server.metrics.get("server_connections") == 2)
        assert (await server.get())[0] == 200


PROGRAM = """
import resource, trio
from penstock.limits import ServerLimits
from penstock.metrics import Counters
from penstock.server import serve

async def app(scope, receive, send):
    if scope["type"] == "http":
        await send({"type": "http.response.start", "status": 204, "headers": []})
        await send({"type": "http.response.body", "body": b""})

async def main():
    metrics = Counters()
    async with trio.open_nursery() as nursery:
        urls = await nursery.start(
            lambda task_status: serve(app, port=0, metrics=metrics, task_status=task_status)
        )
        resource.setrlimit(resource.RLIMIT_NOFILE, (32, 32))
        print(urls[0], flush=True)

        @nursery.start_soon
        async def watch():
            while not metrics.get("server_accept_pauses"):
                await trio.sleep(0.01)
            before = resource.getrusage(resource.RUSAGE_SELF)
            await trio.sleep(0.3)
            after = resource.getrusage(resource.RUSAGE_SELF)
            spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
            print(f"paused {spent:.3f}", flush=True)

trio.run(main)
"""


def test_out_of_descriptors_it_pauses_and_recovers() -> None:
    """It does not die, does not spin, and does not write a log record for each try."""
    process = subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    clients: list[socket.socket] = []
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        clients = [socket.create_connection(("127.0.0.1", port)) for _ in range(60)]
        spent = re.fullmatch(r"paused (\d+\.\d+)\n", process.stdout.readline())
        assert spent is not None
        assert float(spent[1]) < 0.15
        for client in clients:
            client.close()
        with socket.create_connection(("127.0.0.1", port), timeout=5) as client:
            client.sendall(GET)
            assert client.recv(1000).startswith(b"HTTP/1.1 204")
    finally:
        for client in clients:
            client.close()
        process.kill()
        _, err = process.communicate()
    assert err.count("can't accept connections") == 1


@pytest.mark.parametrize("count", [100])
async def test_a_burst_of_connections_is_served(count: int) -> None:
    async with open_server(app) as server:
        clients = [await server.connect(GET) for _ in range(count)]
        for client in clients:
            assert (await client.read_response())[0] == 200
            client.close()
        await wait_for(lambda: server.metrics.get("server_connections") == 0)
