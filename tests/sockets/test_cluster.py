"""Three nodes on one Redis: what is asked of one reaches the others, and what breaks is told, never hidden.

PENSTOCK_FAULTS=200 has so many of them; the seed is printed, and PENSTOCK_SEED repeats it.
"""

from __future__ import annotations

import os
import random
import re
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest
import trio
import trio_websocket
from cluster_node import GRACE_S, LEASE_S
from link import Link, open_link
from test_crash import free_port

from penstock.journal.position import Position
from penstock.testing import user_message
from penstock.wire.sse_parser import SseParser
from redis_server import RedisServer, running_redis

FAULTS = int(os.environ.get("PENSTOCK_FAULTS", "4"))
PATIENCE_S = 3.0
"""Of a viewer with one connection: a node that is paused says nothing."""
SETTLED_S = 4 * LEASE_S + 8
NODE = Path(__file__).with_name("cluster_node.py")
TERMINAL = re.compile(r'"type":"(?:finish|error)"')


class Node:
    """A node's process, which can be killed and started again on the same port."""

    client: httpx2.AsyncClient
    """Of the test that runs."""

    def __init__(self, journal: str) -> None:
        self.journal = journal
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}/api/chat"
        self._process: subprocess.Popen[bytes] | None = None

    def spawn(self) -> None:
        """Start it, if it does not run."""
        if self._process is None:
            self._process = subprocess.Popen(
                [sys.executable, str(NODE), self.journal, str(self.port)], stdout=subprocess.PIPE
            )

    async def start(self) -> None:
        """Start it, and wait until it serves."""
        self.spawn()
        await self.until_ready(503)

    async def until_ready(self, *otherwise: int) -> None:
        """Wait until it is ready, or answers with one of the other statuses."""
        with trio.fail_after(30):
            while True:
                try:
                    status = (await self.ask("GET", "../../health/ready")).status_code
                    if status in (200, *otherwise):
                        return
                except httpx2.HTTPError:
                    pass
                await trio.sleep(0.02)

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it: nothing is written any more."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            assert self._process.stdout is not None
            self._process.stdout.close()
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


class Machines(NamedTuple):
    """A Redis and the nodes A, B and C on it; A by a link."""

    redis: RedisServer
    link_port: int
    nodes: list[Node]


@pytest.fixture(scope="module")
def machines() -> Iterator[Machines]:
    """The processes, for all tests here: it takes seconds to start them."""
    with running_redis() as redis:
        port = free_port()
        url = redis.url()
        nodes = [Node(url.replace(str(redis.port), str(port), 1)), Node(url), Node(url)]
        try:
            yield Machines(redis, port, nodes)
        finally:
            for node in nodes:
                node.kill()


class Cluster(NamedTuple):
    """The same with A's link, which can be cut."""

    redis: RedisServer
    link: Link
    nodes: list[Node]


@pytest.fixture
async def cluster(machines: Machines) -> AsyncIterator[Cluster]:
    """A cluster that is whole."""
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=0)
    async with (
        httpx2.AsyncClient(timeout=20, trust_env=False, verify=False, limits=limits) as client,
        open_link(machines.link_port, machines.redis.port) as link,
    ):
        for node in machines.nodes:
            node.client = client
            node.spawn()
        for node in machines.nodes:
            await node.until_ready()
        yield Cluster(machines.redis, link, machines.nodes)


