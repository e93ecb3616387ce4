"""What the operating system says of the server's process and those it started: `/proc`."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

_TICKS_PER_S = os.sysconf("SC_CLK_TCK")
_PAGE_KB = os.sysconf("SC_PAGE_SIZE") // 1024


class Usage(NamedTuple):
    """What a process and its descendants have used until now, and hold."""

    cpu_s: float
    rss_kb: int


def usage(pid: int) -> Usage:
    """Look. Raises ValueError, with a sentence, if there is no such process."""
    cpu_ticks = pages = 0
    for member in _family(pid):
        try:
            fields = Path(f"/proc/{member}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            if member == pid:
                raise ValueError(f"there is no process {pid} to look at") from None
            continue  # a child that has ended since
        cpu_ticks += int(fields[11]) + int(fields[12])
        pages += int(fields[21])
    return Usage(cpu_ticks / _TICKS_PER_S, pages * _PAGE_KB)


def _family(pid: int) -> list[int]:
    """Return a process and all its descendants."""
    family = [pid]
    for member in family:
        try:
            for task in Path(f"/proc/{member}/task").iterdir():
                family += map(int, (task / "children").read_text().split())
        except OSError:
            pass  # it has ended, or this kernel does not list children
    return family
