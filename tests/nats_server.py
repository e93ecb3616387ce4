"""A NATS of the tests' own: a real process on a free port of the loopback, with its store in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from parts import require


def _program() -> str | None:
    """The one that is installed beside this Python, else any."""
    return shutil.which("nats-server", path=str(Path(sys.executable).parent)) or shutil.which("nats-server")


class NatsServer:
    """A nats-server with JetStream."""

    def __init__(self, folder: str, options: str = "") -> None:
        self._folder = folder
        self._options = options
        self._process: subprocess.Popen[bytes] | None = None
        with socket.socket() as sock, socket.socket() as other:
            sock.bind(("127.0.0.1", 0))
            other.bind(("127.0.0.1", 0))
            self.port: int = sock.getsockname()[1]
            self.monitor: int = other.getsockname()[1]
            """Where it says over HTTP what it has."""

    def url(self, stream: str = "penstock") -> str:
        """Return a journal's URL."""
        return f"nats://127.0.0.1:{self.port}?stream={stream}"

    def start(self) -> None:
        """Start it, or start it again with what it had, and wait until it answers."""
        config = Path(self._folder, "nats.conf")
        config.write_text(
            f"""
            listen: "127.0.0.1:{self.port}"
            http: "127.0.0.1:{self.monitor}"
            jetstream {{ store_dir: "{self._folder}/store" }}
            {self._options}
            """
        )
        program = _program()
        assert program is not None
        self._process = subprocess.Popen([program, "-c", str(config), "--log", f"{self._folder}/log"])
        for _ in range(500):
            try:
                with socket.create_connection(("127.0.0.1", self.port), timeout=5) as sock:
                    if sock.recv(5) == b"INFO ":
                        return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError("nats-server did not start")

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal. Returns from a SIGSTOP when it has stopped."""
        assert self._process is not None
        self._process.send_signal(number)
        if number is signal.SIGSTOP:
            os.waitpid(self._process.pid, os.WUNTRACED)

    def kill(self) -> None:
        """Kill it: nothing is written any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)
        self._process.kill()
        self._process.wait()

    def keep(self) -> None:
        """Copy what is on its disk now, for `set_back`."""
        shutil.rmtree(f"{self._folder}/kept", ignore_errors=True)
        shutil.copytree(f"{self._folder}/store", f"{self._folder}/kept")

    def set_back(self) -> None:
        """Kill it, and start it with what it had at the time of `keep`, as a restored disk or a failover may."""
        self.kill()
        shutil.rmtree(f"{self._folder}/store")
        shutil.move(f"{self._folder}/kept", f"{self._folder}/store")
        self.start()


@contextmanager
def running_nats(options: str = "") -> Iterator[NatsServer]:
    """Run a NATS. Leaving the block kills it."""
    require("nats-server", "uv sync, or apt-get install nats-server", _program() is not None)
    folder = tempfile.mkdtemp(prefix=f"penstock-nats-{os.getpid()}-")
    server = NatsServer(folder, options)
    server.start()
    try:
        yield server
    finally:
        server.kill()
        shutil.rmtree(folder)
