"""The guarantees to those who follow turns from outside their process, as tests; a part of `store_suite.py`."""

from __future__ import annotations

import msgspec
import trio

from penstock.journal.store import Batch, Place
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, begin, end


class FollowingSuite:
    """One test for each of them."""

    async def test_looked_at_whole(self, open_store: OpenStore) -> None:
        """Who looks while a turn is written, taken over and ended sees each time what its record counts, and no more."""
        async with open_store(retention=FOREVER) as store, trio.open_nursery() as nursery:
            turn, other = await begin(store), await begin(store, "t2", "c2")
            nobody = msgspec.structs.replace(turn, turn_id="nobody")
            entries = [b"%d" % i for i in range(30)]
            assert list(await store.look([], 9)) == []

            async def follow(count: int) -> None:
                seen: list[bytes] = []
                while True:
                    places = [Place(nobody, 0), Place(turn, len(seen)), Place(other, 0), Place(turn, 99)]
                    none, look, still, past = await store.look(places, count)
                    assert none is None
                    assert look is not None
                    assert still is not None
                    assert past is not None
                    assert (still.record, len(still.entries), len(past.entries)) == (other, 0, 0)
                    assert len(look.entries) == min(count, look.record.entries - len(seen))
                    assert look.record.epoch == 1 or look.record.entries >= 20
                    seen += look.entries
                    if look.record.state.ended and len(seen) == look.record.entries:
                        assert seen == [*entries, b"end"]
                        return
                    await trio.lowlevel.checkpoint()

            for count in (1, 4, 99):
                nursery.start_soon(follow, count)
            with trio.fail_after(4):
                for offset in range(0, 20, 2):
                    await store.append([Batch(turn, offset, entries[offset : offset + 2])])
                now = await store.turn("t1")
                assert now is not None
                assert await store.renew([now], LEASE + 1) == {"t1"}
                now = msgspec.structs.replace(now, lease_until=LEASE + 1)
                taken = await store.adopt(now, lease_until=LEASE)
                assert taken is not None
                await store.append([Batch(taken, 20, entries[20:])])
                assert await end(store, taken, 30)

    async def test_told_or_asked(self, open_store: OpenStore) -> None:
        """Somebody who looks only when there is news sees everything, and soon."""
        async with open_store(retention=FOREVER) as store, trio.open_nursery() as nursery:
            turn = await begin(store)

            async def follow() -> None:
                with store.news(turn) as news:
                    while True:
                        record = await store.turn("t1")
                        assert record is not None
                        if record.state.ended:
                            assert len(await store.read("t1", 0, 99)) == record.entries == 51
                            return
                        await news.wait(0.01)

            for _ in range(3):
                nursery.start_soon(follow)
            with trio.fail_after(4):
                for offset in range(50):
                    await store.append([Batch(turn, offset, [b"x"])])
                assert await end(store, turn, 50)

    async def test_told_is_heard(self, open_store: OpenStore) -> None:
        """Who listens hears all of it in its order, or that he has missed some; who comes later, what is told then."""
        async with open_store(retention=FOREVER) as store:
            with store.notes() as notes, store.notes() as others:
                await store.tell([b"a", b"b"])
                await store.tell([b"c"])
                with trio.fail_after(4):
                    for listener in (notes, others):
                        heard: list[bytes] = []
                        while len(heard) < 3:
                            said = await listener.wait()
                            assert not said.missed
                            heard += said.notes
                        assert heard == [b"a", b"b", b"c"]
            with store.notes() as notes, trio.fail_after(4):
                await store.tell([b"d"])
                while b"d" not in (await notes.wait()).notes:
                    pass