class Viewer:
    """Watches a chat to the end of its turn, from one node after the other, and keeps what it was shown.

    What it keeps are `(position, JSON)` of chunks, and None where it was told that what follows is not the continuation.
    """

    def __init__(self, nodes: list[Node], chat: str, dice: random.Random) -> None:
        self._nodes = nodes
        self._chat = chat
        self._dice = dice
        self._last = ""
        self.seen: list[tuple[Position, str] | None] = []
        self.ended: str | None = None
        """The state in which the turn was shown last."""
        self.pauses: list[float] = []
        self._heard_at = 0.0

    async def run(self) -> None:
        """Watch, and come back whenever it breaks off."""
        first = True
        while self.ended is None:
            node = self._nodes[0] if first else self._dice.choice(self._nodes)
            first = False
            with trio.move_on_after(PATIENCE_S):
                try:
                    await self._watch(node)
                except (
                    OSError,
                    trio.BrokenResourceError,
                    trio_websocket.ConnectionClosed,
                    trio_websocket.ConnectionTimeout,
                    trio_websocket.DisconnectionTimeout,
                    trio_websocket.HandshakeError,
                ):
                    pass
            await trio.sleep(self._dice.uniform(0.02, 0.2))

    async def _watch(self, node: Node) -> None:
        raise NotImplementedError

    def take(self, event: str, id: str, data: str) -> None:
        """Note an event."""
        now = time.perf_counter()
        if event == "chunk":
            if self._heard_at:
                self.pauses.append(now - self._heard_at)
            self._heard_at = now
            self.seen.append((Position.parse(id), data))
        elif event in ("gap", "snapshot"):
            self.seen.append(None)
            if event == "snapshot":
                turn = msgspec.json.decode(data)["turn"]
                if turn is not None and turn["state"] != "running":
                    self.ended = turn["state"]
        elif event == "message" and msgspec.json.decode(data)["role"] == "assistant":
            self.ended = "message"
        if id:
            self._last = id


class SseViewer(Viewer):
    """Over SSE."""

    async def _watch(self, node: Node) -> None:
        after = f"?after={self._last}" if self._last else ""
        parser = SseParser()
        stream = await trio.open_tcp_stream("127.0.0.1", node.port)
        async with stream:
            # HTTP/1.0, so that the body is just what follows the head.
            await stream.send_all(f"GET /api/chat/{self._chat}/watch{after} HTTP/1.0\r\n\r\n".encode())
            head = b""
            while b"\r\n\r\n" not in head:
                data = await stream.receive_some()
                if not data:
                    return
                head += data
            head, _, data = head.partition(b"\r\n\r\n")
            if b" 200 " not in head:
                return
            while self.ended is None:
                for event in parser.feed(data):
                    if self.ended is None:
                        self.take(event.event, event.last_event_id, event.data)
                if self.ended is None and not (data := await stream.receive_some()):
                    return


class WebSocketViewer(Viewer):
    """Over a WebSocket."""

    async def _watch(self, node: Node) -> None:
        async with trio_websocket.open_websocket(
            "127.0.0.1", node.port, "/api/chat/ws", use_ssl=False, connect_timeout=5, disconnect_timeout=0.2
        ) as socket:
            after = {"after": self._last} if self._last else {}
            await socket.send_message(
                msgspec.json.encode({"type": "watch", "requestId": "w", "id": self._chat, **after}).decode()
            )
            while self.ended is None:
                for line in (await socket.get_message()).splitlines():
                    frame = msgspec.json.decode(line, type=_Frame)
                    if frame.type == "error":
                        return
                    if frame.type == "event":
                        self.take(frame.event, frame.position, bytes(frame.data).decode())


class _Frame(msgspec.Struct):
    type: str
    event: str = ""
    position: str = ""
    data: msgspec.Raw = msgspec.Raw(b"null")


async def settled(nodes: list[Node], chat: str) -> dict[str, Any] | None:
    """Return a chat's turn once it has ended; None if there never was one."""
    with trio.fail_after(SETTLED_S):
        while True:
            for node in nodes:
                try:
                    answer = await node.ask("GET", chat)
                except httpx2.HTTPError:
                    continue
                if answer.status_code == 404:
                    return None
                if answer.status_code == 200 and (turn := answer.json()["turn"])["state"] != "running":
                    return dict(turn)
            await trio.sleep(0.05)


