"""A worker's process, as its supervisor sees it: ready, leaving, ended."""

from __future__ import annotations

import signal
from collections.abc import Callable

import trio

from penstock.server.log import logger
from penstock.server.worker import READY


class WorkerProcess:
    """One worker's process."""

    def __init__(self, number: int, process: trio.Process, control: trio.SocketStream) -> None:
        self.number = number
        self.pid = process.pid
        self.began = trio.current_time()
        self.ended = trio.Event()
        self.leaving = False
        self._process = process
        self._control = control

    @property
    def status(self) -> int:
        """How it ended: see `trio.Process.returncode`."""
        return self._process.returncode or 0

    async def attend(self, news: Callable[[], None]) -> None:
        """Wait for its end."""
        await self._process.wait()
        await trio.aclose_forcefully(self._control)
        self.ended.set()
        news()

    async def wait_ready(self) -> bool:
        """Wait until it accepts connections; False if it never will."""
        said = b""
        try:
            while READY not in said:
                data = await self._control.receive_some()
                if not data:
                    return False
                said += data
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return False
        return True

    def signal(self, number: signal.Signals) -> None:
        """Send it a signal, if it is there."""
        if not self.ended.is_set():
            self._process.send_signal(number)

    async def leave(self, drain_s: float) -> None:
        """Have it drain, and kill it if it has not ended in `drain_s`."""
        if not self.leaving:  # a second signal would not let it drain
            self.leaving = True
            self.signal(signal.SIGTERM)
        with trio.move_on_after(drain_s):
            await self.ended.wait()
        await self.kill()

    async def kill(self) -> None:
        """End it, if that has not happened."""
        if not self.ended.is_set():
            logger.error("worker %d (pid %d) did not end in time: killed", self.number, self.pid)
            self.signal(signal.SIGKILL)
            await self.ended.wait()
