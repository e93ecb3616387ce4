"""Histories of a store against plain lists.

A program is drawn as data and run on a store and on plain lists in one run of Trio; what the store answers must be what
the lists say, and so must all that it holds in between and at the end.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import Any

import msgspec
import pytest
from hypothesis import strategies as st

from penstock.errors import LocalProtocolError, TurnSealedError
from penstock.journal.store import Batch, RunningTurnError, Store, TurnRecord, TurnState
from penstock.testing import user_message
from penstock.testing.store_calls import FOREVER, LEASE, OpenStore, answer
from penstock.wire.messages import UIMessage

CHATS = 3
KEPT_TURNS = 2
Step = tuple[str, int, int, int]
STEPS = st.tuples(
    st.sampled_from(
        ["begin", "begin", "append", "append", "append", "seal", "seal", "suspend", "seal-again", "resume", "adopt",
         "adopt-stale", "renew", "old-owner", "reopen", "crash"]
    ),
    st.integers(0, CHATS - 1),
    st.integers(0, 3),
    st.integers(0, 4),
)  # fmt: skip


class ModelTurn:
    """A turn as plain values."""

    def __init__(self, record: TurnRecord) -> None:
        self.record = record
        self.entries: list[bytes] = []
        self.sealed: tuple[Batch, TurnState] | None = None
        self.earlier: list[TurnRecord] = []
        """Records that were true once."""

    def now(self) -> TurnRecord:
        return msgspec.structs.replace(self.record, entries=len(self.entries))

    def become(self, **fields: Any) -> None:
        self.earlier.append(self.now())
        self.record = msgspec.structs.replace(self.record, **fields)


class Model:
    """A store as plain lists, and the steps that are made on both."""

    def __init__(self) -> None:
        self.turns: list[list[ModelTurn]] = [[] for _ in range(CHATS)]
        self.messages: list[list[UIMessage]] = [[] for _ in range(CHATS)]
        self.serial = 0

    def fresh(self, count: int) -> list[bytes]:
        """Entries that were never written before."""
        self.serial += 1
        return [f"{self.serial}.{i}".encode() for i in range(count)]

    def newest(self, chat: int) -> ModelTurn | None:
        return self.turns[chat][-1] if self.turns[chat] else None

    async def step(self, store: Store, name: str, chat: int, back: int, count: int) -> None:
        turn = self.newest(chat)
        running = turn is not None and turn.record.state is TurnState.running
        if name == "begin":
            await self.begin(store, chat, turn)
        elif turn is None:
            return
        elif name == "append":
            # From some entries back, with other content there; or past the end.
            offset = max(len(turn.entries) - back, 0) if back < 3 else len(turn.entries) + 1
            entries = self.fresh(count)
            error = LocalProtocolError if offset > len(turn.entries) else None
            await self.append(
                store, Batch(turn.record, offset, entries), error if running else TurnSealedError
            )
            if running and error is None:
                turn.entries += entries[len(turn.entries) - offset :]
        elif name in ("seal", "suspend"):
            state = TurnState.suspended if name == "suspend" else TurnState.finished
            batch = Batch(turn.record, max(len(turn.entries) - back, 0), self.fresh(count + 1))
            brings = batch.offset + len(batch.entries) > len(turn.entries)
            won = await store.seal(batch, state, answer(turn.record.turn_id), at=7.0)
            assert won == (running and brings)
            if won:
                self.seal(chat, turn, batch, state)
        elif name == "seal-again" and turn.sealed is not None:
            batch, state = turn.sealed
            won = await store.seal(batch, state, answer(turn.record.turn_id), at=8.0)
            same = turn.entries[batch.offset :] == batch.entries and turn.record.epoch == batch.turn.epoch
            assert won == (turn.record.state is state and same)
        elif name == "resume":
            await self.resume(store, chat, turn)
        elif name == "adopt":
            adopted = await store.adopt(turn.now(), lease_until=LEASE + self.serial)
            assert (adopted is None) == turn.record.state.ended
            if adopted is not None:
                turn.become(
                    state=TurnState.running, epoch=turn.record.epoch + 1, lease_until=LEASE + self.serial
                )
                assert adopted == turn.now()
        elif name == "adopt-stale":
            for record in turn.earlier:
                if record != turn.now():
                    assert await store.adopt(record, lease_until=LEASE) is None
        elif name == "renew":
            self.serial += 1
            renewed = await store.renew([turn.record], LEASE + self.serial)
            assert renewed == ({turn.record.turn_id} if running else frozenset())
            if running:
                turn.become(lease_until=LEASE + self.serial)
        elif name == "old-owner":
            for record in turn.earlier:
                if record.epoch < turn.record.epoch:
                    batch = Batch(record, len(turn.entries), self.fresh(1))
                    await self.append(store, batch, TurnSealedError)
                    assert not await store.seal(batch, TurnState.lost, None, at=9.0)
                    assert await store.renew([record], 1.0) == frozenset()

    async def begin(self, store: Store, chat: int, newest: ModelTurn | None) -> None:
        self.serial += 1
        key = f"u{self.serial}"
        history = [*self.messages[chat], user_message("Hello", id=key)][-5:]
        turn_id = f"t{self.serial}"
        call = partial(
            store.begin, f"c{chat}", turn_id, key, history, at=float(self.serial), lease_until=LEASE
        )
        if newest is not None and not newest.record.state.ended:
            with pytest.raises(RunningTurnError) as caught:
                await call()
            assert caught.value.turn == newest.now()
            return
        turn = ModelTurn(await call())
        assert turn.record == TurnRecord(
            chat_id=f"c{chat}",
            turn_id=turn_id,
            epoch=1,
            request_key=key,
            started_at=float(self.serial),
            lease_until=LEASE,
        )
        self.turns[chat].append(turn)
        self.messages[chat] = history

    async def append(self, store: Store, batch: Batch, error: type[Exception] | None) -> None:
        if error is None:
            await store.append([batch])
        else:
            with pytest.raises(error):
                await store.append([batch])

    def seal(self, chat: int, turn: ModelTurn, batch: Batch, state: TurnState) -> None:
        turn.entries += batch.entries[len(turn.entries) - batch.offset :]
        turn.become(state=state, ended_at=7.0 if state.ended else None, lease_until=None)
        turn.sealed = (Batch(batch.turn, batch.offset, turn.entries[batch.offset :]), state)
        made = answer(turn.record.turn_id)
        self.messages[chat] = [old for old in self.messages[chat] if old.id != made.id] + [made]

    async def resume(self, store: Store, chat: int, turn: ModelTurn) -> None:
        self.serial += 1
        history = self.messages[chat][-3:]
        call = partial(store.resume, turn.now(), f"k{self.serial}", history, lease_until=LEASE)
        if turn.record.state is not TurnState.suspended:
            with pytest.raises(TurnSealedError):
                await call()
            return
        resumed = await call()
        turn.become(state=TurnState.running, request_key=f"k{self.serial}", lease_until=LEASE)
        assert resumed == turn.now()
        self.messages[chat] = history

    async def check(self, store: Store, chat: int) -> None:
        """Compare all that the store has of a chat. What retention may have taken is whole or gone."""
        record = await store.chat(f"c{chat}")
        if not self.turns[chat]:
            assert record is None
            return
        assert record is not None
        assert list(record.messages) == self.messages[chat]
        assert record.turn == self.turns[chat][-1].now()
        ended = [turn for turn in self.turns[chat] if turn.record.state.ended]
        for turn in list(self.turns[chat]):
            held = await store.turn(turn.record.turn_id)
            if held is None:
                assert turn in ended[:-KEPT_TURNS]
                assert list(await store.read(turn.record.turn_id, 0, 999)) == []
                self.turns[chat].remove(turn)
                continue
            assert held == turn.now()
            read = await store.read(turn.record.turn_id, 0, 999)
            if not read:
                assert not turn.entries or await store.turn(turn.record.turn_id) is None
                continue
            assert list(read) == turn.entries
            for offset in range(len(turn.entries) + 1):
                part = await store.read(turn.record.turn_id, offset, 2)
                assert list(part) in (turn.entries[offset : offset + 2], [])


async def run_program(
    open_store: OpenStore,
    program: Sequence[Step],
    *,
    lasting: bool = True,
    crash: Callable[[Store, int], Awaitable[OpenStore]] | None = None,
) -> None:
    """Run a program to its end, over as many stores as it has reopenings and crashes.

    Args:
        open_store: opens the store.
        program: the steps.
        lasting: whether the store can be closed and opened again.
        crash: returns what opens the store that this one would have left if its process had been killed. Its second
            argument counts the stores.
    """
    model = Model()
    steps = list(program)
    retention = msgspec.structs.replace(FOREVER, turns_per_chat=KEPT_TURNS)
    lives = 0
    while True:
        lives += 1
        async with open_store(retention=retention) as store:
            for chat in range(CHATS):
                await model.check(store, chat)
            while steps:
                name, chat, back, count = steps.pop(0)
                if name == "reopen" and lasting:
                    break
                if name == "crash" and crash is not None:
                    open_store = await crash(store, lives)
                    break
                await model.step(store, name, chat, back, count)
                await model.check(store, chat)
            else:
                for chat in range(CHATS):
                    await model.check(store, chat)
                return
