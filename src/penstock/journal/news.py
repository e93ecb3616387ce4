"""How somebody who follows a turn from outside its process learns that there is more of it.

Some stores can say so; the others are asked again every so often. News is a hint and never the truth: it has no content,
may come for nothing, and may be lost, so that whoever waits for it looks again every few seconds all the same.
"""

from __future__ import annotations

from types import TracebackType
from typing import Protocol, Self

import trio


class News(Protocol):
    """News of one turn, as a context manager. It counts what happens from the block's beginning on."""

    def __enter__(self) -> Self:
        """Begin to listen."""

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Listen no more."""

    async def wait(self, poll_s: float) -> None:
        """Sleep until the turn may have changed since the last wait ended, or since the block began.

        Args:
            poll_s: for how long to sleep where the store can't say.

        Cancelled, it has missed nothing.
        """


class Polling:
    """No news: look again in a moment."""

    def __enter__(self) -> Self:
        """See `News`."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """See `News`."""

    async def wait(self, poll_s: float) -> None:
        """See `News.wait`."""
        await trio.sleep(poll_s)
