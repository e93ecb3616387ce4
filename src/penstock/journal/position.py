"""Where a follower is in a turn.

A position names the last entry that was seen. It is written `<turn_id>.<epoch>-<offset>`, which is also the SSE id of
that entry, so a browser's own `Last-Event-ID` is a position.

Why there is an epoch. Offsets are given by the turn's owner, in memory, and reach the store a moment later. Say the
owner shows entries 0 to 9, stores 0 to 7 and dies. Another process takes the turn over and writes its own entry 8. A
follower that saw the first 8 and 9 now asks for what follows 9: with offsets alone it would be given entry 10 of the
second owner and hold a mixture that nobody wrote. The second owner's epoch is higher, so the follower's position is
void: it is told so, and gets the message as the journal has it.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from penstock.errors import RemoteProtocolError

# Offsets and epochs stay far below 2**53, so that a JavaScript client can count them too.
_PATTERN = re.compile(r"([A-Za-z0-9_-]{1,64})\.(0|[1-9][0-9]{0,14})-(0|[1-9][0-9]{0,14})", re.ASCII)


class Position(NamedTuple):
    """An entry's place: the turn, the epoch of the owner that gave the offset, and the offset."""

    turn_id: str
    epoch: int
    offset: int

    def __str__(self) -> str:
        return f"{self.turn_id}.{self.epoch}-{self.offset}"

    @classmethod
    def parse(cls, text: str) -> Position:
        """Read what `str` writes.

        Raises:
            RemoteProtocolError: if it is anything else.
        """
        match = _PATTERN.fullmatch(text)
        if match is None:
            raise RemoteProtocolError("This is not a position in a turn.")
        return cls(match[1], int(match[2]), int(match[3]))
