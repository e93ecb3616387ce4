"""`penstock serve --workers N`: real processes that come and go, and clients that don't notice."""

from __future__ import annotations

import os
import re
import secrets
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import msgspec
import pytest
import trio
from chat_socket import ChatSocket, handshake
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families
from raw import RawClient

from penstock.cli import main
from penstock.testing import user_message

HERE = Path(__file__).parent


class Cluster:
    """A supervisor and its workers."""

    def __init__(
        self, process: trio.Process, port: int, metrics_port: int, client: httpx2.AsyncClient
    ) -> None:
        self.process = process
        self._client = client
        self.port = port
        self.metrics_port = metrics_port
        self.url = f"http://127.0.0.1:{port}/api/chat"
        self.answers = 0
        """Those that came to their end."""

    def workers(self) -> set[int]:
        """Process ids of the workers, whatever they are doing."""
        found = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(pid) for children in found for pid in children.read_text().split()}

    async def say(self, words: str) -> str:
        """Ask a new chat on a new connection, and return the text of the answer."""
        body = {"id": secrets.token_hex(8), "messages": [msgspec.to_builtins(user_message(words))]}
        response = await self._client.post(self.url, json=body)
        assert response.status_code == 200
        self.answers += 1
        return "".join(re.findall(r'"delta":"([^"]*)"', response.text))

    async def pid(self) -> int:
        """Return which worker takes a new connection."""
        return int((await self.say("pid")).removeprefix("pid="))

    async def heard_from(self, workers: set[int]) -> None:
        """Ask until each of these has answered."""
        missing = set(workers)
        with trio.fail_after(10):
            while missing:
                missing.discard(await self.pid())

    @asynccontextmanager
    async def socket(self) -> AsyncIterator[ChatSocket]:
        """Open a WebSocket that asks for nothing."""
        async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
            await stream.send_all(handshake())
            client = ChatSocket(RawClient(stream, stream.socket))
            await client.accepted()
            yield client

    async def number(self, name: str, **labels: str) -> float:
        """Scrape a number, summed over all series that have these labels; -1 if none has."""
        response = await self._client.get(f"http://127.0.0.1:{self.metrics_port}/metrics")
        found = [
            sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
            if sample.name == f"penstock_{name}" and labels.items() <= sample.labels.items()
        ]
        return sum(found) if found else -1


@asynccontextmanager
async def running(*options: str, workers: int = 2) -> AsyncIterator[Cluster]:
    """Run a supervisor in a folder of the tests'; whatever is left of it is killed at the end."""
    command = [
        sys.executable, "-m", "penstock", "serve", "cluster_app:answer", "--port", "0",
        "--workers", str(workers), *options,
    ]  # fmt: skip
    limits = httpx2.Limits(max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(timeout=20, trust_env=False, verify=False, limits=limits) as client,
        trio.open_nursery() as nursery,
    ):
        process = await nursery.start(
            partial(trio.run_process, command, cwd=HERE, stderr=subprocess.PIPE, check=False)
        )
        said = b""
        with trio.fail_after(30):
            while (found := re.search(rb"listening on http://127\.0\.0\.1:(\d+) ", said)) is None:
                data = await process.stderr.receive_some()
                assert data, said
                said += data
        scraped = re.search(rb"metrics are at http://127\.0\.0\.1:(\d+)/metrics\n", said)
        cluster = Cluster(process, int(found[1]), int(scraped[1]) if scraped else 0, client)

        async def hear() -> None:
            async for data in process.stderr:
                sys.stderr.write(data.decode())

        nursery.start_soon(hear)
        workers_now = set[int]()
        try:
            yield cluster
        finally:
            workers_now |= cluster.workers()
            process.kill()
            for pid in workers_now:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    pass


def any_alive(pids: set[int]) -> bool:
    """Say whether one of these processes is there."""
    return any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.fixture
def journal(tmp_path: Path) -> str:
    """A file that the workers share."""
    return f"sqlite:{tmp_path}/chat.db"


