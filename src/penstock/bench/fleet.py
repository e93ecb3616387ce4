"""The load processes of one run, and the pipes to them. They end with the block, and with this process."""

from __future__ import annotations

import os
import selectors
import subprocess
import sys
import time
from types import TracebackType
from typing import Self

import msgspec

from penstock.bench.plan import Go, Halt, Instruction, Message, Order, Plan, Ready
from penstock.bench.worker import frame, frame_end

_READ_BYTES = 1 << 20
_HEAD_START_NS = 50_000_000
"""From the order to go until the run begins: it takes its time through the pipes, and arrivals should not be late."""


class FleetError(Exception):
    """The load could not be made. The message is a sentence for a person."""


class Fleet:
    """Load processes: `with Fleet(plan, 2) as fleet`.

    Args:
        plan: what they do together.
        size: how many they are.
        start_s: how long they may take to start.
    """

    def __init__(self, plan: Plan, size: int, *, start_s: float) -> None:
        self._plan = plan
        self._size = size
        self._start_s = start_s
        self._selector = selectors.DefaultSelector()
        self._processes: list[subprocess.Popen[bytes]] = []
        self._received: list[bytearray] = []
        self._decoder = msgspec.msgpack.Decoder(Message)

    def __enter__(self) -> Self:
        try:
            for number in range(self._size):
                process = subprocess.Popen(
                    [sys.executable, "-P", "-m", "penstock.bench.worker"],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    process_group=0,  # A terminal's Ctrl-C is for us to pass on.
                )
                self._processes.append(process)
                self._received.append(bytearray())
                assert process.stdout is not None
                self._selector.register(process.stdout.fileno(), selectors.EVENT_READ, number)
                self._send(process, Order(self._plan, number, self._size))
            ready = 0
            deadline = time.monotonic() + self._start_s
            while ready < self._size:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    raise FleetError(f"The load processes did not start within {self._start_s:g} s.")
                ready += sum(isinstance(message, Ready) for _, message in self.receive(left_s))
        except BaseException:
            self._kill()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._kill()

    def go(self) -> int:
        """Let the run begin, and return when, in ns since 1970."""
        at_ns = time.time_ns() + _HEAD_START_NS
        for process in self._processes:
            self._send(process, Go(at_ns))
        return at_ns

    def halt(self) -> None:
        """Let the run end now; reports follow."""
        for process in self._processes:
            if process.poll() is None:
                self._send(process, Halt())

    def receive(self, wait_s: float) -> list[tuple[int, Message]]:
        """Wait for messages, and return them with the numbers of those that sent them.

        Raises:
            FleetError: one of them has ended without its report.
        """
        messages: list[tuple[int, Message]] = []
        for key, _ in self._selector.select(wait_s):
            number, received = key.data, self._received[key.data]
            data = os.read(key.fd, _READ_BYTES)
            received += data
            while (end := frame_end(received)) is not None:
                messages.append((number, self._decoder.decode(received[4:end])))
                del received[:end]
            if not data:
                self._selector.unregister(key.fd)
                status = self._processes[number].wait()
                if status:
                    raise FleetError(f"A load process has ended with status {status}.")
        return messages

    def _send(self, process: subprocess.Popen[bytes], instruction: Instruction) -> None:
        assert process.stdin is not None
        try:
            process.stdin.write(frame(instruction))
            process.stdin.flush()
        except BrokenPipeError:
            pass  # It has ended, which `receive` sees.

    def _kill(self) -> None:
        for process in self._processes:
            process.kill()
            process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                try:
                    pipe.close()
                except BrokenPipeError:
                    pass  # What was not sent is of no use any more.
        self._selector.close()
