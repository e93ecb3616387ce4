"""The nodes of a cluster that is put to the test.

Each line of stdin, `JOURNAL PORT`, is answered with the id of a process that serves it. They are forked: what takes a node
a second and a half of its own is imported once. At the end of stdin all of its process group is killed.
"""

from __future__ import annotations

import os
import signal
import sys

import trio
from cluster_app import answer

from penstock import Limits, chat_app
from penstock.journal.store import check_journal
from penstock.limits import HubLimits, NatsLimits, RedisLimits, ServerLimits, TurnLimits
from penstock.server import serve_until_signalled

LEASE_S = 0.9
PAUSE_S = float(os.environ.get("PENSTOCK_PAUSE_S", "1.3"))
"""For how long at most something is paused or away."""
GRACE_S = PAUSE_S + 0.7
LIMITS = Limits(
    hub=HubLimits(lease_s=LEASE_S, journal_grace_s=GRACE_S, flush_retry_s=0.05),
    turn=TurnLimits(stop_grace_s=0.6),
    redis=RedisLimits(call_s=0.4, connect_s=0.4, backoff_max_s=0.1, recheck_s=1.0),
    nats=NatsLimits(call_s=0.4, connect_s=0.4, backoff_max_s=0.1, recheck_s=1.0),
    server=ServerLimits(drain_s=2.0),
)


async def run(journal: str, port: int) -> None:
    """Serve until told to end, or killed."""
    app = chat_app(answer, journal=journal, limits=LIMITS, degraded=True)
    await serve_until_signalled(app, port=port, limits=LIMITS.server)


def main() -> None:
    """Fork a node for each line, until there are no more."""
    for journal in ("redis://127.0.0.1", "nats://127.0.0.1"):
        check_journal(journal)  # which imports what they need
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    for line in sys.stdin:
        journal, port = line.split()
        pid = os.fork()
        if pid == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            trio.run(run, journal, int(port))
            os._exit(0)
        print(pid, flush=True)
    os.killpg(0, signal.SIGKILL)


if __name__ == "__main__":
    main()
