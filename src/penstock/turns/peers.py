"""The other nodes of the journal: what this one tells them, and what it does when it hears them.

| a node says | the others |
|---|---|
| a turn began here, or went on | show it to those who watch its chat |
| please stop this turn | its owner does; who asked sees it end in the journal |
| the user decided this | the turn's owner notes it, and answers how the approval ended |

Notes may be lost. A stop that is not heard is forced by whoever asked for it; a decision that is not answered is an error
to whoever made it, who may try again; and after an interruption everybody looks at the chats that are watched. So does a
node that hears of more turns than it can look at.
"""

from __future__ import annotations

import logging
import secrets
from collections import deque
from collections.abc import Awaitable, Callable
from typing import TypeAlias

import msgspec
import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.notes import NOTES
from penstock.journal.store import Store, TurnRecord
from penstock.limits import HubLimits
from penstock.metrics import Metrics
from penstock.turns.approvals import Verdict
from penstock.turns.runner import Runner

logger = logging.getLogger("penstock.journal")


class Began(msgspec.Struct, frozen=True, tag="began"):
    """A turn began on a node, or went on there."""

    node: str
    chat: str
    turn: str


class PleaseStop(msgspec.Struct, frozen=True, tag="stop"):
    """A turn's owner is to stop it."""

    node: str
    chat: str
    turn: str
    reason: str


class PleaseDecide(msgspec.Struct, frozen=True, tag="decide"):
    """A turn's owner is to note what a user decided, and to answer."""

    node: str
    question: str
    chat: str
    turn: str
    approval: str
    verdict: Verdict


class Decided(msgspec.Struct, frozen=True, tag="decided"):
    """The answer to it."""

    node: str
    question: str
    verdict: Verdict | None


Note: TypeAlias = Began | PleaseStop | PleaseDecide | Decided

_write = msgspec.json.Encoder().encode
_read = msgspec.json.Decoder(Note).decode


class Peers:
    """This node among the others. `run` is its task.

    Args:
        store: the journal's.
        running: this node's turns, by chat.
        began: called with a chat and a turn that began on another node.
        missed: called when some of these may have been missed.
        limits: how long to wait for an answer, and how much may wait here.
        metrics: counts what is said too fast.
    """

    def __init__(
        self,
        store: Store,
        running: dict[str, Runner],
        *,
        began: Callable[[str, str], Awaitable[None]],
        missed: Callable[[], Awaitable[None]],
        limits: HubLimits,
        metrics: Metrics,
    ) -> None:
        self._node = secrets.token_hex(6)
        self._store = store
        self._running = running
        self._began = began
        self._missed = missed
        self._limits = limits
        self._metrics = metrics
        self._unsaid: deque[Note] = deque(maxlen=NOTES)
        self._something = trio.lowlevel.ParkingLot()
        self._unseen: deque[Began | None] = deque()
        """What began elsewhere; None where some of it was missed. `unseen_turns` at most, and one None more."""
        self._something_unseen = trio.lowlevel.ParkingLot()
        self._questions: dict[str, tuple[trio.Event, list[Verdict | None]]] = {}

    def began(self, record: TurnRecord) -> None:
        """Tell the others that a turn runs here now."""
        if not self._store.private:
            self._say(Began(self._node, record.chat_id, record.turn_id))

    def stop(self, record: TurnRecord, reason: str) -> None:
        """Ask whoever runs a turn to stop it."""
        self._say(PleaseStop(self._node, record.chat_id, record.turn_id, reason))

    async def decide(self, record: TurnRecord, approval_id: str, verdict: Verdict) -> Verdict | None:
        """Tell whoever runs a turn what the user decided, and return what it answers; see `Approvals.decide`.

        Raises:
            StoreUnavailableError: if nobody answers. The decision may have been noted.
        """
        question = secrets.token_hex(6)
        answered, verdicts = self._questions[question] = (trio.Event(), [])
        try:
            self._say(
                PleaseDecide(self._node, question, record.chat_id, record.turn_id, approval_id, verdict)
            )
            with trio.move_on_after(self._limits.answer_s):
                await answered.wait()
        finally:
            del self._questions[question]
        if not verdicts:
            raise StoreUnavailableError("the node that writes this answer does not reply")
        return verdicts[0]

    def _say(self, note: Note) -> None:
        self._unsaid.append(note)
        self._something.unpark_all()

    async def run(self) -> None:
        """Speak and listen, until cancelled."""
        with self._store.notes() as notes:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._speak)
                nursery.start_soon(self._look)
                while True:
                    try:
                        said = await notes.wait()
                    except StoreUnavailableError as exc:
                        logger.warning("other nodes can't be heard: %s", exc)
                        await trio.sleep(self._limits.flush_retry_s)
                        continue
                    if said.missed:
                        self._look_at_all()
                    for note in said.notes:
                        self._hear(note, nursery)
                    self._something_unseen.unpark_all()

    def _look_at_all(self) -> None:
        """Have the chats that are watched looked at, after what waits."""
        if not self._unseen or self._unseen[-1] is not None:
            self._unseen.append(None)

    def _look_at(self, began: Began) -> None:
        """Have looked at what began elsewhere: if too much of it waits, at what is watched in its stead."""
        if len(self._unseen) < self._limits.unseen_turns:
            self._unseen.append(began)
            return
        self._metrics.count("peer_turns_skipped")
        # It was in the store before it was told of, so that this will show it.
        self._look_at_all()

    async def _look(self) -> None:
        """Look at what began elsewhere. A store that is slow must not keep us from hearing what else is said."""
        while True:
            while not self._unseen:
                await self._something_unseen.park()
            note = self._unseen.popleft()
            try:
                if note is None:
                    await self._missed()
                else:
                    await self._began(note.chat, note.turn)
            except StoreUnavailableError as exc:
                logger.warning("what other nodes said could not be looked at: %s", exc)
                self._look_at_all()
                await trio.sleep(self._limits.flush_retry_s)

    async def _speak(self) -> None:
        while True:
            while not self._unsaid:
                await self._something.park()
            notes = [_write(note) for note in self._unsaid]
            self._unsaid.clear()
            try:
                await self._store.tell(notes)
            except StoreUnavailableError as exc:
                logger.warning("other nodes can't be told: %s", exc)
                await trio.sleep(self._limits.flush_retry_s)
            await trio.lowlevel.checkpoint()

    def _hear(self, data: bytes, nursery: trio.Nursery) -> None:
        try:
            note = _read(data)
        except msgspec.DecodeError:
            return  # a node of another version, and nothing that we know of
        if isinstance(note, Decided):
            if (asked := self._questions.get(note.question)) is not None:
                asked[1].append(note.verdict)
                asked[0].set()
            return
        if note.node == self._node:
            return
        if isinstance(note, Began):
            self._look_at(note)
            return
        runner = self._running.get(note.chat)
        if runner is None or runner.record.turn_id != note.turn:
            return
        if isinstance(note, PleaseStop):
            nursery.start_soon(_stop, runner, note.reason)
        else:
            verdict = runner.approvals.decide(note.approval, note.verdict)
            self._say(Decided(self._node, note.question, verdict))


async def _stop(runner: Runner, reason: str) -> None:
    try:
        await runner.stop(reason)
    except StoreUnavailableError as exc:
        logger.error("turn %s could not be stopped: %s", runner.record.turn_id, exc)
