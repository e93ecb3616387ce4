"""Counts the events of a stream, whatever way its bytes are cut, and shows the whole ones to who looks into them.

This is no parser: `wire/sse_parser.py` is one, and costs ten times as much. An event is a block with a `data` field;
blocks of comments alone are keepalives. Whole blocks are taken together, and as long as each begins with its data,
or there is one, nothing is looked at one by one.

Source: WHATWG HTML 9.2.6. Line ends may be LF, CRLF or CR; those that are not LF are made so first.
"""

from __future__ import annotations

import re
from typing import Protocol

_ORDERLY = re.compile(rb"\n\n(?:(?:id|event):[^\n]*\n){0,3}data:")
_DATA = re.compile(rb"(?:^|\n)data(?::|\n|$)")
_STAMP = re.compile(rb"@(\d{19})(?!\d)")
_REPEATS = re.compile(rb'(?:^|\n)event: ?(?:snapshot|message)\n|"event":"(?:snapshot|message)"')
"""Events that say again what was said: penstock's, as an event stream has them and as a WebSocket has them."""
_ID = re.compile(rb"(?:^|\n)id: ?([^\n]+)")

stamps = _STAMP.findall
"""All times that some bytes tell: `@` and 19 digits, the ns since 1970 when an event was due."""


lone_event = re.compile(
    rb"([0-9A-Fa-f]{1,8})\r\n(?:(?:id|event):[^\r\n]*\n)*data:[^\r\n@]*@(\d{19})(?!\d)[^\r\n@]*\n\n\r\n"
).fullmatch
"""Matches a chunk of HTTP/1.1 that is one whole event with one time: the size, the time. A paced stream is
made of these, and one expression does what takes twenty steps else."""


class Events(Protocol):
    """What counts the events of one stream."""

    whole: bytes
    """The events that the last piece made whole."""
    ended: bool
    """Whether the event that ends the stream has come."""
    keepalives: int
    rest: bool
    """Whether an event has begun and is not whole."""

    def feed(self, data: bytes) -> int:
        """Take a piece; return how many events it made whole."""


class SseEvents:
    """Events of an event stream.

    Args:
        end: how the data of the last event begins.
    """

    def __init__(self, end: bytes) -> None:
        self.whole = b""
        self.ended = False
        self.keepalives = 0
        self._end = end
        self._last_event = re.compile(rb"(?:^|\n)data: ?" + re.escape(end))
        self._rest = bytearray()
        self._after_cr = False

    @property
    def rest(self) -> bool:
        """See `Events`."""
        return any(line and not line.startswith(b":") for line in bytes(self._rest).split(b"\n"))

    def feed(self, data: bytes) -> int:
        """See `Events`."""
        if b"\r" in data or self._after_cr:
            data = self._with_lf(data)
        if self._rest or not data.endswith(b"\n\n"):
            data = self._cut(data)
            if not data:
                self.whole = b""
                return 0
        self.whole = data
        if self._end in data and self._last_event.search(data):
            self.ended = True
        blocks = data.count(b"\n\n")
        if data.startswith(b"data:"):
            if blocks == 1 or data.count(b"\n\ndata:") == blocks - 1:
                return blocks
        elif blocks == 1 and b"\ndata:" in data:
            return 1
        elif len(_ORDERLY.findall(b"\n\n" + data)) == blocks:
            return blocks
        return self._count(data)

    def _with_lf(self, data: bytes) -> bytes:
        """Make all line ends LF. A CR at the end is one already; the LF that may follow is dropped."""
        if self._after_cr:
            data = data.removeprefix(b"\n")
            self._after_cr = False
        if data.endswith(b"\r"):
            self._after_cr = True
        return data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

    def _cut(self, data: bytes) -> bytes:
        """Keep what is behind the last blank line for the next piece; return what is before, from where it was kept."""
        rest = self._rest
        if rest.endswith(b"\n") and data.startswith(b"\n"):
            end = max(data.rfind(b"\n\n") + 2, 1)
        else:
            end = data.rfind(b"\n\n") + 2
            if end < 2:
                rest += data
                return b""
        whole = bytes(rest) + data[:end] if rest else data[:end]
        self._rest = bytearray(data[end:])
        return whole

    def _count(self, data: bytes) -> int:
        """Look at each block."""
        events = 0
        for block in data.split(b"\n\n"):
            if block.startswith(b"data:") or b"\ndata:" in block or _DATA.search(block):
                events += 1
            elif block.lstrip(b"\n").startswith(b":"):
                self.keepalives += 1
        return events


def due_times(whole: bytes) -> list[int]:
    """Return the times that some events tell, without those that repeat what was said: snapshots and messages."""
    times: list[int] = []
    for block in whole.split(b"\n\n"):
        found = stamps(block)
        if len(found) > 1 and _REPEATS.search(block):
            continue
        times += map(int, found)
    return times


def last_id(whole: bytes) -> str:
    """Return the last id that some events tell; empty if they tell none."""
    found = _ID.findall(whole)
    return found[-1].decode("latin-1") if found else ""
