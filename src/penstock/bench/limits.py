"""What `penstock bench` does at most. The other numbers are in `penstock.limits`."""

from __future__ import annotations

import msgspec


class BenchLimits(msgspec.Struct, frozen=True, kw_only=True):
    """What `penstock bench` does at most, whatever it is asked for: it shall end, and not by the machine's end."""

    connections: int = 20_000
    """From one address to one port the kernel has 28,000 ports to give."""
    arrivals: int = 200_000
    """New connections of one `churn`. Each is a port that stays taken for a while."""
    rate: float = 100_000.0
    """Events or arrivals a second. One load process takes about 200,000 events."""
    duration_s: float = 600.0
    """The measured time. What takes longer is monitoring."""
    burst_s: float = 60.0
    """The measured time of a scenario that ends when its work is done."""
    drain_s: float = 3.0
    """From the end of the measured time until streams that have not come to their end are closed."""
    stop_s: float = 3.0
    """Then, for telling the server to stop turns that are left."""
    start_s: float = 20.0
    """The start of the load processes: half a second each, on a busy machine several."""
    workers: int = 16
    """Load processes."""
    samples: int = 20_000_000
    """Times kept by one load process, 8 bytes each. Over it the run ends early, and says so."""
    spare_descriptors: int = 64
    """What a load process needs beside its connections."""
    busy: float = 0.9
    """The share of a core from which on a load process is taken for the bottleneck."""


BENCH = BenchLimits()
"""The defaults of `penstock bench`."""
