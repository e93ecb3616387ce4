"""The requests of one WebSocket, each with an answer of its own that is read at its own pace.

What comes is taken from the socket at once, whoever it is for, so that a caller who is busy elsewhere holds up nobody. One
that leaves too much waiting is sent no more, and asks again later for what follows: its answer ends like one that was
cut. Only a replay is kept whatever its length, which is a turn's at most: it can't be gone on with in the middle.
"""

from __future__ import annotations

import itertools
from collections import deque
from typing import Any

import httpx2
import trio

from penstock.client.frames import ServerFrame, client_frame, read_server_frame
from penstock.client.socket import End, Socket
from penstock.errors import RemoteProtocolError, RequestRefusedError, StreamLostError
from penstock.limits import WireLimits
from penstock.wire.codec import decode_json
from penstock.wire.sse_parser import ServerSentEvent

UNREAD_CHARS = 1 << 20
"""What may wait for one caller: a second of the fastest models, a few thousand chunks of a replay."""
_TOO_BIG = 1009
_ACTS = ("stop", "approve", "turn")
_FINAL = frozenset([1002, 1003, 1007, 1008, _TOO_BIG, 1010])
"""Close codes that say that the fault is ours. Source: RFC 6455 section 7.4; `closing.py`."""


class SocketAnswer:
    """What comes for one request; see `Answer`."""

    def __init__(self, requests: Requests, request_id: str, kind: str) -> None:
        self._requests = requests
        self.request_id = request_id
        self._kind = kind
        self.turn_id: str | None = None
        self.retry_s: float | None = None
        self._begun = False
        self._told_closing = False
        self._value: Any = None
        self._events: deque[ServerSentEvent] = deque()
        self._unread_chars = 0
        self._last_id = ""
        self._over = False
        self._error: Exception | None = None
        self._news = trio.lowlevel.ParkingLot()

    @property
    def heard_at(self) -> float:
        """See `Answer.heard_at`."""
        return self._requests.socket.heard_at

    async def wait_begun(self) -> bool:
        """Wait until the server has begun a stream; False if there is nothing to stream.

        Raises:
            httpx2.TransportError, RequestRefusedError, StreamLostError: see `read`.
        """
        await trio.lowlevel.checkpoint()
        while not self._begun and not self._over:
            await self._news.park()
        if not self._begun and self._error is not None:
            raise self._error
        return self._begun

    async def wait_value(self) -> Any:
        """Wait for the `result` of a request that is no stream; raises as `wait_begun`."""
        await self.wait_begun()
        return self._value

    async def read(self) -> list[ServerSentEvent] | None:
        """See `Answer.read`."""
        await trio.lowlevel.checkpoint()
        while not self._events and not self._over:
            await self._news.park()
        if self._events:
            events = list(self._events)
            self._events.clear()
            self._unread_chars = 0
            return events
        if self._error is not None:
            raise self._error
        return None

    async def aclose(self) -> None:
        """See `Answer.aclose`."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Let go of it."""
        if not self._over:
            self._requests.let_go(self, tell=True)
            self._end(None)

    def take(self, frame: ServerFrame, limits: WireLimits) -> None:
        """Take a frame.

        Raises:
            RemoteProtocolError: it can't be understood.
        """
        if self._over:
            return
        match frame.type:
            case "start":
                self.turn_id = frame.turn
                self._begin()
            case "chunk":
                self._add("message", bytes(frame.chunk).decode(), frame.position)
            case "event":
                self._begin()
                self._told_closing = frame.event == "closing"
                self._add(frame.event, bytes(frame.data).decode(), frame.position)
            case "end":
                self._add("message", "[DONE]", "")
                self._finish(None)
            case "no-active":
                self._finish(None)
            case "result":
                self._value = decode_json(bytes(frame.value), limits=limits)
                self._begun = True
                self._finish(None)
            case "error" if self._begun:
                # The request was fine, and something has happened since. It may do better once more.
                self._finish(httpx2.RemoteProtocolError(frame.error_text))
            case "error":
                self._finish(
                    RequestRefusedError(
                        frame.error_text,
                        status=frame.status,
                        retry_after_s=None if frame.retry_ms is None else frame.retry_ms / 1000,
                    )
                )
            case _:
                raise RemoteProtocolError("The server's frame is of no known type.")

    def closing(self, data: str) -> None:
        """Take the server's last word, after which it only ends what it has begun to do."""
        if self._over or self._kind in _ACTS:
            return
        if not self._told_closing:
            self._add("closing", data, "")
        went_on = self._begun or self._kind == "watch"
        self._end(None if went_on else httpx2.ReadError("the server is going away"))

    def end(self, end: End) -> None:
        """End with the socket."""
        self._end(self._why(end))

    def _why(self, end: End) -> Exception:
        if end.error is not None:
            return end.error
        if end.code in _FINAL:
            words = f": {end.reason}" if end.reason else ""
            if not self._begun:
                status = 413 if end.code == _TOO_BIG else 400
                return RequestRefusedError(
                    f"The server closed the connection ({end.code}){words}.", status=status
                )
            if end.code != _TOO_BIG:
                return StreamLostError(f"The server closed the connection ({end.code}){words}.")
            # It is another request that was.
        return httpx2.ReadError(f"closed with {end.code}")

    def _begin(self) -> None:
        self._begun = True
        self._news.unpark_all()

    def _add(self, event: str, data: str, position: str) -> None:
        self._last_id = position or self._last_id
        self._unread_chars += len(data)
        self._events.append(ServerSentEvent(event, data, self._last_id))
        self._news.unpark_all()
        if self._unread_chars > UNREAD_CHARS and position:
            # An app may have it that letting go of a `send` stops the turn, which is not what is meant.
            self._requests.let_go(self, tell=self._kind != "send")
            self._end(None)

    def _finish(self, error: Exception | None) -> None:
        self._requests.let_go(self, tell=False)
        self._end(error)

    def _end(self, error: Exception | None) -> None:
        if not self._over:
            self._over = True
            self._error = error
            self._news.unpark_all()


