"""What a request on a WebSocket is sent of a turn or a chat, rendered to the byte as it goes to the client.

The chunks of a request are numbered for it alone. The events of a `watch` are the same for all who watch a chat for the
same, but for the request's id: they are rendered once for all whose ids are as long as each other, and each viewer's is
put into its places.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache

from penstock.journal.entry import Entry
from penstock.turns.foreign import ForeignEvent
from penstock.web.watch import Filter
from penstock.wire.codec import encode_json
from penstock.wire.versions import SdkVersion
from penstock.wire.websocket import (
    CHUNK,
    CHUNK_WITHOUT_POSITION,
    EVENT,
    EVENT_CHUNK,
    HEADS,
    USUAL,
    chunk_head,
    message_head,
    text_message,
)

_KEY_CHARACTERS = 1024
"""Of `types` and `lane`, as long as a client wants them: what is longer is shared with nobody."""
_KEPT_BYTES = 256 << 10
"""What is kept of the last entries, at most: a burst is not to stay."""


class Chunks:
    """Renders a request's entries as chunk frames, counted from 0.

    What it renders is sent, or handed to `offer` at once: what that refuses was not said, and its numbers are free again.
    """

    __slots__ = ("_before", "_head", "_offer", "_sequence", "_version")

    def __init__(self, request_id: str, version: SdkVersion, offer: Callable[[bytes], bool]) -> None:
        self._head = chunk_head(request_id)
        self._version = version
        self._offer = offer
        self._before = self._sequence = 0

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        head, version = self._head, self._version
        sequence = self._before = self._sequence
        messages = []
        for entry in entries:
            if entry.spoken_from <= version:
                json = CHUNK % (head, sequence, entry.json, entry.id_prefix, entry.offset)
                # As `message`, without a call for each of what may be a hundred thousand.
                messages.append(HEADS[len(json)] + json if len(json) < USUAL else text_message(json))
                sequence += 1
        self._sequence = sequence
        return b"".join(messages)

    def offer(self, data: bytes) -> bool:
        """Hand on what was rendered last; return whether it was taken."""
        taken = self._offer(data)
        if not taken:
            self._sequence = self._before
        return taken

    def replay(self, jsons: Sequence[bytes], position: str) -> bytes:
        """Render a turn's short form. Only the last has a position: a client that has it has all before."""
        prefix, dash, offset = position.rpartition("-")
        frames = [
            CHUNK_WITHOUT_POSITION % (self._head, number, json) for number, json in enumerate(jsons[:-1])
        ]
        frames += [
            CHUNK % (self._head, len(jsons) - 1, json, (prefix + dash).encode("ascii"), int(offset))
            for json in jsons[-1:]
        ]
        self._sequence = len(jsons)
        return b"".join(map(text_message, frames))


class Events:
    """What a `watch` gets: events as frames of its request. See `Filter`, of which it has the face."""

    __slots__ = ("_id", "_shared")

    def __init__(self, request_id: str, types: str | None, lane: str | None) -> None:
        self._id = encode_json(request_id)
        short = len(types or "") + len(lane or "") <= _KEY_CHARACTERS
        self._shared = (_shared if short else _Shared)(types, lane, len(self._id))

    @property
    def ignored(self) -> Sequence[str]:
        """Names that stand for nothing."""
        return self._shared.ignored

    def wants(self, event: str) -> bool:
        """Say whether an event that is no chunk is to be sent."""
        return self._shared.wants(event)

    def event(self, event: str, value: object, id: str = "") -> bytes:
        """Frame an event."""
        return self._id.join(self._shared.cut(self._shared.event(event, value, id)))

    def foreign(self, event: ForeignEvent) -> bytes:
        """Frame what another service said."""
        return self._id.join(self._shared.cut(self._shared.foreign(event)))

    def closing(self, fields: Mapping[str, object], retry_ms: int) -> bytes:
        """Frame the last event."""
        return self.event("closing", fields)

    def __call__(self, entries: Sequence[Entry]) -> bytes:
        """Frame the entries that are wanted."""
        return self._id.join(self._shared.pieces(entries))


class _Shared(Filter):
    """What requests have in common that watch for the same, with ids of one length.

    It renders what follows the id in each frame, a line each; `cut` makes messages of these, in pieces between which the
    id belongs. The last pieces are kept: a fan-out asks for the same entries again for each viewer.
    """

    def __init__(self, types: str | None, lane: str | None, id_bytes: int) -> None:
        super().__init__(types, lane, envelope=False)
        self._id_bytes = id_bytes
        self._of: tuple[Entry, Entry, int] | None = None
        """The first and the last of the entries that `_pieces` are of, and their number."""
        self._pieces: list[bytes] = []

    def event(self, event: str, value: object, id: str = "") -> bytes:
        position = {"position": id} if id else {}
        return b",%b\n" % encode_json({"event": event, "data": value, **position})[1:]

    def foreign(self, event: ForeignEvent) -> bytes:
        return super().foreign(event._replace(text=None))

    def chunk(self, entry: Entry) -> bytes:
        return EVENT_CHUNK % (entry.json, entry.id_prefix, entry.offset)

    def cut(self, rests: bytes) -> list[bytes]:
        """Return what precedes the first id, what is between two, and what follows the last."""
        pieces = []
        before = b""
        for rest in rests.split(b"\n")[:-1]:
            pieces.append(before + message_head(len(EVENT) + self._id_bytes + len(rest)) + EVENT)
            before = rest
        return [*pieces, before]

    def pieces(self, entries: Sequence[Entry]) -> list[bytes]:
        """Return the frames of the entries that are wanted, as `cut` does."""
        if not entries:
            return [b""]
        first, last, count = entries[0], entries[-1], len(entries)
        of = self._of
        if of is None or of[0] is not first or of[1] is not last or of[2] != count:
            pieces = self.cut(self(entries))
            if sum(map(len, pieces)) > _KEPT_BYTES:
                return pieces
            self._of, self._pieces = (first, last, count), pieces
        return self._pieces


@lru_cache(maxsize=256)
def _shared(types: str | None, lane: str | None, id_bytes: int) -> _Shared:
    return _Shared(types, lane, id_bytes)
