"""An engine of the tests' own: a real process on a free port of the loopback, with what it stores in a folder of its own."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import ClassVar, TypeVar

from parts import free_port

S = TypeVar("S", bound="EngineServer")


class EngineServer(ABC):
    """A Redis or a NATS, which can be killed, paused and set back."""

    stored: ClassVar[str]
    """Where in its folder it has what it stores."""

    def __init__(self, folder: str) -> None:
        self._folder = folder
        self._process: subprocess.Popen[bytes] | None = None
        self.port = free_port()

    @abstractmethod
    def url(self, place: str = "penstock", *, port: int | None = None) -> str:
        """Return a journal's URL: a place of this name in it, reached by another port."""

    @abstractmethod
    def command_line(self) -> list[str]:
        """Say how it is started."""

    @abstractmethod
    def answers(self) -> bool:
        """Say whether it can be used."""

    @abstractmethod
    def forget(self) -> None:
        """Lose everything."""

    def start(self) -> None:
        """Start it, or start it again with what it had, unless it runs, and wait until it answers."""
        if self._process is None or self._process.poll() is not None:
            self._process = subprocess.Popen(self.command_line(), stdout=subprocess.DEVNULL)
        for _ in range(500):
            try:
                if self.answers():
                    return
            except OSError:
                pass
            time.sleep(0.01)
        raise AssertionError(f"{self._process.args!r} did not start")

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
        shutil.copytree(f"{self._folder}/{self.stored}", f"{self._folder}/kept")

    def set_back(self) -> None:
        """Kill it, and start it with what it had at the time of `keep`, as a restored disk or a failover may."""
        self.kill()
        shutil.rmtree(f"{self._folder}/{self.stored}")
        shutil.move(f"{self._folder}/kept", f"{self._folder}/{self.stored}")
        self.start()


@contextmanager
def running(make: Callable[[str], S]) -> Iterator[S]:
    """Run what is made in a folder. Leaving the block kills it."""
    folder = tempfile.mkdtemp(prefix=f"penstock-engine-{os.getpid()}-")
    server = make(folder)
    try:
        server.start()
        try:
            yield server
        finally:
            server.kill()
    finally:
        shutil.rmtree(folder)
