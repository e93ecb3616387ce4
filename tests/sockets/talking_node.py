"""A node that `test_engines.py` kills while its turn runs: `python talking_node.py JOURNAL`."""

from __future__ import annotations

import sys

import trio

from penstock import Limits, Turn, open_hub
from penstock.limits import HubLimits
from penstock.testing import user_message


async def talk(turn: Turn) -> None:
    """Never end."""
    async with turn.text() as text:
        while True:
            await text.write("word ")
            await trio.sleep(0.01)


async def main(url: str) -> None:
    """Own a turn until killed."""
    async with open_hub(journal=url, limits=Limits(hub=HubLimits(lease_s=0.6))) as hub:
        await hub.start_turn("chat", talk, [user_message("Hello")])
        await trio.sleep_forever()


if __name__ == "__main__":
    trio.run(main, sys.argv[1])