async def test_a_reload_loses_nobody_and_a_worker_that_is_stuck_or_killed_is_not_missed(journal: str) -> None:
    async with running("--journal", journal, "--drain-s", "2", "--metrics", "0") as cluster:
        old = cluster.workers()
        assert len(old) == 2
        await cluster.heard_from(old)

        # While the workers are replaced: some watch, a turn runs on, and others come and go.
        told: list[Any] = []
        long: list[str] = []
        async with cluster.socket() as idle, trio.open_nursery() as nursery:

            async def watch() -> None:
                async with (
                    httpx2.AsyncClient(timeout=30, trust_env=False, verify=False) as client,
                    client.stream("GET", f"{cluster.url}/some/watch") as response,
                ):
                    told.append("".join([text async for text in response.aiter_text()]))

            async def count() -> None:
                long.append(await cluster.say("count 100 0.01"))

            nursery.start_soon(watch)
            nursery.start_soon(count)
            await trio.sleep(0.2)
            cluster.process.send_signal(signal.SIGHUP)
            with trio.fail_after(20):
                while cluster.workers() & old:
                    assert len(cluster.workers()) >= 2
                    await cluster.pid()
            new = cluster.workers()
            assert len(new) == 2
            assert await idle.end() == (1012, "restart")
        assert '"reason":"restart","reconnect":true' in told[0]
        assert long == ["".join(f"{number} " for number in range(100))]

        # The numbers of those who have ended stay, to the last one.
        await cluster.heard_from(new)
        with trio.fail_after(5):
            while await cluster.number("turns_ended_total", outcome="finished") != cluster.answers:
                await trio.sleep(0.05)
        assert await cluster.number("turns_running") == 0
        assert await cluster.number("turns_ended_total", outcome="finished", worker="3") == -1
        assert await cluster.number("connections_closed_total", reason="restart") >= 1
        assert (await cluster.number("workers"), await cluster.number("worker_crashes_total")) == (2, 0)

        # A connection that the kernel gives to a worker which can't take it is another's a moment later.
        stopped = min(new)
        os.kill(stopped, signal.SIGSTOP)
        began = trio.current_time()
        assert {await cluster.pid() for _ in range(12)} <= new - {stopped}
        assert trio.current_time() - began < 12 * 0.5
        os.kill(stopped, signal.SIGKILL)
        assert stopped not in {await cluster.pid() for _ in range(6)}
        with trio.fail_after(15):
            while len(cluster.workers()) < 2 or stopped in cluster.workers():
                await trio.sleep(0.02)
        await cluster.heard_from(cluster.workers() - new)
        assert await cluster.number("worker_crashes_total") == 1

        async with cluster.socket() as idle:
            cluster.process.send_signal(signal.SIGTERM)
            assert await idle.end() == (1001, "drain")
        with trio.fail_after(10):
            await cluster.process.wait()
        assert cluster.process.returncode == 0
        assert not cluster.workers()
        for port in (cluster.port, cluster.metrics_port):
            with pytest.raises(OSError, match=r"[Cc]onnect"):
                await trio.open_tcp_stream("127.0.0.1", port)


async def test_workers_end_with_their_supervisor(journal: str) -> None:
    async with running("--journal", journal, "--drain-s", "1") as cluster:
        workers = cluster.workers()
        assert len(workers) == 2
        cluster.process.kill()
        with trio.fail_after(10):
            while any_alive(workers):
                await trio.sleep(0.02)


def test_what_can_not_be_is_said_before_anything_is_started() -> None:
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        sock.listen()
        port = str(sock.getsockname()[1])
        for options, complaint in (
            (["--journal", "memory:"], "--workers needs a journal that they share"),
            (["--port", port], "Address already in use"),
        ):
            done = CliRunner().invoke(main, ["serve", "--workers", "2", *options])
            assert done.exit_code in (1, 2)
            assert complaint in done.output


def test_workers_that_can_not_start_say_so_once() -> None:
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--workers", "2"]
    done = subprocess.run(
        [*command, "--journal", "sqlite:/nowhere/chat.db"], stderr=subprocess.PIPE, timeout=30
    )
    assert done.returncode == 1
    assert done.stderr.decode().count("can't be opened") == 1
    assert b"Traceback" not in done.stderr
