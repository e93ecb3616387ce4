"""How long to wait between attempts: exponential, with full jitter, and a floor that the server may set.

With full jitter (anything from nothing to the cap) a thousand clients that lost one server come back evenly. What the
server asks for is waited in full, and the jitter comes on top, for it tells all its clients the same.
"""

from __future__ import annotations

from collections.abc import Callable

import trio

from penstock.limits import ClientLimits

_DOUBLINGS = 32
"""More change nothing below any cap, and would overflow in the end."""


class Backoff:
    """The waits of one stream. `jitter` returns numbers from 0 to 1."""

    def __init__(self, limits: ClientLimits, jitter: Callable[[], float]) -> None:
        self._limits = limits
        self._jitter = jitter
        self._attempts = 0

    def reset(self) -> None:
        """Begin anew: the last attempt has brought the stream on."""
        self._attempts = 0

    async def wait(self, floor_s: float = 0.0) -> bool:
        """Sleep until the next attempt is due. Returns False, at once, if there is none.

        Args:
            floor_s: the least wait, as the server asked for it.
        """
        limits = self._limits
        if self._attempts >= limits.attempts or floor_s > limits.wait_max_s:
            await trio.lowlevel.checkpoint()
            return False
        cap_s = min(limits.backoff_max_s, limits.first_backoff_s * 2.0 ** min(self._attempts, _DOUBLINGS))
        self._attempts += 1
        await trio.sleep(floor_s + cap_s * self._jitter())
        return True
