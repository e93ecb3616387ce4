"""An entry: a chunk in the journal."""

from __future__ import annotations

from collections.abc import Sequence

import msgspec

from penstock.wire.chunks import AnyChunk

_FRAME = b"id: %b%d\ndata: %b\n\n"
"""What `wire.sse.chunk_frame` makes of an id and its JSON, with the id's two halves put together on the way."""
_LINES = b"%d\ndata: %b"


class Entry(msgspec.Struct, gc=False):
    """A chunk in the journal: its offset, the chunk, and its JSON, encoded once for all who follow.

    A turn may hold a hundred thousand of these and none is ever part of a cycle, so the collector never looks at them.
    """

    offset: int
    chunk: AnyChunk
    json: bytes
    id_prefix: bytes
    """The turn's and epoch's part of the position, shared by all entries of a tail."""
    spoken_from: int = 5
    """The first version of the client that may be sent the chunk; see `wire/versions.py`."""

    @property
    def id(self) -> bytes:
        """The entry's position, as an SSE id."""
        return b"%b%d" % (self.id_prefix, self.offset)

    @property
    def frame(self) -> bytes:
        """The entry as one server-sent event, with its position as the id."""
        return _FRAME % (self.id_prefix, self.offset, self.json)


def frames(entries: Sequence[Entry]) -> bytes:
    """Return the frames of entries of one tail. Where their ids begin alike, what is between them is put in once for all."""
    if not entries:
        return b""
    prefix = entries[0].id_prefix
    if prefix is not entries[-1].id_prefix:  # its owner has changed in between
        return b"".join([entry.frame for entry in entries])
    lines = (b"\n\nid: " + prefix).join([_LINES % (entry.offset, entry.json) for entry in entries])
    return b"id: %b%b\n\n" % (prefix, lines)
