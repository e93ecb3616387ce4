"""The loop of a load process: one thread, `epoll`, plain sockets, callbacks.

No Trio and no asyncio here, for the tool must cost far less for each event than any server that it measures. A task
switch, a cancel scope and a buffered stream are 20 us on Trio and 10 on asyncio; a dictionary, a `recv` and the time
are 2. Nothing here waits for more than one thing, so there is nothing for a nursery to hold: the process is the scope,
and it ends with its parent (`worker.py`).
"""

from __future__ import annotations

import heapq
import select
import time
from collections.abc import Callable

READABLE = select.EPOLLIN | select.EPOLLRDHUP
WRITABLE = select.EPOLLOUT
GONE = select.EPOLLRDHUP | select.EPOLLERR | select.EPOLLHUP
"""The other side has left, or we have been cut; known without reading."""

_NEVER_NS = 1 << 62


class Loop:
    """Calls handlers when their descriptors are ready, and timers when they are due."""

    def __init__(self) -> None:
        self._epoll = select.epoll()
        self._handlers: dict[int, Callable[[int], None]] = {}
        self._timers: list[tuple[int, int, Callable[[], None]]] = []
        self._timer_number = 0
        self._stopped = False

    def add(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Call `handler` with what is ready, as long as it is."""
        self._epoll.register(fd, mask)
        self._handlers[fd] = handler

    def change(self, fd: int, mask: int, handler: Callable[[int], None]) -> None:
        """Wait for something else, or let another one handle it."""
        self._epoll.modify(fd, mask)
        self._handlers[fd] = handler

    def remove(self, fd: int) -> None:
        """Forget a descriptor; before it is closed."""
        if self._handlers.pop(fd, None) is not None:
            self._epoll.unregister(fd)

    def at(self, due_ns: int, call: Callable[[], None]) -> None:
        """Call once, when it is due, and not within the handler that asks for it."""
        self._timer_number += 1
        heapq.heappush(self._timers, (due_ns, self._timer_number, call))

    def stop(self) -> None:
        """Let `run` return."""
        self._stopped = True

    def run(self) -> None:
        """Run until `stop`."""
        timers, handlers, poll, clock = self._timers, self._handlers, self._epoll.poll, time.time_ns
        while not self._stopped:
            now_ns = clock()
            while timers and timers[0][0] <= now_ns and not self._stopped:
                heapq.heappop(timers)[2]()
            due_ns = timers[0][0] if timers else _NEVER_NS
            for fd, mask in poll(max(0.0, (due_ns - clock()) / 1e9) if timers else None):
                handler = handlers.get(fd)
                if handler is not None:
                    handler(mask)

    def close(self) -> None:
        """Close the epoll descriptor."""
        self._epoll.close()
