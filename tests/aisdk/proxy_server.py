"""A durable proxy to be killed: `python proxy_server.py JOURNAL UPSTREAM SDK_VERSION PORT`. Says its URL on stdout."""

from __future__ import annotations

import sys

import trio

from penstock import Limits, chat_app
from penstock.limits import HubLimits
from penstock.relay.upstream import relay
from penstock.server import serve_until_signalled
from penstock.wire.versions import SdkVersion, parse_sdk_version

LEASE_S = 0.6


async def run(journal: str, upstream: str, version: SdkVersion, port: int) -> None:
    """Serve until killed."""
    answer = relay(upstream, protocol="ui-stream")
    app = chat_app(
        answer, journal=journal, sdk_version=version, limits=Limits(hub=HubLimits(lease_s=LEASE_S))
    )
    async with trio.open_nursery() as nursery:
        binds = await nursery.start(
            lambda task_status: serve_until_signalled(app, port=port, task_status=task_status)
        )
        print(binds[0], flush=True)


if __name__ == "__main__":
    trio.run(run, sys.argv[1], sys.argv[2], parse_sdk_version(sys.argv[3]), int(sys.argv[4]))
