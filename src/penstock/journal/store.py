"""What a journal's store promises, and the records that it keeps.

A store keeps, per chat, the messages and the turns; per turn, its entries: encoded chunks, each one line, at offsets
0, 1, 2, … One process owns a running turn and is the only one to append to it; its lease in the record says until when the others
leave it alone, and the record's `epoch` fences an owner who was given up.

The guarantees, each of which every store must keep:

- **one running turn**: of any number of concurrent `begin` calls for one chat, at most one succeeds while the chat's
  newest turn has not ended; the others raise `RunningTurnError`.
- **idempotent append**: entries that are there already, at the same offsets, are left as they are. A caller whose
  `append` was cancelled or failed does not know whether it happened, and may simply call again.
- **no holes**: `append` at an offset past the end raises `LocalProtocolError`; a reader never sees entry n without n-1.
- **fenced**: `append`, `seal` and `renew` with an epoch that is not the record's change nothing.
- **sealed once**: of any number of different `seal` calls for one turn, one returns True, and its entries are the
  turn's last. After it `append` raises `TurnSealedError`. A seal brings at least one entry that the store lacks: so the
  repetition of one that suspended the turn can't end the run of whoever has resumed it since.
- **adopted once**: of any number of `adopt` calls for one record, one succeeds; the owner before is fenced from then on.
- **whole seal**: the state, the last entries and the message of a seal are seen together or not at all.
- **acknowledged is kept**: what a call that returned has written is read by every later call, and, in a store that
  outlives the process, by every later process.
- **looked at whole**: `look` shows each turn as of one moment: of the entries that its record counts all from the wanted
  offset on, or as many as may be, and no others.
- **told or asked**: of whatever happens to a turn after the block of its `news` began, `wait` tells by returning; what
  `turn`, `read` and `look` say then is no older.
- **told is heard**: what is told while somebody listens is among his notes, in its order, or he is told that he may have
  missed some.
- **trimmed whole**: retention removes ended turns, each with its record and all its entries, never a part, the oldest
  first. A suspended turn goes only with its chat, and what is running stays.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager, AbstractContextManager, asynccontextmanager
from enum import Enum
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol

import msgspec

from penstock.errors import TurnConflictError
from penstock.journal.news import News
from penstock.journal.notes import Notes
from penstock.limits import Limits
from penstock.wire.messages import UIMessage

if TYPE_CHECKING:
    from penstock.journal.nats_address import NatsAddress
    from penstock.journal.redis_address import RedisAddress


class TurnState(Enum):
    """Where a turn is. All but the first two are outcomes: the turn has ended and stays as it is."""

    running = "running"
    suspended = "suspended"
    finished = "finished"
    stopped = "stopped"
    failed = "failed"
    lost = "lost"

    @property
    def ended(self) -> bool:
        """Whether the turn is over."""
        return self not in (TurnState.running, TurnState.suspended)


class TurnRecord(msgspec.Struct, frozen=True, kw_only=True):
    """What is known of a turn without its entries. Times are seconds since 1970."""

    chat_id: str
    turn_id: str
    """Unique in the whole store."""
    epoch: int
    request_key: str
    """What the turn answers: the id of the last message of the request. The same key again joins the turn."""
    state: TurnState = TurnState.running
    entries: int = 0
    """How many entries the store holds: the next offset."""
    started_at: float
    """By the clock of whoever began the turn."""
    ended_at: float | None = None
    lease_until: float | None = None
    """While it runs: when its owner may be given up, unless it renews before."""

    @classmethod
    def begun(cls, chat_id: str, turn_id: str, request_key: str, at: float, lease_until: float) -> TurnRecord:
        """Return the record of a turn that begins: it runs, in epoch 1, and has no entries."""
        return cls(
            chat_id=chat_id,
            turn_id=turn_id,
            epoch=1,
            request_key=request_key,
            started_at=at,
            lease_until=lease_until,
        )


class ChatRecord(msgspec.Struct, frozen=True, kw_only=True):
    """A chat: its messages, oldest first, and the newest of its turns."""

    chat_id: str
    messages: Sequence[UIMessage]
    turn: TurnRecord | None


class Batch(msgspec.Struct, frozen=True):
    """Entries for one turn, from `offset` on."""

    turn: TurnRecord
    offset: int
    entries: Sequence[bytes]


class Place(NamedTuple):
    """Where somebody is who reads a turn."""

    turn: TurnRecord
    """As of any time."""
    offset: int
    """The first entry that he lacks."""


class Look(NamedTuple):
    """A turn as it is, and what follows a place in it."""

    record: TurnRecord
    entries: Sequence[bytes]


class Retention(msgspec.Struct, frozen=True, kw_only=True):
    """What a store keeps of ended turns. Chats keep their messages until they themselves are old.

    It is looked after in passing: what is due goes within moments of other writes, or `trim_s`.
    """

    turn_age_s: float = 86_400.0
    """Since the turn's end; a day: nobody resumes a stream of yesterday."""
    turns_per_chat: int = 20
    """The newest ones stay."""
    bytes: int = 1 << 30
    """All that the store holds, as it counts; over it the turns that ended first go, then the oldest chats."""
    chat_age_s: float = 30 * 86_400.0
    """Since the chat's newest turn began; then its messages go too. The app's own database is where chats last."""


