"""A NATS of the tests' own."""

from __future__ import annotations

import shutil
import socket
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from engine_server import EngineServer, running
from parts import free_port, require


def _program() -> str | None:
    """The one that is installed beside this Python, else any."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


class NatsServer(EngineServer):
    """A nats-server with JetStream. What it has acknowledged survives its being killed."""

    stored = "store"

    def __init__(self, folder: str, options: str = "") -> None:
        super().__init__(folder)
        self._options = options
        self.monitor = free_port()
        """Where it says over HTTP what it has."""

    def url(self, place: str = "penstock", *, port: int | None = None) -> str:
        """Return a journal's URL; the place is a stream."""
        return f"nats://127.0.0.1:{port or self.port}?stream={place}"

    def command_line(self) -> list[str]:
        """Write its configuration, and name it."""
        config = Path(self._folder, "nats.conf")
        config.write_text(
            f"""
            listen: "127.0.0.1:{self.port}"
            http: "127.0.0.1:{self.monitor}"
            jetstream {{ store_dir: "{self._folder}/{self.stored}" }}
            {self._options}
            """
        )
        program = _program()
        assert program is not None
        return [program, "-c", str(config), "--log", f"{self._folder}/log"]

    def answers(self) -> bool:
        """Hear its greeting."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
            return sock.recv(5) == b"INFO "

    def forget(self) -> None:
        """Lose everything, with an empty disk."""
        self.kill()
        shutil.rmtree(f"{self._folder}/{self.stored}")
        self.start()


@contextmanager
def running_nats(options: str = "") -> Iterator[NatsServer]:
    """Run a NATS, with further configuration. Leaving the block kills it."""
    require("nats-server", "uv sync, or apt-get install nats-server", _program() is not None)
    with running(lambda folder: NatsServer(folder, options)) as server:
        yield server
