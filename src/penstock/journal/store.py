"""What a journal's store promises, and the records that it keeps.

A store keeps, per chat, the messages and the turns; per turn, its entries: encoded chunks at offsets 0, 1, 2, … One
process owns a running turn and is the only one to append to it; the `epoch` in its record fences every other.

The guarantees, each of which every store must keep:

- **one running turn**: of any number of concurrent `begin` calls for one chat, at most one succeeds while no turn of
  the chat has ended in between; the others raise `TurnConflictError`.
- **idempotent append**: entries that are there already, at the same offsets, are left as they are. A caller whose
  `append` was cancelled or failed does not know whether it happened, and may simply call again.
- **no holes**: `append` at an offset past the end raises `LocalProtocolError`; a reader never sees entry n without n-1.
- **fenced**: `append` and `seal` with an epoch that is not the record's change nothing and raise `TurnSealedError`.
- **sealed once**: of any number of `seal` calls for one turn, one returns True, and its entries are the turn's last.
  After it `append` raises `TurnSealedError`.
- **whole seal**: the state, the last entries and the message of a seal are seen together or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Protocol

import msgspec

from penstock.errors import TurnConflictError
from penstock.wire.messages import UIMessage


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
    """What is known of a turn without its entries."""

    chat_id: str
    turn_id: str
    epoch: int
    request_key: str
    """What the turn answers: the id of the last message of the request. The same key again joins the turn."""
    state: TurnState = TurnState.running
    entries: int = 0
    """How many entries the store holds: the next offset."""
    started_at: float
    """Seconds since 1970, by the clock of whoever began the turn."""
    ended_at: float | None = None


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


class RunningTurnError(TurnConflictError):
    """`begin` found a running turn; `turn` is its record."""

    def __init__(self, turn: TurnRecord) -> None:
        super().__init__("another message of this chat is being answered")
        self.turn = turn


class Store(Protocol):
    """Where turns last. Every method may raise `StoreUnavailableError`, and then nothing is known of the call."""

    async def begin(
        self, chat_id: str, turn_id: str, request_key: str, messages: Sequence[UIMessage], started_at: float
    ) -> TurnRecord:
        """Begin a turn and make `messages` the chat's.

        Raises:
            RunningTurnError: if a turn of this chat is running.
        """

    async def append(self, batches: Sequence[Batch]) -> None:
        """Store entries of any number of turns.

        Every batch is tried. Cancellation leaves it unknown which were stored; call again.

        Raises:
            TurnSealedError: if a turn has ended or its epoch is another; the other batches are stored.
        """

    async def seal(self, batch: Batch, state: TurnState, message: UIMessage | None, ended_at: float) -> bool:
        """End a turn: a compare-and-set. `message` becomes the chat's last, in place of one with the same id.

        Returns:
            True if this call ended the turn, or an identical call did; False if it had ended before.
        """

    async def chat(self, chat_id: str) -> ChatRecord | None:
        """Return a chat, or None."""

    async def turn(self, chat_id: str, turn_id: str) -> TurnRecord | None:
        """Return a turn's record, or None."""

    async def read(self, chat_id: str, turn_id: str, offset: int, count: int) -> Sequence[bytes]:
        """Return up to `count` entries from `offset` on; empty at the end."""

    async def aclose(self) -> None:
        """Close the store. What was acknowledged is kept."""


def check_journal(url: str) -> None:
    """Check that a store has this URL's scheme, without opening it.

    Raises:
        ValueError: if none has.
    """
    if url != "memory:":
        raise ValueError("the journal must be memory:")


async def open_store(url: str) -> Store:
    """Open the store that a journal's URL names: `memory:`.

    Raises:
        ValueError: if no store has this scheme.
    """
    check_journal(url)
    from penstock.journal.memory import MemoryStore

    return MemoryStore()
