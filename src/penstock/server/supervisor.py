"""`penstock serve --workers N`: processes that accept from one address, and one that keeps them.

THE ADDRESS. The supervisor binds it once for each worker, with SO_REUSEPORT, so that the kernel deals the connections out
evenly. (One socket that all accept from is dealt out by who wakes first: 39, 210 and 351 of 600 that came one by one.)
A kernel drops what waits in the queue of a listening socket that is closed; here no worker's death closes one, because
the supervisor has them all, and the worker that comes next accepts what waits. Each worker has the others' sockets too,
and takes from them what has waited for `spare_patience_s`: connections of a worker that crashed, or whose producer holds
up the event loop, wait for so long and no longer.

A WORKER is this very command line once more, with `PENSTOCK_WORKER` in its environment; see `worker.py`. It is started
afresh and not forked, so a reload loads new code and certificates, and no thread or lock is copied. It is ready when it
says so. It has a session of its own: Ctrl-C in a terminal is for the supervisor alone, whose word then is the workers'.

| what happens | what the supervisor does |
|---|---|
| the first worker does not start | ends, with its status: the worker has said why |
| a worker ends | starts another, after `first_backoff_s`, doubled up to `backoff_max_s` while they don't last `steady_s` |
| no worker is left, and `starts` in a row came to nothing | ends, with 1 |
| SIGHUP | for one worker after the other: starts a new one, waits until it accepts, drains the old one with SIGHUP: its clients are told of a restart |
| a new worker does not start then | leaves the old ones as they are |
| SIGTERM, SIGINT | drains all; kills who is still there after `drain_s` and `kill_s` |
| a second one | has the workers end at once |
| the supervisor is killed | the workers drain and end |

THE NUMBERS of all workers are here, where one scrape gets them: each worker says every second what it has counted, and once
more at its end. Counters go on over a seat's processes; see `_Seat.values`.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from functools import partial

import trio

from penstock.limits import Limits
from penstock.metrics import MEASURES, Counters, Series, known
from penstock.server.log import logger
from penstock.server.scrape import serve_metrics
from penstock.server.tcp import open_listeners, url_of
from penstock.server.worker import Seat
from penstock.server.worker_process import WorkerProcess


class SupervisionError(Exception):
    """The workers don't start. `status` is what to exit with; the message is empty where the worker has said why."""

    def __init__(self, message: str, status: int) -> None:
        super().__init__(message)
        self.status = status


class _Seat:
    """One of the places of workers, and who has it."""

    def __init__(self, number: int, supervisor: Supervisor) -> None:
        self.number = number
        self._supervisor = supervisor
        self._process: WorkerProcess | None = None
        self.taken = trio.Event()
        """Set when somebody is here for the first time."""
        self._news = trio.Event()
        self._reload: trio.Event | None = None
        self._reloaded = False
        self._predecessor: WorkerProcess | None = None
        self._past = Counters()
        """What those who have ended here have counted."""

    def values(self, here: Iterable[WorkerProcess]) -> dict[Series, int]:
        """Return what was counted in this seat, with its number as a label.

        Args:
            here: the processes that are in the seat now: two, while one of them drains.
        """
        total = Counters()
        for values in (self._past.values, *(process.values for process in here)):
            for (name, labels), value in values.items():
                total.count(name, value, worker=str(self.number), **dict(labels))
        return total.values

    def ended(self, process: WorkerProcess) -> None:
        """Keep the counters of a process that was here; its gauges have no meaning any more."""
        for (name, labels), value in process.values.items():
            if name in MEASURES and MEASURES[name].kind == "counter":
                self._past.count(name, value, **dict(labels))

    @property
    def ready(self) -> bool:
        """Whether somebody accepts here, as far as is known."""
        return self._process is not None and not self._process.ended.is_set()

    def tell(self) -> None:
        """There is something to see to."""
        self._news.set()

    async def reload(self) -> bool:
        """Have another process take this place; return whether one did, once the old one has ended."""
        self._reload = done = trio.Event()
        self.tell()
        await done.wait()
        if self._predecessor is not None:
            await self._predecessor.ended.wait()
        return self._reloaded

    async def run(self, process: WorkerProcess | None = None) -> None:
        """See that somebody is here, until cancelled.

        Args:
            process: who is here already.
        """
        limits = self._supervisor.limits.supervisor
        backoff_s = limits.first_backoff_s
        while True:
            self._process = process or await self._supervisor.start(self.number, self.tell)
            if self._process is not None:
                self.taken.set()
                self._came(reloaded=True)
                await self._stay()
                if trio.current_time() - self._process.began >= limits.steady_s:
                    backoff_s = limits.first_backoff_s
                self._supervisor.counters.count("worker_crashes")
                logger.error(
                    "worker %d (pid %d) ended with %d: another one in %g s",
                    self.number, self._process.pid, self._process.status, backoff_s,
                )  # fmt: skip
            else:
                self._came(reloaded=False)
                logger.error("worker %d did not start: trying again in %g s", self.number, backoff_s)
            process = self._process = None
            self._supervisor.check_hope()
            await trio.sleep(backoff_s)
            backoff_s = min(2 * backoff_s, limits.backoff_max_s)

    async def _stay(self) -> None:
        """Wait for the end of whoever is here, and reload in between."""
        assert self._process is not None
        while not self._process.ended.is_set():
            self._news = trio.Event()
            if self._reload is not None:
                successor = await self._supervisor.start(self.number, self.tell)
                if successor is not None:
                    self._predecessor, self._process = self._process, successor
                    self._supervisor.dismiss(self._predecessor)
                self._came(reloaded=successor is not None)
            else:
                await self._news.wait()

    def _came(self, *, reloaded: bool) -> None:
        if self._reload is not None:
            self._reloaded = reloaded
            self._reload.set()
            self._reload = None


