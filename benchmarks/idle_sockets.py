"""Memory of an idle connection: a WebSocket beside a stream of server-sent events, measured in new server processes.

usage: python benchmarks/idle_sockets.py [COUNT]     2,000 connections of each kind; half a minute; needs Linux
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

COUNT = 2_000
SETTLE_S = 1.0
HANDSHAKE = (
    b"GET /api/chat/ws HTTP/1.1\r\nhost: x\r\nupgrade: websocket\r\nconnection: Upgrade\r\n"
    b"sec-websocket-key: dGhlIHNhbXBsZSBub25jZQ==\r\nsec-websocket-version: 13\r\n"
    b"sec-websocket-extensions: permessage-deflate; client_max_window_bits\r\n\r\n"
)
WATCH = b'{"type":"watch","requestId":"w","id":"c"}'

KINDS: dict[str, tuple[tuple[str, ...], bytes, bytes, bytes, bytes]] = {
    # options of the server, first bytes, what ends their answer, more bytes, what ends that
    "SSE, which watches": ((), b"GET /api/chat/c/watch HTTP/1.1\r\nhost: x\r\n\r\n", b"messages", b"", b""),
    "WebSocket": ((), HANDSHAKE, b"\r\n\r\n", b"", b""),
    "WebSocket, --ws-deflate": (("--ws-deflate",), HANDSHAKE, b"deflate", b"", b""),
    "WebSocket, which watches": ((), HANDSHAKE, b"\r\n\r\n", WATCH, b"messages"),
    "WebSocket, which watches, --ws-deflate": (("--ws-deflate",), HANDSHAKE, b"deflate", WATCH, b"messages"),
}


@contextmanager
def serving(*options: str) -> Iterator[tuple[int, int]]:
    """Start a server, and yield its pid and its port."""
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--journal", "memory:", *options]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        found = re.search(r":(\d+) ", process.stderr.readline())
        assert found is not None
        yield process.pid, int(found[1])
    finally:
        process.kill()
        process.communicate()


def resident_kb(pid: int) -> float:
    """The memory of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 1_000


def ask(client: socket.socket, data: bytes, mark: bytes) -> None:
    """Send, and read to a mark."""
    client.sendall(data)
    seen = b""
    while mark not in seen:
        piece = client.recv(1 << 16)
        assert piece, seen
        seen += piece


def measure(kind: str, count: int) -> float:
    """Return the kB of one idle connection."""
    options, first, first_mark, more, more_mark = KINDS[kind]
    masked = bytes([0x81, 0x80 | len(more)]) + bytes(4) + more
    with serving(*options) as (pid, port), ExitStack() as clients:

        def connect() -> None:
            client = clients.enter_context(socket.create_connection(("127.0.0.1", port)))
            ask(client, first, first_mark)
            if more:
                ask(client, masked, more_mark)

        for _ in range(100):
            connect()
        time.sleep(SETTLE_S)
        before = resident_kb(pid)
        for _ in range(count):
            connect()
        time.sleep(SETTLE_S)
        return (resident_kb(pid) - before) / count


def main() -> None:
    """Print a line for each kind."""
    count = int(sys.argv[1]) if len(sys.argv) > 1 else COUNT
    first: float | None = None
    for kind in KINDS:
        kb = measure(kind, count)
        first = first or kb
        print(f"{kind:40} {kb:6.1f} kB  {kb / first:5.2f}")


if __name__ == "__main__":
    main()
