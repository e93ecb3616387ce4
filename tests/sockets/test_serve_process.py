"""`penstock serve` as a process: options and signals that only a process has."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest
import trio
from chat_socket import ChatSocket, handshake
from raw import RawClient


@pytest.fixture
def served() -> Iterator[tuple[subprocess.Popen[str], int]]:
    """A server with compression; its process and port."""
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--journal", "memory:"]
    process = subprocess.Popen([*command, "--ws-deflate"], stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r":(\d+) ", process.stderr.readline())
        assert found is not None
        yield process, int(found[1])
    finally:
        process.kill()
        process.communicate()


async def test_compression_is_an_option_and_a_restart_a_signal(
    served: tuple[subprocess.Popen[str], int],
) -> None:
    process, port = served
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    async with stream:
        await stream.send_all(handshake(sec_websocket_extensions="permessage-deflate"))
        client = ChatSocket(RawClient(stream, stream.socket))
        await client.accepted()
        assert "permessage-deflate" in client.headers["sec-websocket-extensions"]
        process.send_signal(signal.SIGHUP)
        assert await client.end() == (1012, "restart")
    with trio.fail_after(5):
        while process.poll() is None:
            await trio.sleep(0.01)
    assert process.returncode == 0