class Requests:
    """The requests of one WebSocket. `socket.run` is its task."""

    def __init__(self, limits: WireLimits) -> None:
        self.socket = Socket(self._heard, self._ended)
        self._limits = limits
        self._answers: dict[str, SocketAnswer] = {}
        self._ids = itertools.count(1)
        self.over = False
        """Whether nothing can be asked any more."""

    def begin(self, kind: str, **fields: Any) -> SocketAnswer:
        """Ask, and return where the answer comes.

        Raises:
            LocalProtocolError: the request has no JSON form.
        """
        request_id = str(next(self._ids))
        text = client_frame(kind, request_id, **fields)
        answer = SocketAnswer(self, request_id, kind)
        if self.over:
            answer.end(End(httpx2.ReadError("the socket has closed")))
        else:
            self._answers[request_id] = answer
            self.socket.say(text)
        return answer

    def let_go(self, answer: SocketAnswer, *, tell: bool) -> None:
        """Take nothing more for an answer, and say so to the server if it may go on."""
        if self._answers.pop(answer.request_id, None) is not None and tell and not self.over:
            self.socket.say(client_frame("abort", answer.request_id))

    def _heard(self, text: str | bytes) -> None:
        try:
            frame = read_server_frame(text, self._limits)
            if frame.type == "closing":
                self.over = True
                data = text.decode() if isinstance(text, bytes) else text
                for each in list(self._answers.values()):
                    each.closing(data)
            elif (answer := self._answers.get(frame.request_id)) is not None:
                answer.take(frame, self._limits)
        except RemoteProtocolError as exc:
            self._ended(End(exc))
            self.socket.close()

    def _ended(self, end: End) -> None:
        self.over = True
        while self._answers:
            self._answers.popitem()[1].end(end)
