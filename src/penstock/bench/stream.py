"""One stream: the head of a response, then events until the end; each leaves a few numbers in the recorder.

`_read` and `_take` are what an event costs; all the rest happens once for each stream. What is done at the turns of its
life is its owner's to say (`client.py`).
"""

from __future__ import annotations

import time
from array import array
from collections.abc import Callable

from penstock.bench.body import Body, Head, OpenBody
from penstock.bench.events import SseEvents, lone_event, stamps
from penstock.bench.link import Link, kind_of
from penstock.bench.loop import READABLE, Loop
from penstock.bench.plan import Address
from penstock.bench.recorder import Recorder
from penstock.bench.websocket import WebSocketEvents, check_accepted, client_frame, close_frame

_READ_BYTES = 64 << 10
"""More than 128 KiB would make malloc map and unmap memory for each read, at 20 us."""
_HEAD_BYTES = 64 << 10
_OPENING_NS = 1_000_000_000
"""Comments that come so soon are a stream's opening, and no keepalives."""
_LAST_BYTES_NS = 1_000_000_000
"""From the event that ends a stream to the end of its response, which some servers leave open."""


class Owner:
    """What a stream tells the one that opened it, in this order. `over` always comes."""

    def sent(self, stream: Stream) -> None:
        """The request is out."""

    def opened(self, stream: Stream) -> None:
        """The head of a good response is here."""

    def looked(self, whole: bytes, now_ns: int) -> None:
        """Events are here: all, if the stream is `careful`, else those that tell more times than there are events."""

    def over(self, stream: Stream, error: str) -> None:
        """The stream has ended, and is closed. `error` is empty for a proper end, and when we left."""


