"""Three nodes on one engine, Redis or NATS: real processes, of which one reaches the engine by a link that can be cut."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, NamedTuple

import httpx2
import msgspec
import pytest
import trio
from cluster_node import LEASE_S, PAUSE_S
from link import Link, open_link

from engine_server import EngineServer
from nats_server import running_nats
from parts import free_port
from penstock.testing import user_message
from redis_server import running_redis

SETTLED_S = 4 * LEASE_S + PAUSE_S + 6
"""After what happened, until a turn has ended."""


class Nursery:
    """Makes the nodes' processes; see `cluster_node.py`."""

    def __init__(self, questions: IO[str], answers: IO[str]) -> None:
        self._questions = questions
        self._answers = answers

    def fork(self, journal: str, port: int) -> int:
        """Start a node, and return a file descriptor of its process."""
        self._questions.write(f"{journal} {port}\n")
        self._questions.flush()
        return os.pidfd_open(int(self._answers.readline()))


class Node:
    """A node's process, which can be killed and started again on the same port."""

    client: httpx2.AsyncClient
    """Of the test that runs."""

    def __init__(self, nursery: Nursery, journal: str) -> None:
        self._nursery = nursery
        self._journal = journal
        self._process: int | None = None
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/chat"

    def spawn(self) -> None:
        """Start it, if it does not run."""
        if self._process is None:
            self._process = self._nursery.fork(self._journal, self.port)

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self.spawn()
        await self.until_ready(503)

    async def until_ready(self, *otherwise: int) -> None:
        """Wait until it is ready, or answers with one of the other statuses."""
        with trio.fail_after(30):
            while True:
                try:
                    if await self.ready() in (200, *otherwise):
                        return
                except httpx2.HTTPError:
                    pass
                await trio.sleep(0.02)

    async def ready(self) -> int:
        """Return what it answers when it is asked whether it is ready."""
        return (await self.ask("GET", "../../health/ready")).status_code

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        signal.pidfd_send_signal(self._process, number)

    def kill(self) -> None:
        """Kill it: nothing is written any more."""
        if self._process is not None:
            with suppress(ProcessLookupError):
                self.signal(signal.SIGKILL)
            self.wait()

    def wait(self) -> None:
        """Wait until it has ended."""
        assert self._process is not None
        assert select.select([self._process], [], [], 10)[0]
        os.close(self._process)
        self._process = None

    async def answer(self, chat: str, words: str) -> httpx2.Response:
        """Ask something, and return the answer when it has ended."""
        body = {"id": chat, "messages": [msgspec.to_builtins(user_message(words))]}
        return await self.client.post(self.url, json=body)

    async def post(self, chat: str, words: str) -> str:
        """Ask something, and return the stream when it has ended."""
        return (await self.answer(chat, words)).text

    async def ask(self, method: str, path: str, body: Any = None) -> httpx2.Response:
        """Ask for something that is no stream."""
        return await self.client.request(method, f"{self.url}/{path}", json=body)


class Cluster(NamedTuple):
    """An engine and the nodes A, B and C on it; A by the link."""

    engine: EngineServer
    link: Link
    nodes: list[Node]


class Machines(NamedTuple):
    """The same between tests."""

    engine: EngineServer
    link_port: int
    nodes: list[Node]


@pytest.fixture(scope="session")
def node_nursery() -> Iterator[Nursery]:
    """What starts nodes."""
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("cluster_node.py"))],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        yield Nursery(process.stdin, process.stdout)


@pytest.fixture(scope="module", params=[running_redis, running_nats], ids=["redis", "nats"])
def machines(request: pytest.FixtureRequest, node_nursery: Nursery) -> Iterator[Machines]:
    """The processes, for all tests of a module."""
    with request.param() as engine:
        port = free_port()
        journals = [engine.url(port=port), engine.url(), engine.url()]
        nodes = [Node(node_nursery, journal) for journal in journals]
        try:
            yield Machines(engine, port, nodes)
        finally:
            for node in nodes:
                node.kill()


@pytest.fixture
async def cluster(machines: Machines) -> AsyncIterator[Cluster]:
    """A cluster that is whole."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(timeout=20 + PAUSE_S, trust_env=False, verify=False, limits=limits) as client,
        open_link(machines.link_port, machines.engine.port) as link,
    ):
        machines.engine.start()
        for node in machines.nodes:
            node.client = client
            node.spawn()
        for node in machines.nodes:
            await node.until_ready()
        yield Cluster(machines.engine, link, machines.nodes)


async def until(ready: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that is sure to come."""
    with trio.fail_after(10):
        while not await ready():
            await trio.sleep(0.02)