class Supervisor:
    """Keeps the workers. Made by `supervise`."""

    def __init__(
        self,
        command: Sequence[str],
        bindings: Sequence[Sequence[socket.socket]],
        nursery: trio.Nursery,
        limits: Limits,
    ) -> None:
        self.limits = limits
        self.leave_s = limits.server.drain_s + limits.server.app_stop_s + limits.supervisor.kill_s
        self._command = list(command)
        self._bindings = bindings
        self._nursery = nursery
        self._processes: set[WorkerProcess] = set()
        self._failed = 0
        """Starts in a row that came to nothing."""
        self._status = 0
        """How the last of these ended."""
        self._seats = [_Seat(number, self) for number in range(1, len(bindings) + 1)]
        self._keeping = trio.CancelScope()
        self.failure: SupervisionError | None = None
        self.leaving = False
        """Whether they are to end."""
        self.wanted = trio.Event()
        """Set when new workers are wanted."""
        self.counters = Counters(known(["worker_crashes"]))

    def values(self) -> dict[Series, int]:
        """Return what all workers have counted, and the supervisor itself."""
        values = dict(self.counters.values)
        values["workers", ()] = sum(seat.ready for seat in self._seats)
        for seat in self._seats:
            here = [process for process in self._processes if process.number == seat.number]
            values |= seat.values(here)
        return values

    async def run(self, started: Callable[[], None]) -> None:
        """Keep a worker in each seat until `end` is called or there is no hope, which is `failure`; then have them leave.

        Args:
            started: called once all accept connections.
        """
        try:
            with self._keeping:
                # One alone at first: a wrong command line is complained of once, and a new journal is made by one.
                first = await self.start(1, self._seats[0].tell)
                if first is None:
                    self._fail(SupervisionError("", self._status or 1))
                    return
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(self._seats[0].run, first)
                    for seat in self._seats[1:]:
                        nursery.start_soon(seat.run)
                    for seat in self._seats:
                        await seat.taken.wait()
                    started()
                    while True:
                        await self.wanted.wait()
                        self.wanted = trio.Event()
                        await self._reload()
        finally:
            with trio.move_on_after(self.leave_s + self.limits.supervisor.kill_s, shield=True):
                await self._leave()

    def end(self) -> None:
        """Have the workers leave."""
        self.leaving = True
        self._keeping.cancel("a signal")

    async def start(self, number: int, news: Callable[[], None]) -> WorkerProcess | None:
        """Start a worker, and wait until it accepts connections. None if it doesn't; it has ended then."""
        here, there = socket.socketpair()
        others = [listener for i, own in enumerate(self._bindings, 1) if i != number for listener in own]
        seat = Seat(
            number=number,
            control=there.fileno(),
            own=[listener.fileno() for listener in self._bindings[number - 1]],
            spare=[listener.fileno() for listener in others],
        )
        with there:
            process = WorkerProcess(
                number,
                await trio.lowlevel.open_process(
                    self._command,
                    stdin=subprocess.DEVNULL,
                    env={**os.environ, **seat.environment()},
                    pass_fds=seat.descriptors,
                    start_new_session=True,
                ),
                here,
            )
        self._processes.add(process)
        self._nursery.start_soon(self._attend, process, news)
        ready = False
        with trio.move_on_after(self.limits.supervisor.start_s):
            ready = await process.wait_ready()
        if ready:
            logger.info("worker %d (pid %d) accepts connections", number, process.pid)
            self._failed = 0
            return process
        self._failed += 1
        # It may still be on its way out, with its reasons.
        with trio.move_on_after(self.limits.supervisor.kill_s):
            await process.ended.wait()
        await process.kill()
        self._status = process.status
        return None

    async def _attend(self, process: WorkerProcess, news: Callable[[], None]) -> None:
        await process.attend(news)
        self._processes.discard(process)
        self._seats[process.number - 1].ended(process)

    def check_hope(self) -> None:
        """End it if no worker is left and none starts."""
        if self._failed >= self.limits.supervisor.starts and not any(seat.ready for seat in self._seats):
            self._fail(SupervisionError(f"no worker is left, and {self._failed} in a row did not start", 1))

    def _fail(self, failure: SupervisionError) -> None:
        self.failure = failure
        self._keeping.cancel("the workers don't start")

    async def _reload(self) -> None:
        """Replace one worker after the other."""
        for seat in self._seats:
            if not await seat.reload():
                logger.error("a new worker did not start: the others stay as they are")
                return
        logger.info("all workers are new")

    async def _leave(self) -> None:
        """Have all workers drain, and wait for their end."""
        async with trio.open_nursery() as nursery:
            for process in list(self._processes):
                nursery.start_soon(process.leave, self.leave_s)

    def dismiss(self, process: WorkerProcess) -> None:
        """Have one worker leave to another that is here already."""
        self._nursery.start_soon(partial(process.leave, self.leave_s, restart=True))

    def hasten(self) -> None:
        """Have workers that drain end at once."""
        for process in self._processes:
            process.signal(signal.SIGTERM)


