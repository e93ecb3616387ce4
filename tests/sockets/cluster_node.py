"""One node of a cluster that is put to the test: `python cluster_node.py JOURNAL PORT`. Says `ready` on stdout."""

from __future__ import annotations

import sys

import trio
from cluster_app import answer

from penstock import Limits, chat_app
from penstock.limits import HubLimits, RedisLimits, ServerLimits, TurnLimits
from penstock.server import serve_until_signalled

LEASE_S = 0.9
GRACE_S = 2.5
LIMITS = Limits(
    hub=HubLimits(lease_s=LEASE_S, journal_grace_s=GRACE_S, flush_retry_s=0.05),
    turn=TurnLimits(stop_grace_s=0.6),
    redis=RedisLimits(call_s=0.4, connect_s=0.4, backoff_max_s=0.1, recheck_s=1.0),
    server=ServerLimits(drain_s=2.0),
)


async def run(journal: str, port: int) -> None:
    """Serve until killed."""
    app = chat_app(answer, journal=journal, limits=LIMITS, degraded=True)
    async with trio.open_nursery() as nursery:
        await nursery.start(
            lambda task_status: serve_until_signalled(
                app, port=port, limits=LIMITS.server, task_status=task_status
            )
        )
        print("ready", flush=True)


if __name__ == "__main__":
    trio.run(run, sys.argv[1], int(sys.argv[2]))
