"""What an event costs over a WebSocket, beside the same over SSE: W1 to W3, at one level each, in turns.

python benchmarks/transports.py [--rounds 5] [--output FILE]
"""

from __future__ import annotations

import sys

from harness import workloads
from harness.rounds import run_rounds
from harness.servers import KINDS
from harness.session import Session

TURNS = 100
RATE = 20.0
"""With 1,000 viewers, what either transport bears."""
MINUTES = 3.6
"""What is not done by then is left out; 30 runs take 2.7."""


def take(session: Session, number: int) -> None:
    """Make one round."""
    for server in session.servers():
        for over in workloads.TRANSPORTS:
            workloads.tokens(session, server, TURNS, 2.0, over)
            workloads.fanout(session, server, workloads.VIEWERS, RATE, 2.0, over=over)
            workloads.one_burst(session, server, number, over)


if __name__ == "__main__":
    sys.exit(run_rounds("WebSocket beside SSE", KINDS[:1], MINUTES, take))