async def check(
    nodes: list[Node], chat: str, turn: dict[str, Any], viewers: list[Viewer], posted: list[str]
) -> None:
    """Compare what was shown with the journal: no silent gap, no second end, no polite end of what has none."""
    response = await nodes[0].ask("GET", f"{turn['id']}/stream?startIndex=0")
    events = [event for event in SseParser().feed(response.content) if event.data != "[DONE]"]
    journal = [event.data for event in events]
    assert [data for data in journal if TERMINAL.search(data)] == journal[-1:], (chat, turn, journal[-3:])
    words = [msgspec.json.decode(data)["delta"] for data in journal if '"type":"text-delta"' in data]
    assert words == [f"{number} " for number in range(len(words))]
    shown: dict[Position, str] = {}
    for viewer in viewers:
        before: Position | None = None
        for seen in viewer.seen:
            if seen is None:
                before = None
                continue
            position, data = seen
            if before is not None:
                assert position.offset == before.offset + 1, (chat, before, position)
                assert position.epoch >= before.epoch
            before = position
            assert shown.setdefault(position, data) == data, (chat, position)
            if TERMINAL.search(data):
                assert data == journal[-1]
                assert position.offset == len(journal) - 1
    last = Position.parse(turn["position"])
    for position, data in shown.items():
        if position.epoch == last.epoch:
            assert data == journal[position.offset], (chat, position)
    for text in posted:
        chunks = [event.data for event in SseParser().feed(text.encode())]
        if chunks[-1:] == ["[DONE]"]:
            assert chunks[-2] == journal[-1], (chat, turn, chunks[-3:], journal[-3:])


async def _posted(node: Node, chat: str, words: str, answers: list[str]) -> None:
    try:
        answers.append(await node.post(chat, words))
    except httpx2.HTTPError:
        pass


