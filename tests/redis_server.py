"""A Redis of the tests' own."""

from __future__ import annotations

import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from engine_server import EngineServer, running
from parts import require


class RedisServer(EngineServer):
    """A Redis. Everything that it is asked to keep is on its disk before it answers."""

    stored = "appendonlydir"

    def __init__(self, folder: str, *options: str) -> None:
        super().__init__(folder)
        self._options = options

    def url(self, place: str = "penstock", *, port: int | None = None) -> str:
        """Return a journal's URL; the place is the beginning of its keys, before a colon."""
        return f"redis://127.0.0.1:{port or self.port}/0?prefix={place}:"

    def command_line(self) -> list[str]:
        """Write every command to the disk, and nothing else."""
        return [
            "redis-server", "--bind", "127.0.0.1", "--port", str(self.port), "--dir", self._folder,
            "--save", "", "--appendonly", "yes", "--appendfsync", "always",
            *self._options,
        ]  # fmt: skip

    def answers(self) -> bool:
        """Ask it; one that wants a password first can be used too."""
        return self.command("PING").startswith((b"+PONG", b"-NOAUTH"))

    def forget(self) -> None:
        """Lose everything, with all connections as they are."""
        self.command("FLUSHALL")

    def command(self, *words: str) -> bytes:
        """Send it a command, from outside of everything that is tested, and return the answer as it comes."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            parts = [f"${len(word)}\r\n{word}\r\n" for word in words]
            sock.sendall(f"*{len(words)}\r\n{''.join(parts)}".encode())
            return sock.recv(65536)


@contextmanager
def running_redis(*options: str) -> Iterator[RedisServer]:
    """Run a Redis, with further options. Leaving the block kills it."""
    require("redis-server", "apt-get install redis-server", shutil.which("redis-server") is not None)
    with running(lambda folder: RedisServer(folder, *options)) as server:
        yield server