class RunningTurnError(TurnConflictError):
    """`begin` found a turn that has not ended; `turn` is its record."""

    def __init__(self, turn: TurnRecord) -> None:
        super().__init__("another message of this chat is being answered")
        self.turn = turn


class Store(Protocol):
    """Where turns last. Every method may raise `StoreUnavailableError`, and then nothing is known of the call.

    Cancellation of any of them leaves it unknown whether the call happened; it happened whole or not at all.
    """

    shared: bool
    """Whether it is there for several nodes: then what is appended is somebody's live stream, and in a hurry."""
    private: bool
    """Whether no other process can open it, so that there is nobody to tell of a turn that began."""

    async def begin(
        self,
        chat_id: str,
        turn_id: str,
        request_key: str,
        messages: Sequence[UIMessage],
        *,
        at: float,
        lease_until: float,
    ) -> TurnRecord:
        """Begin a turn, in epoch 1, and make `messages` the chat's.

        Raises:
            RunningTurnError: if the chat's newest turn is running or suspended.
            LocalProtocolError: if there is a turn with this id.
        """

    async def resume(
        self, turn: TurnRecord, request_key: str, messages: Sequence[UIMessage], *, lease_until: float
    ) -> TurnRecord:
        """Set a suspended turn running again, in the same epoch, and make `messages` the chat's.

        Raises:
            TurnSealedError: if it isn't suspended, or was another epoch's or another number of entries' by now.
        """

    async def append(self, batches: Sequence[Batch]) -> None:
        """Store entries of any number of running turns.

        Every batch is tried, in order.

        Raises:
            LocalProtocolError: if a batch would leave a hole; the other batches are stored.
            TurnSealedError: if a turn is not running or its epoch is another; the other batches are stored.
        """

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, *, at: float) -> bool:
        """End a running turn, or suspend it: a compare-and-set by its owner.

        `message` becomes the chat's last, in place of one with the same id.

        Returns:
            True if this call did it, or an identical one did; False if the turn was not running, has another epoch, or
            has all these entries already.

        Raises:
            LocalProtocolError: if the batch is empty, or would leave a hole.
        """

    async def adopt(self, turn: TurnRecord, *, lease_until: float) -> TurnRecord | None:
        """Become the owner of a turn that another left running or suspended: a compare-and-set on its whole record.

        `turn` is the record as the caller read it. The turn is running then, in the next epoch, so that positions
        beyond the end which the old owner may have shown are void; its entries stay.

        Returns:
            The new record, or None if the record is another by now.
        """

    async def renew(self, turns: Sequence[TurnRecord], lease_until: float) -> frozenset[str]:
        """Renew the leases of running turns, and return the ids of those that are still the caller's."""

    async def lapsed(self, now: float, count: int) -> Sequence[TurnRecord]:
        """Return up to `count` running turns whose lease ended before `now`, the longest ago first."""

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """Return a chat, or None."""

    async def turn(self, turn_id: str) -> TurnRecord | None:
        """Return a turn's record, or None."""

    async def read(self, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """Return `count` entries from `offset` on, fewer only at the end; none of a turn that is not there."""

    async def look(self, places: Sequence[Place], count: int) -> Sequence[Look | None]:
        """Return how turns are, each with up to `count` entries from a place on; None for one that is not there."""

    def news(self, *turns: TurnRecord) -> News:
        """Return what somebody who follows turns can wait for; see `journal/news.py`."""

    async def tell(self, notes: Sequence[bytes]) -> None:
        """Tell all who listen to this journal's `notes` now, in any process; oneself, too, or not."""

    def notes(self) -> AbstractContextManager[Notes]:
        """Listen to what is told; see `journal/notes.py`."""


def check_journal(url: str) -> None:
    """Check a journal's URL without opening what it names.

    Raises:
        ValueError: if it is not understood, or needs what is not installed.
    """
    if (redis := _redis_address(url)) is not None:
        _open_redis(redis, Retention(), Limits())
    elif (nats := _nats_address(url)) is not None:
        _open_nats(nats, Retention(), Limits())
    else:
        _parse(url)


@asynccontextmanager
async def open_store(
    url: str, *, retention: Retention | None = None, limits: Limits = Limits()
) -> AsyncIterator[Store]:
    """Open the store that a journal's URL names.

    Args:
        url: `memory:`, `sqlite:FILE`, `sqlite:FILE?durability=normal`, or `redis://HOST:PORT/DB?prefix=PREFIX`, with
            `USER:PASSWORD@` before the host and `rediss:` for TLS, or `nats://HOST:PORT,HOST2?stream=NAME&replicas=1`,
            with `USER:PASSWORD@` or `TOKEN@` before the hosts and `tls:` for TLS.
        retention: what to keep; None for the store's own default.
        limits: those of the store are used.

    Leaving the block writes what was asked for before, and closes the store. What was acknowledged is kept.

    Raises:
        ValueError: if the URL is not understood, or the file or stream is not a journal.
        StoreUnavailableError: if the file is locked, the disk is full, or the server can't be reached.
    """
    if (redis := _redis_address(url)) is not None:
        async with _open_redis(redis, retention or Retention(), limits) as store:
            yield store
        return
    if (nats := _nats_address(url)) is not None:
        async with _open_nats(nats, retention or Retention(), limits) as store:
            yield store
        return
    path, durability = _parse(url)
    if path is None:
        from penstock.journal.memory import MEMORY_RETENTION, MemoryStore

        yield MemoryStore(retention or MEMORY_RETENTION)
    else:
        from penstock.journal.sqlite import open_sqlite

        async with open_sqlite(
            path, durability=durability, retention=retention or Retention(), limits=limits.sqlite
        ) as store:
            yield store


def _redis_address(url: str) -> RedisAddress | None:
    """Return what a URL for Redis names, None for another."""
    from penstock.journal.redis_address import SCHEMES, RedisAddress

    return RedisAddress.parse(url) if url.partition(":")[0] in SCHEMES else None


def _open_redis(
    address: RedisAddress, retention: Retention, limits: Limits
) -> AbstractAsyncContextManager[Store]:
    try:
        from penstock.journal.redis import open_redis
    except ModuleNotFoundError as exc:
        if (exc.name or "").partition(".")[0] != "coredis":
            raise
        raise ValueError("a journal in Redis needs coredis: pip install 'penstock[redis]'") from None
    return open_redis(address, retention=retention, limits=limits.redis)


def _nats_address(url: str) -> NatsAddress | None:
    """Return what a URL for NATS names, None for another."""
    from penstock.journal.nats_address import SCHEMES, NatsAddress

    return NatsAddress.parse(url) if url.partition(":")[0] in SCHEMES else None


def _open_nats(
    address: NatsAddress, retention: Retention, limits: Limits
) -> AbstractAsyncContextManager[Store]:
    try:
        from penstock.journal.nats import open_nats
    except ModuleNotFoundError as exc:
        if exc.name not in ("nats", "trio_asyncio"):
            raise
        raise ValueError(
            "a journal in NATS needs nats-py and trio-asyncio: pip install 'penstock[nats]'"
        ) from None
    return open_nats(address, retention=retention, limits=limits.nats)


def _parse(url: str) -> tuple[str | None, Literal["full", "normal"]]:
    """Return the file, None for memory, and the durability."""
    scheme, colon, rest = url.partition(":")
    if scheme == "memory" and colon and not rest:
        return None, "full"
    path, question, option = rest.partition("?")
    if scheme != "sqlite" or not path:
        raise ValueError("the journal must be memory:, sqlite:FILE, redis://HOST or nats://HOST")
    if path == ":memory:":
        raise ValueError("the journal sqlite::memory: would not outlive the process; write memory:")
    if path.startswith("//"):
        raise ValueError("the journal must be sqlite:FILE, without slashes before the file's own path")
    if option == "durability=normal":
        return path, "normal"
    if question and option != "durability=full":
        raise ValueError("the journal's only option is ?durability=full or ?durability=normal")
    return path, "full"
