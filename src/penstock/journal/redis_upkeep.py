"""What the Redis store does now and then: sees to it that ended turns don't take more than retention allows.

Age and number need no looking after: Redis removes by time what has a time to live, and a seal removes the chat's oldest
turns. For all turns together there is a note of those that ended; see `redis_lua/ended.lua`. It is behind by `trim_s`, and
a process that is killed leaves what it had not noted yet to its time to live.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable

import trio

from penstock.errors import StoreUnavailableError
from penstock.journal.redis_link import Call, RedisLink
from penstock.journal.redis_text import lease_member, seconds
from penstock.journal.store import Retention, TurnRecord
from penstock.limits import RedisLimits

logger = logging.getLogger("penstock.journal")

_NOTED_AT_ONCE = 500


class RedisUpkeep:
    """Notes of ended turns, and a task that acts on them."""

    def __init__(
        self,
        link: RedisLink,
        prefix: str,
        chat_key: Callable[[str], str],
        retention: Retention,
        limits: RedisLimits,
    ) -> None:
        self._link = link
        self._chat_key = chat_key
        self._keys = (f"{prefix}{{ended}}", f"{prefix}{{ended}}:bytes")
        self._leases = f"{prefix}leases"
        self._retention = retention
        self._limits = limits
        self._ended: deque[tuple[TurnRecord, float, int]] = deque(maxlen=limits.ended_noted)

    def ended(self, turn: TurnRecord, at: float, size: int) -> None:
        """Note that a turn ended, and how many bytes its entries have."""
        self._ended.append((turn, at, size))

    async def run(self) -> None:
        """Look after it every `trim_s`, until cancelled."""
        while True:
            await trio.sleep(self._limits.trim_s)
            try:
                while await self._trim():
                    pass
            except StoreUnavailableError as exc:
                logger.warning("the journal's old turns could not be looked after: %s", exc)

    async def _trim(self) -> bool:
        """Do a slice. Returns whether there may be more."""
        some = [self._ended[i] for i in range(min(len(self._ended), _NOTED_AT_ONCE))]
        args: list[str | bytes | int] = [
            repr(time.time() - self._retention.turn_age_s),
            self._retention.bytes,
        ]
        for turn, at, size in some:
            args += [seconds(at), f"{size} {lease_member(turn)}"]
        (due,) = await self._link.call_all([Call("ended", self._keys, args)])
        if some:
            await self._link.send([(b"ZREM", self._leases, *(lease_member(turn) for turn, _, _ in some))])
            for _ in some:
                self._ended.popleft()
        if due:
            drops = []
            for member in due:
                _, turn_id, chat_id = member.decode().split(" ")
                # Both are quoted, as they are in keys.
                drops.append(Call("drop", (self._chat_key(chat_id),), (turn_id,)))
            await self._link.call_all(drops)
            await self._link.call_all([Call("forget", self._keys, due)])
        return bool(due) or bool(self._ended)
