"""Who watches a chat on a cluster, and what was shown compared with the journal."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec
import trio
import trio_websocket
from cluster import SETTLED_S, Node

from penstock.journal.position import Position
from penstock.wire.sse_parser import SseParser

PATIENCE_S = 3.0
"""Of a viewer with one connection: a node that is paused says nothing."""
_TERMINAL = re.compile(r'"type":"(?:finish|error)"')


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
        self.gaps = 0
        """How often it was told of one."""
        self.told: list[dict[str, Any]] = []
        """Why a connection ended, where it was said."""

    async def run(self) -> None:
        """Watch, and come back whenever it breaks off."""
        first = True
        while self.ended is None:
            node = self._nodes[0] if first else self._dice.choice(self._nodes)
            first = False
            with trio.move_on_after(PATIENCE_S):
                try:
                    await self._watch(node)
                except* (
                    OSError,
                    trio.BrokenResourceError,
                    trio_websocket.ConnectionClosed,
                    trio_websocket.HandshakeError,
                ):
                    pass
            await trio.sleep(self._dice.uniform(0.02, 0.2))

    async def _watch(self, node: Node) -> None:
        raise NotImplementedError

    def take(self, event: str, id: str, data: str) -> None:
        """Note an event."""
        if event == "chunk":
            self.seen.append((Position.parse(id), data))
        elif event == "closing":
            self.told.append(msgspec.json.decode(data))
        elif event in ("gap", "snapshot"):
            self.seen.append(None)
            self.gaps += event == "gap"
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
        stream = await trio.open_tcp_stream("127.0.0.1", node.port)
        # Not `open_websocket`, which leaves the socket of a refused handshake open.
        async with stream, trio.open_nursery() as nursery:
            socket = await trio_websocket.wrap_client_stream(nursery, stream, "127.0.0.1", "/api/chat/ws")
            after = {"after": self._last} if self._last else {}
            await socket.send_message(
                msgspec.json.encode({"type": "watch", "requestId": "w", "id": self._chat, **after}).decode()
            )
            await self._take_frames(socket)
            nursery.cancel_scope.cancel()

    async def _take_frames(self, socket: trio_websocket.WebSocketConnection) -> None:
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


async def until_shown(viewers: Sequence[Viewer], count: int) -> None:
    """Wait until each was shown more than so much."""
    with trio.fail_after(10):
        while not all(len(viewer.seen) > count for viewer in viewers):
            await trio.sleep(0.02)


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
    assert [data for data in journal if _TERMINAL.search(data)] == journal[-1:], (chat, turn, journal[-3:])
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
            if _TERMINAL.search(data):
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
