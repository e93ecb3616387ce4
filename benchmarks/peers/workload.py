"""What every peer in Python is asked for, and the part of it that is not its library's: a schedule, and who watches.

A peer answers `POST /api/chat` as the AI SDK asks for it, and `GET /api/chat/{chat}/watch`. The text of the last
message is `/pace COUNT RATE`, so many deltas at so many a second, or `/long COUNT`, as fast as it goes. A paced delta
says when it was due, in ns since 1970: who falls behind shows it as latency. penstock's own demo says the same bytes.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from typing import Any, Generic, TypeVar

KEEPALIVE_S = 15.0
"""Seconds between two comments on a quiet stream, as in all of the libraries that have their own."""

ItemT = TypeVar("ItemT")


class Deltas:
    """The deltas that one request asks for.

    Args:
        body: the request's, parsed.
    """

    def __init__(self, body: Mapping[str, Any]) -> None:
        name, count, *rate = body["messages"][-1]["parts"][0]["text"].split()
        self.chat: str = body["id"]
        self.count = int(count)
        self._rate = float(rate[0]) if name == "/pace" else 0.0
        self._began = time.time()

    async def text(self, number: int) -> str:
        """Return a delta's text when it is due: a late one at once, but never without letting others run."""
        if not self._rate:
            return f"{number} "
        due = self._began + number / self._rate
        await asyncio.sleep(max(0.0, due - time.time()))
        return f"drop {number:07} @{int(due * 1e9)} "


class Fan(Generic[ItemT]):
    """Who watches which chat: a queue for each viewer."""

    def __init__(self) -> None:
        self._queues: dict[str, set[asyncio.Queue[ItemT]]] = {}

    def add(self, chat: str) -> asyncio.Queue[ItemT]:
        """Return the queue of a new viewer."""
        queue = asyncio.Queue[ItemT]()
        self._queues.setdefault(chat, set()).add(queue)
        return queue

    def remove(self, chat: str, queue: asyncio.Queue[ItemT]) -> None:
        """Forget a viewer, who was added."""
        queues = self._queues[chat]
        queues.discard(queue)
        if not queues:
            del self._queues[chat]

    def publish(self, chat: str, item: ItemT) -> None:
        """Give an item to all viewers of a chat."""
        for queue in self._queues.get(chat, ()):
            queue.put_nowait(item)

    async def keep_alive(self, item: ItemT) -> None:
        """Give an item to every viewer, every 15 s. For servers whose library has no keepalive: the cheapest there is."""
        while True:
            await asyncio.sleep(KEEPALIVE_S)
            for chat in list(self._queues):
                self.publish(chat, item)