class Stream(Link):
    """One stream.

    Args:
        loop: who calls.
        recorder: where times and counts go.
        address: where to connect.
        owner: who is told.
        due_ns: when it was to begin; all times count from then.
        end: how the event's data begins that ends it; empty for `[DONE]` or the end of the response.
        key: of the handshake, if it is a WebSocket.
        hello: the first message on it.
        period_ns: the time from one event to the next, if that is known.
        careful: whether the owner looks at each event.
        small: whether to take little at a time.
        back: whether its client had left and comes back, so that its end is not that of a whole turn.
    """

    __slots__ = (
        "_announced",
        "_awaits_token",
        "_body",
        "_careful",
        "_end",
        "_events",
        "_gap",
        "_head",
        "_hello",
        "_key",
        "_lags",
        "_last_ns",
        "_latency",
        "_lone",
        "_owner",
        "_period_ns",
        "_whole_time",
        "finished",
        "is_open",
    )

    def __init__(
        self,
        loop: Loop,
        recorder: Recorder,
        address: Address,
        owner: Owner,
        due_ns: int,
        *,
        end: str = "",
        key: str = "",
        hello: str = "",
        period_ns: int = 0,
        careful: bool = False,
        small: bool = False,
        back: bool = False,
    ) -> None:
        super().__init__(loop, recorder, address, due_ns, small=small)
        self._owner = owner
        self._end = end
        self._key = key
        self._hello = hello
        self._period_ns = period_ns
        self._careful = careful
        self._latency = recorder.times["latency"].append
        self._whole_time = recorder.times["caught_up" if back else "turn"].append
        self._gap = recorder.times["gap"].append
        kind = WebSocketEvents if key else SseEvents
        self._events: SseEvents | WebSocketEvents = kind((end or "[DONE]").encode())
        self._body: Body = OpenBody()
        self._head = b""
        self._awaits_token = True
        self._announced = False
        """Whether the stream has said that tokens will follow: what comes before them is none."""
        self._lone = False
        """Whether what is read next may well be one chunk with one event that tells its time."""
        self._last_ns = 0
        self._lags: array[int] | None = None
        self.is_open = False
        """Whether a good head has come, and the end has not."""
        self.finished = False
        """Whether its proper end was seen."""

    def open(self, request: bytes) -> None:
        """See `Link`."""
        self._recorder.started += 1
        super().open(request)

    def stop_reading(self, gone: Callable[[], None]) -> None:
        """See `Link`. It counts as open."""
        if not self.is_open:
            self._set_open()
        super().stop_reading(gone)

    def _set_open(self) -> None:
        self.is_open = True
        self._recorder.opened += 1
        self._recorder.open += 1

    # Before the first event

    def _asked(self) -> None:
        self._loop.change(self._fd, READABLE, self._read_head)
        self._owner.sent(self)

    def _read_head(self, mask: int) -> None:
        try:
            data = self._read_some(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end_with(kind_of(error, "reset"))
            return
        now_ns = time.time_ns()
        if not self._head and data:
            self._recorder.times["first_byte"].append(now_ns - self._due_ns)
        self._head += data
        block, found, rest = self._head.partition(b"\r\n\r\n")
        if not found:
            if not data or len(self._head) > _HEAD_BYTES:
                self._end_with("malformed" if data else "cut")
            return
        try:
            self._take_head(Head(block), rest, now_ns)
        except ValueError:
            self._end_with("malformed")

    def _take_head(self, head: Head, rest: bytes, now_ns: int) -> None:
        if head.status in (100, 102, 103):
            self._head = rest
            return
        if head.status != (101 if self._key else 200):
            self._end_with(f"status {head.status}")
            return
        if self._key:
            check_accepted(head, self._key)
        else:
            self._body = head.body()
        self._set_open()
        self._loop.change(self._fd, READABLE, self._read)
        self._owner.opened(self)
        if self._key and self._hello:
            self._reply(client_frame(self._hello.encode()))
        if not self.closed and (rest or self._body.ended):
            self._take(rest, now_ns)

    # Events

    def _read(self, mask: int) -> None:
        try:
            data = self._read_some(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as error:
            self._end_with("" if self.finished else kind_of(error, "reset"))
            return
        now_ns = time.time_ns()
        if self._lone:
            found = lone_event(data)
            if found is not None:
                size, due = found.groups()
                if int(size, 16) == len(data) - len(size) - 4:
                    recorder = self._recorder
                    recorder.bytes += len(data)
                    recorder.events += 1
                    self._gap(now_ns - self._last_ns)
                    self._last_ns = now_ns
                    self._latency(now_ns - int(due))
                    return
        if data:
            self._take(data, now_ns)
        else:
            self._at_end(now_ns, proper=self._body.close())

    def _take(self, data: bytes, now_ns: int) -> None:
        recorder, events = self._recorder, self._events
        self._lone = False
        recorder.bytes += len(data)
        try:
            count = events.feed(self._body.feed(data))
        except ValueError:
            self._end_with("malformed")
            return
        if count:
            recorder.events += count
            if self._last_ns:
                self._gap(now_ns - self._last_ns)
            self._last_ns = now_ns
            if count > 1:
                recorder.together += count - 1
            whole = events.whole
            if self._awaits_token:
                self._look_for_token(whole, now_ns)
            if self._careful:
                self._owner.looked(whole, now_ns)
            elif b"@" in whole:
                due = stamps(whole)
                if len(due) == 1:
                    self._latency(now_ns - int(due[0]))
                    self._lone = self._body.between and not (self._end or events.rest)
                elif len(due) <= count:
                    recorder.times["latency"].extend([now_ns - int(stamp) for stamp in due])
                else:
                    self._owner.looked(whole, now_ns)
            elif self._lags is not None:
                # What ends a stream follows the last token at once, and is none.
                tokens = whole.count(b'"delta"') if self._announced else count - events.ended
                lag_ns = now_ns - len(self._lags) * self._period_ns
                self._lags.extend([lag_ns - number * self._period_ns for number in range(tokens)])
        if events.keepalives:
            if now_ns - self._due_ns > _OPENING_NS:
                recorder.keepalives += events.keepalives
            events.keepalives = 0
        if events.ended and not self.finished:
            self._finish(now_ns)
        if self._key:
            self._take_control(now_ns)
        if self._body.ended and not self.closed:
            self._at_end(now_ns, proper=True)

    def _look_for_token(self, whole: bytes, now_ns: int) -> None:
        """Note the first event with a delta, or, where none are announced, the first of all."""
        self._announced = self._announced or b'"type":"start"' in whole
        if self._announced and b'"delta"' not in whole:
            return
        self._awaits_token = False
        self._recorder.times["first_token"].append(now_ns - self._due_ns)
        if self._period_ns and not self._careful and not stamps(whole):
            self._lags = array("q")

    def _take_control(self, now_ns: int) -> None:
        """Answer a WebSocket's pings and its closing."""
        events = self._events
        assert isinstance(events, WebSocketEvents)
        if events.replies:
            replies, events.replies = events.replies, b""
            self._reply(replies)
        if events.close_code and not self.closed:
            if not self.finished and not events.closed_well:
                self._end_with(f"closed {events.close_code}")
            else:
                self._at_end(now_ns, proper=True)

    def _reply(self, frames: bytes) -> None:
        try:
            self._socket.send(frames)  # a few bytes into an empty buffer
        except OSError as error:
            self._end_with("" if self.finished else kind_of(error, "reset"))

    # The end

    def _finish(self, now_ns: int) -> None:
        """Note the proper end; the rest of the response may still come."""
        self.finished = True
        self._recorder.finished += 1
        self._whole_time(now_ns - self._due_ns)
        if self._key:
            self._reply(close_frame())
            self._loop.at(now_ns, self.leave)
        elif not self._body.ended:
            self._loop.at(now_ns + _LAST_BYTES_NS, self.leave)

    def _at_end(self, now_ns: int, *, proper: bool) -> None:
        if not self.finished and proper and not self._end and not self._events.rest:
            self._finish(now_ns)
        self._end_with("" if self.finished else "cut")

    def _ended(self, error: str) -> None:
        if self.is_open:
            self.is_open = False
            self._recorder.open -= 1
        if self._lags:
            self._recorder.lags.append((self._lags, self._period_ns))
        self._owner.over(self, error)
