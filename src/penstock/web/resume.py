"""From where, and in what form, a client is sent a turn that it comes back to."""

from __future__ import annotations

import re
import time
from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

from penstock.asgi import Scope
from penstock.errors import RemoteProtocolError
from penstock.journal.entry import Entry, frames
from penstock.journal.fan_out import Render
from penstock.journal.position import Position
from penstock.journal.store import TurnState
from penstock.limits import Limits, WireLimits
from penstock.turns.handle import TurnHandle
from penstock.web.request import header, query_parameter
from penstock.wire.chunks import Error
from penstock.wire.codec import encode
from penstock.wire.sse import chunk_frame
from penstock.wire.versions import SdkVersion, parse_sdk_version, speaks

_RUN = re.compile(r"(.+?)(?:~([0-9]{1,15}))?(?:~([567]))?")
_START_INDEX = re.compile(r"-?[0-9]{1,15}")


class Run(NamedTuple):
    """What `WorkflowChatTransport` calls a run, and where it wants to go on in it.

    A run is what a client of some version is sent of a turn, or of the part of one that answers a later request:
    `<turn>`, `<turn>~<offset>` or `<turn>~<offset>~<version>`. Chunks that it is not sent are not counted.
    """

    turn_id: str
    first: int
    """Offset of the run's first entry."""
    version: SdkVersion
    start: int
    """Chunks that the client has; or, if negative, how many of the last it wants."""

    @classmethod
    def parse(cls, run_id: str, start_index: str) -> Run | None:
        """Read a run's id and a `startIndex`; None if the latter is no whole number."""
        match = _RUN.fullmatch(run_id)
        if match is None or not _START_INDEX.fullmatch(start_index):
            return None
        turn_id, first, version = match.groups()
        return cls(turn_id, int(first or 0), parse_sdk_version(version or "7"), int(start_index))

    def sent(self, turn: TurnHandle) -> int:
        """Return how many chunks of the run there are so far."""
        return turn.count(self.first, self.version)

    def skip(self, turn: TurnHandle) -> int:
        """Return how many of the run's chunks are left out for this client.

        It asks again and again until it was sent an end, so of a turn that is over it gets at least the last chunk. A
        client can have more than there is: the turn's process died before it had stored what it sent.
        """
        if self.start < 0:
            return max(self.sent(turn) + self.start, 0)
        return self.start if turn.state is TurnState.running else min(self.start, self.sent(turn) - 1)

    def chat(self, run_id: str) -> Run:
        """Return what this is if the id is no run's but a chat's: its newest turn, whole."""
        return self._replace(turn_id=run_id, first=0, version=7)


def cursor_of(scope: Scope, turn: TurnHandle) -> int | None:
    """Return the offset after which the client wants the turn; None for the whole of it.

    A position of another turn or another epoch, beyond the end, or no position at all: the whole message is the
    answer that is right for each.
    """
    text = query_parameter(scope, "after") or header(scope, b"last-event-id")
    return None if text is None else cursor_at(text, turn)


def cursor_at(text: str, turn: TurnHandle) -> int | None:
    """Like `cursor_of`, for a position that the client has said."""
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
    frames = [chunk_frame(json) for json in replayed(turn, version, limits)]
    if frames and turn.position is not None:
        frames[-1] = b"id: %b\n%b" % (str(turn.position).encode("ascii"), frames[-1])
    return frames


def replayed(turn: TurnHandle, version: SdkVersion, limits: Limits) -> list[bytes]:
    """Return the JSON of as few chunks as make a turn so far."""
    whole = WireLimits(chunk_bytes=limits.turn.turn_bytes + limits.wire.chunk_bytes)
    return [encode(chunk, limits=whole) for chunk in turn.compact() if speaks(chunk, version)]


def renderer(version: SdkVersion, skip: int | None = None) -> Render:
    """Return how a client of this version is sent entries: without what it does not know, and without lanes.

    Args:
        version: the client's.
        skip: how many chunks it has already, for one that counts. An `error` is sent in any case: it is how the turn
            ended.
    """
    return _renderer(version) if not skip else _Rest(version, skip)


@cache
def _renderer(version: SdkVersion) -> Render:
    def render(entries: Sequence[Entry]) -> bytes:
        return frames([entry for entry in entries if entry.spoken_from <= version])

    return render


class _Rest:
    """Renders what follows the first `skip` chunks. The same entries may be rendered again: they are counted once."""

    def __init__(self, version: SdkVersion, skip: int) -> None:
        self._version = version
        self._skip = skip
        self._first_offset = 0
        """Of the entries that are to be sent, as far as is known: they begin here or later."""

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        spoken = [entry for entry in entries if entry.spoken_from <= self._version]
        for entry in spoken:
            if self._skip and entry.offset >= self._first_offset:
                self._skip -= 1
                self._first_offset = entry.offset + 1
        return frames(
            [
                entry
                for entry in spoken
                if entry.offset >= self._first_offset or isinstance(entry.chunk, Error)
            ]
        )


def turn_headers(turn: TurnHandle) -> list[tuple[bytes, bytes]]:
    """Return the headers that say which turn a stream is of."""
    return [
        (b"x-vercel-ai-ui-message-stream", b"v1"),
        (b"x-penstock-turn", turn.id.encode("ascii")),
    ]


def run_header(turn: TurnHandle, first: int, version: SdkVersion) -> tuple[bytes, bytes]:
    """Return the header that names what a client of this version is sent of a turn from an offset on."""
    run_id = turn.id
    if first != 0 or version != 7:
        run_id += f"~{first}"
    if version != 7:
        run_id += f"~{version}"
    return b"x-workflow-run-id", run_id.encode("ascii")
