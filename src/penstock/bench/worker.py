"""A load process: `python -m penstock.bench.worker`, started by `fleet.py`.

Instructions come in on stdin and messages go out on stdout, each a length and msgpack. It ends when stdin does: its
parent has gone, whatever way, and nobody would read what it finds.
"""

from __future__ import annotations

import gc
import os
import signal
import sys
from typing import BinaryIO

import msgspec

from penstock.bench.load import Load
from penstock.bench.loop import READABLE, Loop
from penstock.bench.plan import Go, Halt, Instruction, Message, Order, Ready
from penstock.bench.ulimit import raise_descriptor_limit

_LENGTH_BYTES = 4
_READ_BYTES = 64 << 10


class Pipe:
    """The two pipes to the parent."""

    def __init__(self, stdin: int, stdout: BinaryIO) -> None:
        self._stdin = stdin
        self._stdout = stdout
        self._rest = b""
        self._decoder = msgspec.msgpack.Decoder(Instruction)

    def read(self) -> list[Instruction]:
        """Wait for something and return the instructions that are whole. Ends the process at the end of stdin."""
        data = os.read(self._stdin, _READ_BYTES)
        if not data:
            os._exit(1)
        self._rest += data
        instructions: list[Instruction] = []
        while (end := frame_end(self._rest)) is not None:
            instructions.append(self._decoder.decode(self._rest[_LENGTH_BYTES:end]))
            self._rest = self._rest[end:]
        return instructions

    def write(self, message: Message) -> None:
        """Send a message."""
        self._stdout.write(frame(message))
        self._stdout.flush()


def frame(value: object) -> bytes:
    """Encode a value behind its length."""
    data = msgspec.msgpack.encode(value)
    return len(data).to_bytes(_LENGTH_BYTES, "big") + data


def frame_end(data: bytes | bytearray) -> int | None:
    """Return where the first frame ends, if all of it is there."""
    if len(data) < _LENGTH_BYTES:
        return None
    end = _LENGTH_BYTES + int.from_bytes(data[:_LENGTH_BYTES], "big")
    return end if len(data) >= end else None


def main() -> None:
    """Do one order."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    raise_descriptor_limit()
    pipe = Pipe(sys.stdin.fileno(), sys.stdout.buffer)
    loop = Loop()
    load: Load | None = None

    def obey(mask: int = 0) -> None:
        nonlocal load
        for instruction in pipe.read():
            match instruction:
                case Order():
                    load = Load(instruction, loop, pipe.write)
                    pipe.write(Ready())
                case Go(at_ns=at_ns):
                    assert load is not None
                    load.start(at_ns)
                case Halt():
                    if load is not None:
                        load.halt()

    # What a run makes is kept until its end, or freed by its last reference; a collection would be a gap in what it measures.
    gc.disable()
    loop.add(sys.stdin.fileno(), READABLE, obey)
    loop.run()
    assert load is not None
    pipe.write(load.report())


if __name__ == "__main__":
    main()
