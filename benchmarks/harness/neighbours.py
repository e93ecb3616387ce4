"""What else went on on the machine while something was measured."""

from __future__ import annotations

import os
import resource
import time
from pathlib import Path

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")


class Neighbours:
    """The other processes, from when it is made."""

    def __init__(self) -> None:
        self._at = time.monotonic()
        self._busy = _busy_s()
        self._own = _own_s()

    def cores(self) -> float:
        """Return how many cores were busy on average with what is not this process's, nor its children's that have ended."""
        busy, own, seconds = _busy_s() - self._busy, _own_s() - self._own, time.monotonic() - self._at
        return round(max(busy - own, 0.0) / seconds, 2)


def _busy_s() -> float:
    # user nice system idle iowait irq softirq steal
    ticks = list(map(int, Path("/proc/stat").read_text().split(None, 9)[1:9]))
    return (sum(ticks) - ticks[3] - ticks[4]) / _TICKS_PER_S


def _own_s() -> float:
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)
