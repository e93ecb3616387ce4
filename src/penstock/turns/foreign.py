"""What others say in a chat: events that are in no journal, for those who watch. See `penstock.interop`."""

from __future__ import annotations

from types import TracebackType
from typing import Any, NamedTuple, Protocol, Self


class ForeignEvent(NamedTuple):
    """Something that a service which is no penstock said in a chat, or that it can't be heard."""

    name: str
    value: Any
    """A value of JSON's."""
    text: str | None = None
    """As it was said, where it was no JSON."""


class ForeignListener(Protocol):
    """What one watcher hears in one chat, from its block's beginning on. It holds a bounded number of events."""

    def __enter__(self) -> Self:
        """Begin to listen."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""

    async def next_events(self) -> list[ForeignEvent]:
        """Sleep until there is something, and return all there is. Cancelled, nothing is lost."""


class ForeignChats(Protocol):
    """Where others are heard."""

    def listen(self, chat_id: str) -> ForeignListener:
        """Return a listener in a chat."""