async def open_bindings(host: str, port: int, workers: int, *, limits: Limits) -> list[list[socket.socket]]:
    """Bind and listen on every address of `host`, once for each worker.

    Raises:
        OSError: no such host, or the port is in use.
    """
    # First without SO_REUSEPORT: another server's address is not to be shared by mistake.
    probe = await open_listeners(host, port, limits=limits.server)
    port = probe[0].getsockname()[1]
    for listener in probe:
        listener.close()
    bindings: list[list[socket.socket]] = []
    try:
        for _ in range(workers):
            bindings += [await open_listeners(host, port, shared=True, limits=limits.server)]
    except BaseException:
        close_bindings(bindings)
        raise
    return bindings


def close_bindings(bindings: Sequence[Sequence[socket.socket]]) -> None:
    """Close what `open_bindings` has opened."""
    for listeners in bindings:
        for listener in listeners:
            listener.close()


async def supervise(
    command: Sequence[str],
    *,
    host: str,
    port: int,
    workers: int,
    scheme: str,
    limits: Limits,
    say: Callable[[list[str]], None],
    scraped: list[socket.socket] | None = None,
) -> None:
    """Keep so many workers on one address, until SIGTERM or SIGINT; then drain. For the main thread only.

    Args:
        command: what makes a worker.
        host: a name or address; every address it stands for is bound.
        port: 0 lets the system pick one, which all workers get.
        workers: how many.
        scheme: of the URLs.
        limits: how long, and how often; see `SupervisorLimits`.
        say: told the URLs once all workers accept connections.
        scraped: bound sockets on which to answer `GET /metrics` with the numbers of all; closed at the end.

    Raises:
        OSError: the address can't be bound.
        SupervisionError: the workers don't start.

    Cancellation: the workers see that the supervisor is gone, and drain.
    """
    bindings = await open_bindings(host, port, workers, limits=limits)
    # Who has started us with `nohup` wants us to outlive the terminal.
    hang_up = signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN
    numbers = [signal.SIGTERM, signal.SIGINT, *([signal.SIGHUP] if hang_up else [])]
    try:
        with trio.open_signal_receiver(*numbers) as signals:
            async with trio.open_nursery() as nursery:
                supervisor = Supervisor(command, bindings, nursery, limits)
                nursery.start_soon(_obey, supervisor, signals)
                if scraped is not None:
                    nursery.start_soon(serve_metrics, scraped, supervisor.values)
                await supervisor.run(partial(say, [url_of(listener, scheme) for listener in bindings[0]]))
                nursery.cancel_scope.cancel("the workers have ended")
    finally:
        close_bindings(bindings)
    if supervisor.failure is not None:
        raise supervisor.failure


async def _obey(supervisor: Supervisor, signals: AsyncIterator[int]) -> None:
    async for number in signals:
        if number == signal.SIGHUP:
            logger.warning("SIGHUP: starting new workers, one after the other")
            supervisor.wanted.set()
        elif supervisor.leaving:
            logger.warning("%s again: the workers end at once", signal.Signals(number).name)
            supervisor.hasten()
        else:
            logger.warning("%s: draining the workers", signal.Signals(number).name)
            supervisor.end()
