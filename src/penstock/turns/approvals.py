"""Approvals that a running producer waits for.

A pending approval ends once, in exactly one of five ways. Only the first two are the user's words: nobody has said no
because nobody answered in time, or because the page was closed.
"""

from __future__ import annotations

from enum import Enum
from typing import Literal, NamedTuple, TypeAlias

import trio

Holder: TypeAlias = Literal["connection", "turn"]
"""Whose end ends the approval: the connection of the request that the turn answers, or the turn itself."""


class Decision(Enum):
    """How an approval ended."""

    approved = "approved"
    denied = "denied"
    expired = "expired"
    """Nobody decided within `wait_s`."""
    client_gone = "client_gone"
    """The connection that held it closed."""
    superseded = "superseded"
    """The turn is being ended, for a stop or for a newer message."""


class Verdict(NamedTuple):
    """The end of an approval, and the words that came with it."""

    decision: Decision
    reason: str = ""
    by: str = ""

    @property
    def approved(self) -> bool:
        """Whether the tool call may run."""
        return self.decision is Decision.approved


class _Pending:
    __slots__ = ("ended", "holder", "verdict")

    def __init__(self, holder: Holder) -> None:
        self.holder: Holder = holder
        self.verdict: Verdict | None = None
        self.ended = trio.Event()


class Approvals:
    """The approvals of one turn."""

    def __init__(self) -> None:
        self._all: dict[str, _Pending] = {}
        self._holders = 0
        """Open connections of requests that this turn answers."""

    def holder_came(self) -> None:
        """Note that a connection of a request which this turn answers has opened."""
        self._holders += 1

    def holder_gone(self) -> None:
        """Note that such a connection has closed; with the last one go the approvals that it held."""
        self._holders -= 1
        if self._holders == 0:
            self._end_all(Verdict(Decision.client_gone), "connection")

    def supersede(self) -> None:
        """End all that is pending, because the turn is being ended."""
        self._end_all(Verdict(Decision.superseded), "connection", "turn")

    def decide(self, approval_id: str, verdict: Verdict) -> Verdict | None:
        """End an approval, unless it has ended.

        Returns:
            How it ended: `verdict`, or what was there first. None if there is no such approval.
        """
        pending = self._all.get(approval_id)
        if pending is None:
            return None
        if pending.verdict is None:
            pending.verdict = verdict
            pending.ended.set()
        return pending.verdict

    def request(self, approval_id: str, holder: Holder) -> None:
        """Open an approval. One that a connection holds ends at once where there is none."""
        self._all[approval_id] = _Pending(holder)
        if holder == "connection" and self._holders == 0:
            self.decide(approval_id, Verdict(Decision.client_gone))

    async def wait(self, approval_id: str, wait_s: float) -> Verdict:
        """Sleep until an approval ends, at most `wait_s` seconds. Cancelled, it stays open."""
        pending = self._all[approval_id]
        with trio.move_on_after(wait_s):
            await pending.ended.wait()
        verdict = self.decide(approval_id, Verdict(Decision.expired))
        assert verdict is not None
        return verdict

    def _end_all(self, verdict: Verdict, *holders: Holder) -> None:
        for approval_id, pending in self._all.items():
            if pending.holder in holders:
                self.decide(approval_id, verdict)
