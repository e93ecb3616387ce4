"""Calls that the tests of a store make again and again."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol, TypeVar

import trio

from penstock.journal.store import Batch, Retention, Store, TurnRecord, TurnState
from penstock.testing import user_message
from penstock.wire.messages import UIMessage

T = TypeVar("T")


class OpenStore(Protocol):
    """Opens the store under test."""

    def __call__(self, *, retention: Retention) -> AbstractAsyncContextManager[Store]:
        """Return a context manager of it."""


FOREVER = Retention(turn_age_s=1e12, turns_per_chat=1_000_000, bytes=1 << 40, chat_age_s=1e12)
"""What a test wrote is there when it looks, whatever time it gave."""
LEASE = 2e9
"""A lease that no test outlives: the year 2033."""


async def begin(
    store: Store, turn_id: str = "t1", chat_id: str = "c1", *, at: float | None = None
) -> TurnRecord:
    """Begin a turn that answers one message."""
    messages = [user_message("Hello", id=f"u-{turn_id}")]
    now = time.time() if at is None else at
    return await store.begin(chat_id, turn_id, messages[0].id, messages, at=now, lease_until=LEASE)


def answer(turn_id: str) -> UIMessage:
    """The message that a turn makes."""
    return UIMessage(id=turn_id, role="assistant", parts=[{"type": "text", "text": f"I am {turn_id}."}])


async def end(
    store: Store, turn: TurnRecord, offset: int = 0, *, state: TurnState = TurnState.finished, at: float = 0.0
) -> bool:
    """Seal a turn with one more entry."""
    return await store.seal(Batch(turn, offset, [b"end"]), state, answer(turn.turn_id), at=at or time.time())


async def gather(calls: Sequence[Callable[[], Awaitable[T]]]) -> list[T | Exception]:
    """Make the calls at once, and return what each returned or raised."""
    results: list[T | Exception] = []

    async def run(call: Callable[[], Awaitable[T]]) -> None:
        try:
            results.append(await call())
        except Exception as exc:
            results.append(exc)

    async with trio.open_nursery() as nursery:
        for call in calls:
            nursery.start_soon(run, call)
    return results


async def until(condition: Callable[[], Awaitable[bool]]) -> None:
    """Wait for something that a store does in passing."""
    with trio.fail_after(5):
        while True:
            if await condition():
                return
            await trio.sleep(0.002)


async def until_gone(store: Store, turn_id: str) -> None:
    """Wait until retention has removed a turn."""

    async def is_gone() -> bool:
        return await store.turn(turn_id) is None

    await until(is_gone)
