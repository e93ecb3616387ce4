"""Whether the journal's store can be reached, as this node has found out in passing.

While it can't, turns that run here go on from memory, their followers are told (`data-degraded`), and nobody's lease is
held against him who could not renew it: neither then, nor for most of a lease afterwards.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable

import trio

from penstock.limits import HubLimits
from penstock.metrics import Metrics

logger = logging.getLogger("penstock.journal")


class Outage:
    """From the first call that failed to the next that did not."""

    def __init__(self, limits: HubLimits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._began_at: float | None = None
        self._patient_until = -math.inf
        self.changed: Callable[[bool], object] = lambda away: None
        """Called when it begins, with True, and when it ends."""

    @property
    def away(self) -> bool:
        """Whether there is one."""
        return self._began_at is not None

    @property
    def spent(self) -> bool:
        """Whether it has lasted for longer than `journal_grace_s`."""
        return self._began_at is not None and (
            trio.current_time() - self._began_at >= self._limits.journal_grace_s
        )

    @property
    def leases_count(self) -> bool:
        """Whether an owner whose lease has run out could have renewed it."""
        return self._began_at is None and trio.current_time() >= self._patient_until

    def failed(self, why: Exception) -> None:
        """Note that a call failed."""
        self._metrics.count("journal_calls_failed")
        if self._began_at is None:
            self._began_at = trio.current_time()
            self._metrics.gauge("journal_away", 1)
            logger.error("the journal's store is unavailable: %s", why)
            self.changed(True)

    def worked(self, took_s: float = 0.0) -> None:
        """Note that a call did not fail, and how long it took."""
        if self._began_at is not None or took_s > self._limits.lease_s / 3:
            # A store that was silent for so long was so for others.
            self._patient_until = trio.current_time() + self._limits.lease_s * 2 / 3
        if self._began_at is not None:
            logger.warning(
                "the journal's store was unavailable for %.1f s", trio.current_time() - self._began_at
            )
            self._began_at = None
            self._metrics.gauge("journal_away", -1)
            self.changed(False)
