"""WebSocket clients that are none of ours: npm `ws`, Python `websockets`, Chromium. Each its own process."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio
from chat_socket import chat_server

from parts import require
from penstock import Turn, chat_app

TESTS = Path(__file__).parent.parent


@pytest.fixture
def command(request: pytest.FixtureRequest) -> list[str]:
    """How to start a client, but for the server's address."""
    if request.param == "websockets":
        return [sys.executable, str(TESTS / "sockets" / "plain_socket.py"), "ws://{}/api/chat/ws"]
    node = shutil.which("node")
    require("Node", "apt-get install nodejs npm", node is not None)
    assert node is not None
    if request.param == "ws":
        require("ws", "npm ci in tests/aisdk", (TESTS / "aisdk/node_modules/ws").is_dir())
        return [node, str(TESTS / "aisdk" / "plain_socket.mjs"), "ws://{}/api/chat/ws"]
    chromium = shutil.which("chromium")
    require("Chromium", "apt-get install chromium", chromium is not None)
    require("playwright-core", "npm ci in tests/browser", (TESTS / "browser/node_modules").is_dir())
    assert chromium is not None
    return [node, str(TESTS / "browser" / "socket.mjs"), "http://{}/", chromium]


async def answer(turn: Turn) -> None:
    """Words, and one message longer than what 16 bits can say."""
    async with turn.text() as text:
        for word in ("Hello", ", ", "é" * 40_000, "."):
            await text.write(word)


@pytest.mark.parametrize(
    ("command", "deflates"),
    [("ws", False), ("ws", True), ("websockets", False), ("websockets", True), ("Chromium", True)],
    indirect=["command"],
)
async def test_a_peer_sends_resumes_and_is_closed_politely(command: list[str], deflates: bool) -> None:
    """All of them offer to compress; where that is taken up, what they say and hear is the same.

    Chromium without it is in `tests/examples/test_react.py`.
    """
    async with chat_server(chat_app(answer), ws_deflate=deflates) as server:
        address = f"127.0.0.1:{server.port}"
        line = [part.format(address) for part in command]
        async with trio.open_nursery() as nursery:
            start = partial(
                trio.run_process, line, stdout=subprocess.PIPE, stderr=subprocess.PIPE, check=False
            )
            process: trio.Process = await nursery.start(start)
            with trio.fail_after(30):
                said = await read_line(process)
                assert said == b"ready"
                server.shutdown.set()
                seen = json.loads(await read_line(process))
    check(seen, deflates)


def check(seen: dict[str, Any], deflates: bool) -> None:
    """Check what a client saw."""
    assert (seen["code"], seen["reason"]) == (1001, "drain")
    assert seen["protocol"] == "chat"
    assert ("permessage-deflate" in seen["extensions"]) is deflates
    assert seen["pongs"] == ["there?"]
    first, second = ([frame for frame in seen["frames"] if frame["requestId"] == each] for each in "12")
    chunks = [[frame["chunk"] for frame in frames[1:-1]] for frames in (first, second)]
    assert "".join(chunk.get("delta", "") for chunk in chunks[0]) == f"Hello, {'é' * 40_000}."
    assert chunks[1] == chunks[0][3:]
    assert seen["frames"][-1]["type"] == "closing"
    assert seen.get("wasClean", True)


async def read_line(process: trio.Process) -> bytes:
    """Read a line of what a process says."""
    assert process.stdout is not None
    line = b""
    while not line.endswith(b"\n"):
        data = await process.stdout.receive_some(1 << 20)
        if not data:
            assert process.stderr is not None
            raise EOFError((await process.stderr.receive_some()).decode())
        line += data
    return bytes(line[:-1])
