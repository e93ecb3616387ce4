"""A node that `test_redis.py` kills while its turn runs."""

from __future__ import annotations

import sys

import trio

from penstock import Limits, Turn, open_hub
from penstock.limits import HubLimits
from penstock.testing import user_message


async def talk(turn: Turn) -> None:
    async with turn.text() as text:
        while True:
            await text.write("word ")
            await trio.sleep(0.01)


async def main(url: str) -> None:
    async with open_hub(journal=url, limits=Limits(hub=HubLimits(lease_s=0.6))) as hub:
        await hub.start_turn("chat", talk, [user_message("Hello")])
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
