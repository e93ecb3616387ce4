"""Two hubs on one journal: whose turn it is, and what the followers of each see when that changes."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import NamedTuple

import pytest
import trio

from penstock import Hub, Limits, Turn, TurnState, open_hub
from penstock.errors import StoreUnavailableError
from penstock.journal.entry import Entry
from penstock.journal.subscription import Subscription
from penstock.limits import HubLimits, SqliteLimits
from penstock.testing import user_message
from penstock.wire.chunks import Error, TextDelta, TextStart

LIMITS = Limits(hub=HubLimits(replica_poll_s=0.01, flush_s=0.005), sqlite=SqliteLimits(notes_s=0.01))


class Nodes(NamedTuple):
    """Two of them."""

    a: Hub
    b: Hub


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[Nodes]:
    """Two hubs on one file."""
    journal = f"sqlite:{tmp_path}/chat.db"
    async with open_hub(journal=journal, limits=LIMITS) as a, open_hub(journal=journal, limits=LIMITS) as b:
        yield Nodes(a, b)


async def rest_of(subscription: Subscription) -> list[Entry]:
    """Take everything to the end."""
    entries: list[Entry] = []
    while True:
        try:
            entries += await subscription.next_batch(100)
        except trio.EndOfChannel:
            return entries


@pytest.mark.parametrize("more", [0, 1, 2, 3])
async def test_a_turn_that_was_taken_away_is_never_ended_politely(nodes: Nodes, more: int) -> None:
    """Also if the owner has shown as many entries beyond the journal as the new one has written."""
    written, taken = trio.Event(), trio.Event()

    async def answer(turn: Turn) -> None:
        await turn.write(TextStart(id="t"))
        await turn.write(TextDelta(id="t", delta="shared"))
        await turn.flush()
        written.set()
        await taken.wait()
        for _ in range(more):
            await turn.write(TextDelta(id="t", delta="only here"))
        await trio.sleep_forever()

    with trio.fail_after(10):
        mine = await nodes.a.start_turn("chat", answer, [user_message("Go")])
        await written.wait()
        theirs = await nodes.b.newest_turn("chat")
        assert theirs is not None
        with mine.follow() as here, theirs.follow() as there:
            record = await nodes.b._store.turn(mine.id)
            assert record is not None
            await nodes.b._abandoned.end(record, None)
            taken.set()
            nodes.a._leases.hasten()
            # The followers of the store go on in the new epoch; the owner's do too, if they have seen no more.
            entries = await rest_of(there)
            assert isinstance(entries[-1].chunk, Error)
            epochs = [entry.id.rpartition(b".")[2].partition(b"-")[0] for entry in entries]
            assert epochs == [b"1"] * record.entries + [b"2"] * (len(entries) - record.entries)
            if more:
                with pytest.raises(StoreUnavailableError):
                    await rest_of(here)
            else:
                assert [(entry.id, entry.json) for entry in await rest_of(here)] == [
                    (entry.id, entry.json) for entry in entries
                ]
        while nodes.a.statistics().turns_running:
            await trio.sleep(0.005)
        again = await nodes.a.turn(mine.id)
        assert again is not None
        assert (again.state, again.entries) == (TurnState.lost, len(entries))


async def test_who_watches_on_another_node_is_shown_what_begins(nodes: Nodes) -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("hello")

    with trio.fail_after(10), nodes.b.watch("chat") as watcher:
        for number in range(3):
            message = user_message(f"Go {number}")
            turn = await nodes.a.start_turn("chat", answer, [message])
            begun = await watcher.next_turn()
            assert begun is not None
            assert (begun.turn.id, begun.message.id, begun.sure) == (turn.id, message.id, True)
            with begun.turn.follow() as subscription:
                assert len(await rest_of(subscription)) == turn.entries