async def until(ready: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that is sure to come."""
    with trio.fail_after(10):
        while not await ready():
            await trio.sleep(0.02)


async def test_any_node_takes_any_request(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    dice = random.Random(1)

    async with trio.open_nursery() as nursery:
        # Who watches before anything began is shown it, from whichever node.
        early: list[Viewer] = [SseViewer([b], "one", dice), WebSocketViewer([c], "one", dice)]
        for viewer in early:
            nursery.start_soon(viewer.run)
        await trio.sleep(0.3)
        posted: list[str] = []
        nursery.start_soon(_posted, a, "one", "count 500 0.01", posted)

        async def shown() -> bool:
            return all(len(viewer.seen) > 20 for viewer in early)

        await until(shown)
        late = SseViewer([c], "one", dice)
        nursery.start_soon(late.run)
        await trio.sleep(0.2)
        began = trio.current_time()
        assert (await c.ask("POST", "one/stop", {"reason": "enough"})).json() == {"state": "stopped"}
        assert trio.current_time() - began < 0.5, "the owner has heard of it"
    turn = await settled([b], "one")
    assert turn is not None
    assert turn["position"].split(".")[-1].startswith("1-"), "the owner ended it itself"
    await check([b], "one", turn, [*early, late], posted)
    assert '"type":"abort"' in posted[0]
    assert "enough" in posted[0]
    assert all(viewer.seen[0] is None and None not in viewer.seen[1:] for viewer in early)

    # A question that a producer waits for is answered on another node, once.
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_posted, a, "two", "ask", posted)
        found: list[str] = []

        async def asked() -> bool:
            state = (await b.ask("GET", "two")).text
            found[:] = re.findall(r'"approval":\{"id":"(\w+)"', state)
            return bool(found)

        await until(asked)
        path = f"two/approvals/{found[0]}"
        assert (await b.ask("POST", "two/approvals/none", {"approved": True})).status_code == 404
        said = await b.ask("POST", path, {"approved": True, "reason": "go"})
        assert (said.status_code, said.text) == (200, '{"decision":"approved"}')
        assert (await c.ask("POST", path, {"approved": False})).status_code in (404, 409)
    assert '"why":"go"' in posted[1]


async def test_an_owner_that_does_not_stop_is_overruled_and_refused(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    posted: list[str] = []
    async with trio.open_nursery() as nursery:
        nursery.start_soon(_posted, a, "stubborn", "count 1000 0.01", posted)

        async def begun() -> bool:
            answer = await b.ask("GET", "stubborn")
            return answer.status_code == 200 and answer.json()["turn"]["position"] is not None

        await until(begun)
        a.signal(signal.SIGSTOP)
        began = trio.current_time()
        stopped = await b.ask("POST", "stubborn/stop")
        assert stopped.json()["state"] in ("stopped", "lost")
        assert trio.current_time() - began < 2.5
        turn = await settled([b], "stubborn")
        a.signal(signal.SIGCONT)
    assert turn is not None
    await trio.sleep(0.3)
    assert await settled([b], "stubborn") == turn
    await check([b], "stubborn", turn, [], posted)


async def test_without_a_journal_a_node_waits_for_it_and_says_so(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    health = "../../health"
    cluster.redis.kill()
    a.kill()
    await a.start()  # it has `degraded`
    assert (await a.ask("GET", f"{health}/live")).status_code == 200
    assert (await a.ask("GET", f"{health}/ready")).status_code == 503
    refused = await a.answer("early", "pid")
    assert refused.status_code == 503
    assert refused.headers["retry-after"]

    async def unready() -> bool:
        return (await b.ask("GET", f"{health}/ready")).status_code == 503

    await until(unready)  # which was there before
    await trio.to_thread.run_sync(cluster.redis.start)

    async def ready() -> bool:
        return all([(await node.ask("GET", f"{health}/ready")).status_code == 200 for node in (a, b)])

    await until(ready)
    assert "pid=" in await a.post("early", "pid")


async def test_a_turn_goes_on_from_memory_for_a_grace_and_then_fails(cluster: Cluster) -> None:
    a, b, _ = cluster.nodes
    posted: dict[str, list[str]] = {"short": [], "long": []}
    dice = random.Random(2)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            for chat, words in (("short", "count 150 0.01"), ("long", "count 2000 0.01")):
                nursery.start_soon(_posted, a, chat, words, posted[chat])
            await trio.sleep(0.3)
            viewer = SseViewer([a], "long", dice)
            nursery.start_soon(viewer.run)
            await trio.sleep(0.2)
            cluster.redis.kill()
            await trio.sleep(GRACE_S - 1)
            before = len(viewer.seen)
            assert before > 100, "it is shown what is not stored"
            await trio.sleep(1.6)
            assert not any(posted.values()), "no end is shown before it is stored"
            await trio.to_thread.run_sync(cluster.redis.start)
        short, long = await settled([b], "short"), await settled([b], "long")
    assert short is not None
    assert long is not None
    assert (short["state"], long["state"]) == ("finished", "failed")
    degraded = [re.findall(r'"type":"data-degraded","data":(\{[^}]*\})', text) for [text] in posted.values()]
    assert [found[0] for found in degraded] == ['{"journal":"away"}'] * 2
    assert "could not be stored" in posted["long"][0]
    await check([b], "long", long, [viewer], posted["long"])
    await check([b], "short", short, [], posted["short"])
    assert None not in viewer.seen[1:]


async def test_a_redis_that_lost_everything_ends_what_it_does_not_know(cluster: Cluster) -> None:
    a, b, c = cluster.nodes
    posted: list[str] = []
    dice = random.Random(3)
    with trio.fail_after(30):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_posted, a, "gone", "count 2000 0.01", posted)
            await trio.sleep(0.3)
            viewers: list[Viewer] = [SseViewer([b], "gone", dice), WebSocketViewer([a, c], "gone", dice)]
            for viewer in viewers:
                nursery.start_soon(viewer.run)
            await trio.sleep(0.3)
            assert all(viewer.seen[0] is None and len(viewer.seen) > 10 for viewer in viewers)
            await trio.to_thread.run_sync(cluster.redis.command, "FLUSHALL")

            async def told() -> bool:
                return all(None in viewer.seen[1:] for viewer in viewers)

            await until(told)
            # Whoever comes back is told that it is gone, and the chat can be used again.
            assert (await c.ask("GET", "gone")).status_code == 404
            assert "pid=" in await a.post("gone", "pid")
    assert not posted, "the stream was cut, not ended"


async def fault_none(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """Nothing breaks; somebody stops a turn."""
    await trio.sleep(dice.uniform(0, 0.5))
    await dice.choice(cluster.nodes).ask("POST", f"{chat}/stop")


async def fault_owner_killed(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """`kill -9` of the owner."""
    cluster.nodes[0].kill()
    await trio.sleep(dice.uniform(0, 0.5))
    await cluster.nodes[0].start()


async def fault_owner_paused(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The owner sleeps, for longer than its lease or not."""
    cluster.nodes[0].signal(signal.SIGSTOP)
    await trio.sleep(dice.uniform(0.1, 2 * LEASE_S))
    cluster.nodes[0].signal(signal.SIGCONT)


async def fault_redis_paused(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """Redis sleeps."""
    cluster.redis.signal(signal.SIGSTOP)
    await trio.sleep(dice.uniform(0.1, 2 * LEASE_S))
    cluster.redis.signal(signal.SIGCONT)


async def fault_redis_killed(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """`kill -9` of Redis, which has everything on its disk."""
    cluster.redis.kill()
    await trio.sleep(dice.uniform(0, LEASE_S))
    await trio.to_thread.run_sync(cluster.redis.start)


async def fault_link_cut(cluster: Cluster, chat: str, dice: random.Random) -> None:
    """The owner does not reach Redis, the others do."""
    cluster.link.cut()
    await trio.sleep(dice.uniform(0.1, 2 * LEASE_S))
    if dice.random() < 0.5:
        cluster.link.reset()
    cluster.link.mend()


Fault = Callable[[Cluster, str, random.Random], Awaitable[None]]
ALL_FAULTS: list[Fault] = [
    fault_owner_killed,
    fault_redis_paused,
    fault_link_cut,
    fault_redis_killed,
    fault_owner_paused,
    fault_none,
]


async def one_fault(cluster: Cluster, run: int, fault: Fault, dice: random.Random) -> list[str]:
    """Run turns and viewers through one fault, and check what they saw. Returns how the turns ended."""
    chats = [f"chat-{i}-{run}" for i in range(4)]
    viewers: dict[str, list[Viewer]] = {}
    posted: dict[str, list[str]] = {chat: [] for chat in chats}
    with trio.fail_after(3 * SETTLED_S):
        async with trio.open_nursery() as nursery:
            for chat in chats:
                viewers[chat] = [
                    SseViewer(cluster.nodes, chat, dice),
                    SseViewer(cluster.nodes[1:], chat, dice),
                    WebSocketViewer(cluster.nodes[1:][::-1], chat, dice),
                ]
                words = f"count {dice.randrange(20, 120)} 0.01"
                nursery.start_soon(_posted, cluster.nodes[0], chat, words, posted[chat])
            await trio.sleep(0.1)
            async with trio.open_nursery() as watching:
                for chat in chats:
                    for viewer in viewers[chat]:
                        watching.start_soon(viewer.run)
                await trio.sleep(dice.uniform(0, 0.5))
                await fault(cluster, chats[0], dice)
                turns = {chat: await settled(cluster.nodes, chat) for chat in chats}
                if None in turns.values():
                    # It never began, so nobody is ever shown its end.
                    await trio.sleep(0.3)
                    watching.cancel_scope.cancel()
            nursery.cancel_scope.deadline = trio.current_time() + 3
    outcomes = []
    for chat, turn in turns.items():
        if turn is None:
            assert all(seen is None for viewer in viewers[chat] for seen in viewer.seen)
        else:
            await check(cluster.nodes, chat, turn, viewers[chat], posted[chat])
            outcomes.append(turn["state"])
    return outcomes


async def test_faults_at_random_points(cluster: Cluster) -> None:
    seed = int(os.environ.get("PENSTOCK_SEED", str(random.randrange(1 << 32))))
    print(f"PENSTOCK_SEED={seed}")
    dice = random.Random(seed)
    for run in range(FAULTS):
        fault = ALL_FAULTS[run % len(ALL_FAULTS)]
        began = trio.current_time()
        outcomes = await one_fault(cluster, run, fault, dice)
        print(run, fault.__name__, *sorted(outcomes), f"{trio.current_time() - began:.1f} s")
        assert set(outcomes) <= {"finished", "lost", "stopped"}
