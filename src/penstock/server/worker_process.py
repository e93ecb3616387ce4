"""A worker's process, as its supervisor sees it: ready, counting, leaving, ended."""

from __future__ import annotations

import signal
import socket
from collections.abc import Callable

import msgspec
import trio

from penstock.metrics import Series
from penstock.server.log import logger
from penstock.server.worker import READY, read_report

_LINE_BYTES = 1 << 20
"""What a worker says in one line: some 4 kB. A longer one is thrown away."""


class WorkerProcess:
    """One worker's process.

    Args:
        number: of its seat.
        process: it.
        control: our end of the socket pair; closed when it has ended.
    """

    def __init__(self, number: int, process: trio.Process, control: socket.socket) -> None:
        self.number = number
        self.pid = process.pid
        self.began = trio.current_time()
        self.ended = trio.Event()
        self.leaving = False
        self.values: dict[Series, int] = {}
        """What it has counted, as of its last report."""
        self._process = process
        control.setblocking(False)
        self._control = control
        self._line = b""
        self._ready = False
        self._told = trio.Event()
        """Set when it is ready, or nothing more will come of it."""

    @property
    def status(self) -> int:
        """How it ended: see `trio.Process.returncode`."""
        return self._process.returncode or 0

    async def attend(self, news: Callable[[], None]) -> None:
        """Hear what it says, and wait for its end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._hear)
            await self._process.wait()
            nursery.cancel_scope.cancel("the worker has ended")
        # Without waiting: who it has started may hold the other end open.
        self._hear_nowait()
        self._control.close()
        self._told.set()
        self.ended.set()
        news()

    async def _hear(self) -> None:
        while self._hear_nowait():
            await trio.lowlevel.wait_readable(self._control)
        self._told.set()

    def _hear_nowait(self) -> bool:
        """Take what it has said; False once nothing more will come."""
        try:
            while data := self._control.recv(1 << 16):
                *lines, self._line = (self._line + data).split(b"\n")
                for line in lines:
                    self._take(line)
                if len(self._line) > _LINE_BYTES:
                    self._line = b""
        except BlockingIOError:
            return True
        except OSError:
            pass
        return False

    def _take(self, line: bytes) -> None:
        if line == READY:
            self._ready = True
            self._told.set()
            return
        try:
            self.values = read_report(line)
        except msgspec.MsgspecError:
            pass  # It was cut in the middle of a line; another follows.

    async def wait_ready(self) -> bool:
        """Wait until it accepts connections; False if it never will."""
        await self._told.wait()
        return self._ready

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if not self.ended.is_set():
            self._process.send_signal(number)

    async def leave(self, drain_s: float, *, restart: bool = False) -> None:
        """Have it drain, and kill it if it has not ended in `drain_s`. With `restart`, it tells its clients to come back."""
        if not self.leaving:  # a second signal would not let it drain
            self.leaving = True
            self.signal(signal.SIGHUP if restart else signal.SIGTERM)
        with trio.move_on_after(drain_s):
            await self.ended.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it, if that has not happened."""
        if not self.ended.is_set():
            logger.error("worker %d (pid %d) did not end in time: killed", self.number, self.pid)
            self.signal(signal.SIGKILL)
            await self.ended.wait()
