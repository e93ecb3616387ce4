"""A Redis of the tests' own: a real process on a free port of the loopback, in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager

from parts import require


class RedisServer:
    """A Redis. Everything that it is asked to keep is on its disk before it answers."""

    def __init__(self, folder: str, *options: str) -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    def url(self, prefix: str = "penstock:") -> str:
        """Return a journal's URL."""
        return f"redis://127.0.0.1:{self.port}/0?prefix={prefix}"

    def start(self) -> None:
        """Start it, or start it again with what it had, and wait until it answers."""
        self._process = subprocess.Popen(
            [
                "redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder,
                "--save", "", "--appendonly", "yes", "--appendfsync", "always",
                *self._options,
            ],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        for _ in range(500):
            try:
                if self.command("PING") == b"+PONG\r\n":
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("redis-server did not start")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal."""
        assert self._process is not None
        self._process.send_signal(number)

    def kill(self) -> None:
        """Kill it: nothing is written any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def keep(self) -> None:
        """Copy what is on its disk now, for `set_back`."""
        shutil.rmtree(f"{self._folder}/kept", ignore_errors=True)
        shutil.copytree(f"{self._folder}/appendonlydir", f"{self._folder}/kept")

    def set_back(self) -> None:
        """Kill it, and start it with what it had at the time of `keep`, as a failover may."""
        self.kill()
        shutil.rmtree(f"{self._folder}/appendonlydir")
        shutil.move(f"{self._folder}/kept", f"{self._folder}/appendonlydir")
        self.start()

    def command(self, *words: str) -> bytes:
        """Send it a command, from outside of everything that is tested, and return the answer as it comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return sock.recv(65536)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a Redis, with further options. Leaving the block kills it."""
    require("redis-server", "apt-get install redis-server", shutil.which("redis-server") is not None)
    folder = tempfile.mkdtemp(prefix=f"penstock-redis-{os.getpid()}-")
    server = RedisServer(folder, *options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)
