"""Event-stream parser: bytes in, events out, as a browser's `EventSource` reads them.

This file knows WHATWG HTML 9.2.6 and nothing of what an event says, nor where the bytes come from. Whatever way the
bytes are cut, the events are the same: a line ends at CR, LF or CRLF, even when the two come in different pieces, and
a CR alone dispatches at once.

How it is fast: line ends are made LF and the byte order mark is dropped before anything else. From one blank line to
the last one of a piece all is whole blocks, which are decoded at once and of which nearly all are a single `data`
line. Only what is before and after takes the way line by line. Nothing is ever looked at twice, so a long line that
comes byte by byte costs linear time.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import NamedTuple

from penstock.errors import LimitExceededError
from penstock.limits import WIRE, WireLimits

_BOM = b"\xef\xbb\xbf"
_PIECE_BYTES = 64 << 10
# Nine digits are eleven days; a number of a million digits would take seconds to read.
_RETRY = re.compile("[0-9]{1,9}")


class ServerSentEvent(NamedTuple):
    """One dispatched event. `last_event_id` is the stream's, which lasts until another one is set."""

    event: str
    data: str
    last_event_id: str


class SseParser:
    """An incremental parser of one event stream.

    A block without its blank line is not an event yet: it is dropped, if nothing more comes.

    Source: WHATWG HTML 9.2.6, with caps on the bytes of a line and of an event's data, and on the digits of `retry`.
    """

    def __init__(self, limits: WireLimits = WIRE) -> None:
        self._line_limit = limits.sse_line_bytes
        self._event_limit = limits.sse_event_bytes
        # Within a piece of this size no line and no event can be too long.
        self._piece_bytes = max(1, min(_PIECE_BYTES, self._line_limit, self._event_limit))
        self._dead = ""

        self._start: bytes | None = b""  # what may be a byte order mark; None once that is decided
        self._after_cr = False
        self._line = bytearray()

        self._data: list[str] = []
        self._data_bytes = 0
        self._event_type = ""
        self._id_buffer = ""
        self._last_event_id = ""
        self._retry_ms: int | None = None

    @property
    def last_event_id(self) -> str:
        """The id to send as `Last-Event-ID` when reconnecting; empty if there is none."""
        return self._last_event_id

    @property
    def retry_ms(self) -> int | None:
        """How many milliseconds the server wants us to wait before reconnecting; None if it never said."""
        return self._retry_ms

    def feed(self, data: bytes) -> list[ServerSentEvent]:
        """Feed bytes, get the events that they complete.

        Raises:
            LimitExceededError: a line or an event's data is too long. Events that the same bytes completed before it
                are lost, and every later call raises again: there is no way back into step with such a stream.
        """
        if self._dead:
            raise LimitExceededError(f"The event stream was given up: {self._dead}")
        if self._start is not None:
            data = self._without_bom(self._start + data)
        events: list[ServerSentEvent] = []
        if len(data) <= self._piece_bytes:
            self._feed_piece(data, events)
        else:
            for begin in range(0, len(data), self._piece_bytes):
                self._feed_piece(data[begin : begin + self._piece_bytes], events)
        return events

    def _without_bom(self, start: bytes) -> bytes:
        if len(start) < len(_BOM) and _BOM.startswith(start):
            self._start = start
            return b""
        self._start = None
        return start.removeprefix(_BOM)

    def _feed_piece(self, data: bytes, events: list[ServerSentEvent]) -> None:
        if self._after_cr and data:
            self._after_cr = False
            data = data.removeprefix(b"\n")
        if b"\r" in data:
            self._after_cr = data.endswith(b"\r")
            data = data.replace(b"\r\n", b"\n").replace(b"\r", b"\n")

        # The rest of a block that began in an earlier piece.
        begin = 0
        while self._line or self._data or self._event_type:
            end = data.find(b"\n", begin)
            if end < 0:
                self._hold(data[begin:])
                return
            self._hold(data[begin:end])
            self._take_held_line(events)
            begin = end + 1

        # Whole blocks.
        last = data.rfind(b"\n\n", begin)
        if last >= 0:
            self._take_blocks(data[begin:last].decode(errors="replace"), events)
            begin = last + 2

        # The beginning of a block that goes on in a later piece.
        *lines, rest = data[begin:].split(b"\n")
        for line in lines:
            self._hold(line)
            self._take_held_line(events)
        self._hold(rest)

    def _take_blocks(self, text: str, events: list[ServerSentEvent]) -> None:
        """Take blocks that are separated by blank lines; the last one's blank line follows.

        The first loop is for streams without ids, the second one's short way for blocks of `data`, or of `id` and
        `data`: as servers write them.
        """
        new = tuple.__new__  # half the cost of calling the class
        plain = ("\n\n" + text).split("\n\ndata: ")
        if text.count("\n") == 2 * (len(plain) - 2):  # no line end but those between the blocks
            last_event_id = self._last_event_id = self._id_buffer
            events += [new(ServerSentEvent, ("message", data, last_event_id)) for data in plain[1:]]
            return
        for block in text.split("\n\n"):
            head, found, data = block.partition("data: ")
            if head.startswith("id: ") and head.find("\n") == len(head) - 1 and "\0" not in head:
                id, head = head[4:-1], ""
            else:
                id = self._id_buffer
            if found and not head and "\n" not in data:
                self._last_event_id = self._id_buffer = id
                events.append(new(ServerSentEvent, ("message", data, id)))
            else:
                for line in block.split("\n"):
                    self._take_line(line, 0, events)
                self._dispatch(events)

    def _hold(self, part: bytes) -> None:
        self._line += part
        if len(self._line) > self._line_limit:
            raise self._give_up("a line is too long.")

    def _take_held_line(self, events: list[ServerSentEvent]) -> None:
        size = len(self._line)
        line = self._line.decode(errors="replace")
        self._line.clear()
        self._take_line(line, size, events)

    def _take_line(self, line: str, size: int, events: list[ServerSentEvent]) -> None:
        if not line:
            self._dispatch(events)
            return
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data_bytes += size
            if self._data_bytes > self._event_limit:
                raise self._give_up("an event is too long.")
            self._data.append(value)
        elif name == "event":
            self._event_type = value
        elif name == "id":
            if "\0" not in value:
                self._id_buffer = value
        elif name == "retry" and _RETRY.fullmatch(value):
            self._retry_ms = int(value)

    def _dispatch(self, events: list[ServerSentEvent]) -> None:
        self._last_event_id = self._id_buffer
        if self._data:
            events.append(
                ServerSentEvent(self._event_type or "message", "\n".join(self._data), self._last_event_id)
            )
            self._data = []
            self._data_bytes = 0
        self._event_type = ""

    def _give_up(self, why: str) -> LimitExceededError:
        self._dead = why
        self._line.clear()
        self._data.clear()
        return LimitExceededError(f"The event stream was given up: {why}")


def parse(chunks: Iterable[bytes]) -> list[tuple[str, str, str]]:
    """Parse a whole stream, however it is cut, into tuples of event, data and last event id.

    Raises:
        LimitExceededError: a line or an event's data is longer than the default limits.
    """
    parser = SseParser()
    return [
        (event.event, event.data, event.last_event_id) for chunk in chunks for event in parser.feed(chunk)
    ]
