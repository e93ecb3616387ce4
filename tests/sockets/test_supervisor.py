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
from click.testing import CliRunner

from penstock.cli import main
from penstock.testing import user_message

HERE = Path(__file__).parent


class Cluster:
    """A supervisor and its workers."""

    def __init__(self, process: trio.Process, port: int, client: httpx2.AsyncClient) -> None:
        self.process = process
        self._client = client
        self.port = port
        self.url = f"http://127.0.0.1:{port}/api/chat"

    def workers(self) -> set[int]:
        """Process ids of the workers, whatever they are doing."""
        found = Path(f"/proc/{self.process.pid}/task").glob("*/children")
        return {int(pid) for children in found for pid in children.read_text().split()}

    async def say(self, words: str) -> str:
        """Ask a new chat on a new connection, and return the text of the answer."""
        body = {"id": secrets.token_hex(8), "messages": [msgspec.to_builtins(user_message(words))]}
        response = await self._client.post(self.url, json=body)
        assert response.status_code == 200
        return "".join(re.findall(r'"delta":"([^"]*)"', response.text))

    async def pid(self) -> int:
        """Return which worker takes a new connection."""
        return int((await self.say("pid")).removeprefix("pid="))


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
        cluster = Cluster(process, int(found[1]), client)

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


async def test_a_worker_that_is_killed_or_stuck_is_not_missed_and_a_reload_loses_nobody(journal: str) -> None:
    async with running("--journal", journal, "--drain-s", "2") as cluster:
        old = cluster.workers()
        assert len(old) == 2
        assert {await cluster.pid() for _ in range(20)} == old

        # A connection that the kernel gives to a worker which can't take it is another's a moment later.
        stopped = min(old)
        os.kill(stopped, signal.SIGSTOP)
        began = trio.current_time()
        assert {await cluster.pid() for _ in range(12)} <= old - {stopped}
        assert trio.current_time() - began < 12 * 0.5
        os.kill(stopped, signal.SIGKILL)
        assert stopped not in {await cluster.pid() for _ in range(12)}
        with trio.fail_after(15):
            while len(cluster.workers()) < 2 or stopped in cluster.workers():
                await trio.sleep(0.02)
            newcomer = cluster.workers() - old
            while not newcomer & {await cluster.pid()}:
                pass

        # While the workers are replaced: somebody watches, a turn runs on, and others come and go.
        async with trio.open_nursery() as nursery:
            told: list[Any] = []
            long: list[str] = []

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
            before = cluster.workers()
            cluster.process.send_signal(signal.SIGHUP)
            with trio.fail_after(20):
                while cluster.workers() & before:
                    assert len(cluster.workers()) >= 2
                    await cluster.pid()
            assert len(cluster.workers()) == 2
        assert '"reason":"drain","reconnect":true' in told[0]
        assert long == ["".join(f"{number} " for number in range(100))]

        cluster.process.send_signal(signal.SIGTERM)
        with trio.fail_after(10):
            await cluster.process.wait()
        assert cluster.process.returncode == 0
        assert not cluster.workers()
        with pytest.raises(OSError, match=r"[Cc]onnect"):
            await trio.open_tcp_stream("127.0.0.1", cluster.port)


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
