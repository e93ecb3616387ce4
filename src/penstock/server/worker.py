"""A worker's side of `supervisor.py`: what it was given by the process that started it.

The supervisor passes the listening sockets, and one end of a socket pair. The worker says `ready` on it once it accepts
connections, then what it has counted, in a line of JSON a second, and reads from it the end of its supervisor: end of
file. (`PR_SET_PDEATHSIG` would not do: the signal comes when the *thread* that started the process ends, and Trio starts
processes in threads that it lets go.)
"""

from __future__ import annotations

import os
import signal
import socket
from collections.abc import Mapping

import msgspec
import trio

from penstock.metrics import Counters, Series
from penstock.server.log import logger

VARIABLE = "PENSTOCK_WORKER"
"""The environment variable that makes a worker of a process, and says which."""
READY = b"ready"
REPORT_S = 1.0
"""From one report of the numbers to the next, if they have changed: a crash takes so much of them with it."""
_FAREWELL_S = 0.5
"""How long the last report may wait for a supervisor that reads nothing."""


class Seat(msgspec.Struct, frozen=True, kw_only=True):
    """What one worker is given: numbers of file descriptors, and its own number."""

    number: int
    """From 1 on."""
    control: int
    own: list[int]
    """Listening sockets that are this worker's to accept from."""
    spare: list[int]
    """The other workers': see `serve`."""

    def environment(self) -> dict[str, str]:
        """Return what has to be in the environment of the worker's process."""
        return {VARIABLE: msgspec.json.encode(self).decode()}

    @property
    def descriptors(self) -> list[int]:
        """What the worker's process has to inherit."""
        return [self.control, *self.own, *self.spare]


def report_line(values: Mapping[Series, int]) -> bytes:
    """Return numbers as a line for the supervisor."""
    return msgspec.json.encode([(name, labels, value) for (name, labels), value in values.items()]) + b"\n"


def read_report(line: bytes) -> dict[Series, int]:
    """Return the numbers of such a line.

    Raises:
        msgspec.MsgspecError: it is none.
    """
    report = msgspec.json.decode(line, type=list[tuple[str, tuple[tuple[str, str], ...], int]])
    return {(name, labels): value for name, labels, value in report}


class Worker:
    """This process, as one of a supervisor's workers."""

    def __init__(self, seat: Seat) -> None:
        self.number = seat.number
        self.sockets = [socket.socket(fileno=descriptor) for descriptor in seat.own]
        self.spare_sockets = [socket.socket(fileno=descriptor) for descriptor in seat.spare]
        self._control = trio.SocketStream(trio.socket.from_stdlib_socket(socket.socket(fileno=seat.control)))

    @classmethod
    def of_this_process(cls) -> Worker | None:
        """Return what a supervisor has made of this process; None if none has. Only the first call may ask."""
        # Not for the processes that this one starts.
        text = os.environ.pop(VARIABLE, None)
        if text is None:
            return None
        seat = msgspec.json.decode(text, type=Seat)
        for descriptor in seat.descriptors:
            os.set_inheritable(descriptor, False)
        return cls(seat)

    async def run(self, counters: Counters | None) -> None:
        """Say that connections are accepted now, and see that this process ends when its supervisor has.

        Args:
            counters: what the supervisor is told.

        Cancelled, it sees to it no more; `farewell` may follow.
        """
        async with trio.open_nursery() as nursery:
            try:
                await self._control.send_all(READY + b"\n")
                if counters is not None:
                    nursery.start_soon(self._report, counters)
                while await self._control.receive_some():
                    pass
            except trio.BrokenResourceError:
                pass  # It is gone as well.
            logger.error("worker %d: the supervisor is gone; draining", self.number)
            os.kill(os.getpid(), signal.SIGTERM)
            nursery.cancel_scope.cancel("the supervisor is gone")

    async def _report(self, counters: Counters) -> None:
        said = b""
        try:
            while True:
                if (line := report_line(counters.values)) != said:
                    await self._control.send_all(line)
                    said = line
                await trio.sleep(REPORT_S)
        except trio.BrokenResourceError:
            pass  # `run` hears of that, too.

    async def farewell(self, counters: Counters) -> None:
        """Tell the supervisor the numbers once more, which are the last ones."""
        with trio.move_on_after(_FAREWELL_S):
            try:
                # A line of its own, should the one before have been cut.
                await self._control.send_all(b"\n" + report_line(counters.values))
            except trio.BrokenResourceError:
                pass
