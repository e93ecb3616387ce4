"""One client: what it asks for, and how it behaves with its streams. Who reads, stalls, vanishes, flaps, drops.

A client has one stream at a time, and knows what is left of the one before: the last id, and what it had seen.
"""

from __future__ import annotations

import random
import time
from typing import TYPE_CHECKING

from penstock.bench.continuity import Continuity
from penstock.bench.events import due_times, last_id
from penstock.bench.plan import Call, Group, fill
from penstock.bench.request import request_bytes
from penstock.bench.stream import Owner, Stream
from penstock.bench.websocket import new_key

if TYPE_CHECKING:
    from penstock.bench.load import Load

_ANSWER_NS = 1_000_000_000
"""A client that asked so shortly before the end of the run can't complain that it got no answer."""
_SHORTEST_TURN_S = 1.0
"""With less time left, a client whose turn is over begins no other."""


class Client(Owner):
    """One client of a group.

    Args:
        load: this process's share of the run.
        group: what all of its kind do.
        number: which one of them it is.
        due_ns: when it was to begin.
    """

    def __init__(self, load: Load, group: Group, number: int, due_ns: int) -> None:
        self.group = group
        self.turn_ended = False
        """Whether the end of its turn was seen."""
        self.names: dict[str, str] = {}
        self._load = load
        self._recorder = load.recorder if group.measured else load.unmeasured
        self._number = number
        self._due_ns = due_ns
        self._turn = 0
        self._stream: Stream
        self._count = 0
        self._last_id = ""
        self._continuity = Continuity(self._period_ns)
        self._leaving = False
        self._came_back = False
        self._resuming = False
        self._deaf_ns = 0

    @property
    def _period_ns(self) -> int:
        return int(1e9 / self.group.rate) if self.group.rate else 0

    def waits_for_answer(self, now_ns: int) -> bool:
        """Whether it has asked, and got no head in all the time that it should take."""
        silent = not (self._stream.is_open or self._stream.closed or self._deaf_ns)
        return silent and now_ns - self._due_ns > _ANSWER_NS

    @property
    def deaf(self) -> bool:
        """Whether it has stopped reading."""
        return bool(self._deaf_ns)

    def begin(self) -> None:
        """Begin a turn."""
        self._turn += 1
        self.names = self._load.names | {"n": str(self._number), "turn": str(self._turn)}
        self.names["chat"] = fill(self.group.chat, self.names)
        self._count = self.group.chunks or max(0, int(self._left_s(self._due_ns) * self.group.rate)) + 1
        self.names["count"] = str(self._count)
        self.turn_ended = False
        self._open(self.group.call)

    def leave(self) -> None:
        """Close its stream for good, at the end of the run."""
        if self._stream.closed:
            self._done()  # It had left, to come back.
        else:
            self._stream.leave()

    def _left_s(self, now_ns: int) -> float:
        return self.group.until_s - (now_ns - self._load.began_ns) / 1e9

    def _open(self, call: Call) -> None:
        group, address = self.group, self._load.plan.address
        key = new_key() if group.transport == "websocket" else ""
        self._stream = Stream(
            self._load.loop,
            self._recorder,
            address,
            self,
            self._due_ns,
            end=group.end,
            key=key,
            hello=fill(group.message, self.names),
            period_ns=self._period_ns,
            careful=group.conduct in ("flap", "drop"),
            small=group.conduct in ("stall", "vanish"),
            back=self._came_back,
        )
        self._stream.open(request_bytes(call, self.names, address.authority, key, self._last_id))

    # What a stream tells

    def sent(self, stream: Stream) -> None:
        """See `Owner`."""
        if self.group.conduct == "vanish":
            self._go_deaf(stream, self._due_ns)

    def opened(self, stream: Stream) -> None:
        """See `Owner`."""
        group, now_ns = self.group, time.time_ns()
        if group.conduct == "stall":
            at_ns = max(now_ns, self._load.began_ns + int(group.stall_at_s * 1e9))
            self._load.loop.at(at_ns, lambda: self._go_deaf(stream, at_ns))
        elif group.conduct == "flap":
            stay_ns = int(group.stay_s * random.uniform(0.5, 1.5) * 1e9)
            self._load.loop.at(now_ns + stay_ns, lambda: self._drop(stream))
        elif group.conduct == "drop" and not self._came_back:
            self._load.loop.at(now_ns + int(group.stay_s * 1e9), lambda: self._drop(stream))

    def looked(self, whole: bytes, now_ns: int) -> None:
        """See `Owner`."""
        times = due_times(whole)
        if self.group.conduct in ("flap", "drop"):
            self._last_id = last_id(whole) or self._last_id
            self._continuity.feed(times)
        if self._resuming:
            self._resuming = False
            self._recorder.times["resume"].append(now_ns - self._due_ns)
        # What was due before it came is a replay, and not late.
        self._recorder.times["latency"].extend([now_ns - due for due in times if due >= self._due_ns])

    def over(self, stream: Stream, error: str) -> None:
        """See `Owner`."""
        now_ns = time.time_ns()
        self.turn_ended = stream.finished
        if error:
            self._load.fail(self.group, error)
        if self._load.ending:
            self._done()
        elif self._leaving or (error and self.group.conduct == "flap"):
            self._leaving = False
            self._due_ns = now_ns + int(self.group.away_s * 1e9)
            self._load.loop.at(self._due_ns, self._come_back)
        elif self._turn < self.group.turns or (
            not self.group.turns and not error and self._left_s(now_ns) > _SHORTEST_TURN_S
        ):
            self._due_ns = now_ns
            self._load.loop.at(self._due_ns, self.begin)
        else:
            self._done()

    # Conducts

    def _go_deaf(self, stream: Stream, since_ns: int) -> None:
        if not stream.closed:
            self._deaf_ns = since_ns
            stream.stop_reading(self._cut)

    def _cut(self) -> None:
        """Take that the server has given up on us."""
        name = "kept" if self.group.conduct == "vanish" else "cut"
        self._recorder.times[name].append(time.time_ns() - self._deaf_ns)
        self._recorder.counts["cut"] += 1
        self._deaf_ns = 0
        self._stream.leave()

    def _drop(self, stream: Stream) -> None:
        if not stream.closed and not stream.finished:
            self._leaving = True
            stream.leave(reset=self.group.conduct == "flap")

    def _come_back(self) -> None:
        if self._load.ending and self.group.conduct == "flap":
            self._done()
            return
        self._came_back = self._resuming = True
        if not self._last_id:
            self._continuity.restart()
        self._open(self.group.back or self.group.call)

    def _done(self) -> None:
        continuity = self._continuity
        if self._came_back:
            if self.turn_ended:
                continuity.end(self._count)
            self._recorder.counts["checked" if continuity.seen else "not checked"] += 1
            for what, count in (("missing", continuity.missing), ("repeated", continuity.repeated)):
                if count:
                    self._load.fail(self.group, what, count)
        self._load.done(self)
