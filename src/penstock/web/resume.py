"""From where, and in what form, a client is sent a turn that it comes back to."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import NamedTuple

from penstock.asgi import Scope
from penstock.connections.pump import Render
from penstock.errors import RemoteProtocolError
from penstock.journal.entry import Entry
from penstock.journal.position import Position
from penstock.journal.store import TurnState
from penstock.limits import Limits, WireLimits
from penstock.turns.handle import TurnHandle
from penstock.web.request import header, query_parameter
from penstock.wire.codec import encode
from penstock.wire.sse import chunk_frame
from penstock.wire.versions import SdkVersion, speaks


class Run(NamedTuple):
    """What `WorkflowChatTransport` calls a run, and where it wants to go on in it.

    A run is a turn, or the part of one that answers a later request: `<turn>` or `<turn>~<offset>`.
    """

    turn_id: str
    first: int
    """Offset of the run's first entry."""
    start: int
    """Chunks that the client has; or, if negative, how many of the last it wants."""

    @classmethod
    def parse(cls, run_id: str, start_index: str) -> Run | None:
        """Read a run's id and a `startIndex`; None if they are neither."""
        turn_id, tilde, first = run_id.partition("~")
        digits = start_index.removeprefix("-")
        if not all(part.isdecimal() and len(part) < 16 for part in (first if tilde else "0", digits)):
            return None
        return cls(turn_id, int(first or 0), int(start_index))

    def after(self, entries: int) -> int:
        """Return the offset after which the client wants a turn of so many entries."""
        next_ = self.first + self.start if self.start >= 0 else max(entries + self.start, self.first)
        return min(next_, entries) - 1


def cursor_of(scope: Scope, turn: TurnHandle) -> int | None:
    """Return the offset after which the client wants the turn; None for the whole of it.

    A position of another turn or another epoch, beyond the end, or no position at all: the whole message is the
    answer that is right for each.
    """
    text = query_parameter(scope, "after") or header(scope, b"last-event-id")
    if text is None:
        return None
    try:
        position = Position.parse(text)
    except RemoteProtocolError:
        return None
    if (position.turn_id, position.epoch) != (turn.id, turn.record.epoch) or position.offset >= turn.entries:
        return None
    return position.offset


def is_old(turn: TurnHandle, replay_finished_s: float) -> bool:
    """Say whether a turn ended so long ago that a client which asks for it has it."""
    if turn.state in (TurnState.running, TurnState.suspended):
        return False
    return turn.ended_at is None or time.time() - turn.ended_at > replay_finished_s


def replay(turn: TurnHandle, version: SdkVersion, limits: Limits) -> list[bytes]:
    """Return a turn so far as few frames. Only the last has an id: a client that has it has all before."""
    whole = WireLimits(chunk_bytes=limits.turn.turn_bytes + limits.wire.chunk_bytes)
    frames = [chunk_frame(encode(chunk, limits=whole)) for chunk in turn.compact() if speaks(chunk, version)]
    if frames and turn.position is not None:
        frames[-1] = b"id: %b\n%b" % (str(turn.position).encode("ascii"), frames[-1])
    return frames


def renderer(version: SdkVersion) -> Render:
    """Return how a client of this version is sent entries: without what it does not know, and without lanes."""

    def render(entries: Sequence[Entry]) -> bytes:
        return b"".join([entry.frame for entry in entries if entry.spoken_from <= version])

    return render


def turn_headers(turn: TurnHandle) -> list[tuple[bytes, bytes]]:
    """Return the headers that say which turn a stream is of."""
    run_id = turn.id if turn.first_entry == 0 else f"{turn.id}~{turn.first_entry}"
    return [
        (b"x-vercel-ai-ui-message-stream", b"v1"),
        (b"x-penstock-turn", turn.id.encode("ascii")),
        (b"x-workflow-run-id", run_id.encode("ascii")),
    ]
