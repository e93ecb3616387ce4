"""What a node makes of what the others say, when they say more than it can look at."""

from __future__ import annotations

import trio
from trio.testing import MockClock

from penstock.errors import StoreUnavailableError
from penstock.journal.memory import MemoryStore
from penstock.journal.store import TurnRecord
from penstock.limits import HubLimits
from penstock.metrics import Counters
from penstock.testing.store_calls import begin
from penstock.turns.peers import Peers

LIMITS = HubLimits(unseen_turns=10, flush_retry_s=0.1)


class SharedStore(MemoryStore):
    """One that other processes could have open."""

    private = False


async def test_more_turns_than_can_be_looked_at_are_found_by_looking_at_the_chats(
    autojump_clock: MockClock,
) -> None:
    """None goes unseen and uncounted, and what waits is bounded. Also if the store is away in between."""
    store, counters = SharedStore(), Counters()
    shown: set[str] = set()
    looks = 0
    slow, away = trio.Event(), True

    async def began(chat_id: str, turn_id: str) -> None:
        await slow.wait()
        record = await store.turn(turn_id)
        assert record is not None
        shown.add(turn_id)

    async def missed() -> None:
        nonlocal away, looks
        looks += 1
        if away:
            away = False
            raise StoreUnavailableError("the store is away")
        for number in range(100):
            chat = await store.chat(f"c{number}")
            if chat is not None and chat.turn is not None:
                shown.add(chat.turn.turn_id)

    async def nothing(*args: object) -> None:
        raise AssertionError("nobody tells this one")

    here = Peers(store, {}, began=began, missed=missed, limits=LIMITS, metrics=counters)
    there = Peers(store, {}, began=nothing, missed=nothing, limits=LIMITS, metrics=Counters())
    async with trio.open_nursery() as nursery:
        nursery.start_soon(here.run)
        nursery.start_soon(there.run)
        await trio.testing.wait_all_tasks_blocked()

        async def tell(numbers: range) -> list[TurnRecord]:
            records = [await begin(store, f"t{number}", f"c{number}") for number in numbers]
            for record in records:
                there.began(record)
                await trio.testing.wait_all_tasks_blocked()
                assert len(here._unseen) <= LIMITS.unseen_turns + 1
            return records

        records = await tell(range(5))
        assert not counters.values
        records += await tell(range(5, 100))
        skipped = counters.get("peer_turns_skipped")
        assert skipped == len(records) - LIMITS.unseen_turns - 1
        slow.set()
        with trio.fail_after(5):
            while len(shown) < len(records):
                await trio.sleep(0.05)
        assert looks == 2, "one that failed, and one for all that was skipped"
        assert counters.get("peer_turns_skipped") == skipped
        await tell(range(100, 105))
        assert len(shown) == 105
        nursery.cancel_scope.cancel()
