"""A worker's side of `supervisor.py`: what it was given by the process that started it.

The supervisor passes the listening sockets, and one end of a socket pair. The worker says `ready` on it once it accepts
connections, and reads from it the end of its supervisor: end of file. (`PR_SET_PDEATHSIG` would not do: the signal comes
when the *thread* that started the process ends, and Trio starts processes in threads that it lets go.)
"""

from __future__ import annotations

import os
import signal
import socket

import msgspec
import trio

from penstock.server.log import logger

VARIABLE = "PENSTOCK_WORKER"
"""The environment variable that makes a worker of a process, and says which."""
READY = b"ready\n"


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


class Worker:
    """This process, as one of a supervisor's workers."""

    def __init__(self, seat: Seat) -> None:
        self.number = seat.number
        self.sockets = [socket.socket(fileno=descriptor) for descriptor in seat.own]
        self.spare_sockets = [socket.socket(fileno=descriptor) for descriptor in seat.spare]
        self._control = socket.socket(fileno=seat.control)

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

    async def run(self) -> None:
        """Say that connections are accepted now, and see that this process ends when its supervisor has.

        Cancelled, it sees to it no more.
        """
        control = trio.socket.from_stdlib_socket(self._control)
        try:
            await control.send(READY)
            while await control.recv(64):
                pass
        except OSError:
            pass  # It is gone as well.
        logger.error("worker %d: the supervisor is gone; draining", self.number)
        os.kill(os.getpid(), signal.SIGTERM)
