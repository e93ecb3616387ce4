"""One load process's share of a run: who arrives when, what is measured from when to when, and how it ends.

Arrivals are scheduled by the clock before the run begins, and nothing that a server does puts one off: what a client
waits for its turn to begin counts as its wait. So a server that stands still for a second shows it.

The order of things: arrivals and measuring; `ending`, when streams may come to their end but no more begin; closing;
stopping of turns that were not seen to end; the report.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from penstock.bench.client import Client
from penstock.bench.loop import Loop
from penstock.bench.plan import Group, Order, Progress, Report
from penstock.bench.recorder import Recorder
from penstock.bench.request import request_bytes
from penstock.bench.stream import Owner, Stream

_TICK_NS = 1_000_000_000
_STOPS_AT_ONCE = 100
"""Turns that are being stopped at the same time: enough to be quick, and no storm."""


class Load(Owner):
    """What one process does.

    Args:
        order: its share.
        loop: who calls.
        tell: takes progress, once a second.
    """

    def __init__(self, order: Order, loop: Loop, tell: Callable[[Progress], None]) -> None:
        self.plan = order.plan
        self.loop = loop
        self.recorder = Recorder()
        self.unmeasured = Recorder()
        self.names = {"run": order.plan.run}
        self.began_ns = 0
        self.ending = False
        self._worker = order.worker
        self._workers = order.workers
        self._tell = tell
        self._clients: set[Client] = set()
        self._awaited = 0
        self._measuring = False
        self._closing = False
        self._overfull = False
        self._to_stop: list[Client] = []
        self._stopping = 0

    def start(self, at_ns: int) -> None:
        """Schedule the whole run."""
        self.began_ns = at_ns
        plan = self.plan
        for group in plan.groups:
            for number in range(self._worker, group.connections, self._workers):
                due_ns = at_ns + int(group.due_s(number) * 1e9)
                self.loop.at(due_ns, partial(self._arrive, group, number, due_ns))
                self._awaited += group.measured
        self.recorder.tick(at_ns, measured=False)
        self.loop.at(at_ns + _TICK_NS, self._tick)
        from_ns = at_ns + int(plan.measure_from_s * 1e9)
        self.loop.at(from_ns, self._measure)
        self.loop.at(from_ns + int(plan.measure_s * 1e9), self._end)

    def halt(self) -> None:
        """End now."""
        self._end()
        self._close()

    def report(self) -> Report:
        """Say what was found, once the loop has stopped."""
        return self.recorder.report(self.began_ns, overfull=self._overfull)

    # What clients tell

    def fail(self, group: Group, error: str, count: int = 1) -> None:
        """Count errors."""
        self.recorder.errors[error if group.measured else f"producer: {error}"] += count

    def done(self, client: Client) -> None:
        """Take that a client will do no more."""
        self._clients.discard(client)
        if client.group.stop is not None and not client.turn_ended:
            self._to_stop.append(client)
        self._left(client.group)

    def _left(self, group: Group) -> None:
        self._awaited -= group.measured
        if not self._awaited and (self.plan.until_done or not self.recorder.opened):
            self._end()  # There is nothing left to be measured.
        if self.ending and not self._closing and not self._draining():
            self.loop.at(0, self._close)

    # The course of the run

    def _arrive(self, group: Group, number: int, due_ns: int) -> None:
        if self.ending:
            return
        if group.max_in_flight and len(self._clients) >= max(1, group.max_in_flight // self._workers):
            self.fail(group, "not started")
            self._left(group)
            return
        client = Client(self, group, number, due_ns)
        self._clients.add(client)
        client.begin()

    def _tick(self) -> None:
        now_ns = time.time_ns()
        recorder = self.recorder
        self._tell(
            Progress(
                at_s=(now_ns - self.began_ns) / 1e9,
                open=recorder.open,
                events=recorder.events,
                errors=recorder.errors.total(),
                lateness=recorder.shown(),
            )
        )
        recorder.tick(now_ns, measured=self._measuring)
        if recorder.size > self.plan.samples:
            self._overfull = True
            self.halt()
        self.loop.at(now_ns - (now_ns - self.began_ns) % _TICK_NS + _TICK_NS, self._tick)

    def _measure(self) -> None:
        if not self.ending:
            self._measuring = True
            self.recorder.tick(time.time_ns(), measured=True)

    def _end(self) -> None:
        if self.ending:
            return
        self.ending = True
        self._measuring = False
        now_ns = time.time_ns()
        self.recorder.tick(now_ns, measured=False)
        self.loop.at(now_ns + int(self.plan.drain_s * 1e9), self._close)
        if not self._draining():
            self.loop.at(0, self._close)

    def _draining(self) -> bool:
        """Say whether there are streams that come to an end by themselves."""
        return any(client.group.drains for client in self._clients)

    def _close(self) -> None:
        if self._closing:
            return
        self._closing = True
        now_ns = time.time_ns()
        for client in list(self._clients):
            if client.deaf:
                self.recorder.counts["held"] += 1
            elif client.group.must_end:
                self.fail(client.group, "unfinished")
            elif client.waits_for_answer(now_ns):
                self.fail(client.group, "no answer")
            client.leave()
        self.loop.at(now_ns + int(self.plan.stop_s * 1e9), self._finish)
        for _ in range(_STOPS_AT_ONCE):
            self._stop_next()

    def _stop_next(self) -> None:
        """Ask for one more turn to be stopped, so that nothing is left running."""
        if not self._to_stop:
            if not self._stopping:
                self.loop.at(0, self._finish)
            return
        client = self._to_stop.pop()
        assert client.group.stop is not None
        self._stopping += 1
        stream = Stream(self.loop, self.unmeasured, self.plan.address, self, time.time_ns())
        stream.open(request_bytes(client.group.stop, client.names, self.plan.address.authority))

    def over(self, stream: Stream, error: str) -> None:
        """Take that a request to stop was answered, or failed, which is no finding."""
        self._stopping -= 1
        self.loop.at(0, self._stop_next)

    def _finish(self) -> None:
        self.recorder.tick(time.time_ns(), measured=False)
        self.loop.stop()
