"""What a turn costs without a network: a burst, its fan-out, and coming back to it.

    python benchmarks/turns.py [--json]

Everything is real but the sockets: grammar, journal (memory), positions, subscriptions, connections. CPU time, medians
of 5 runs.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import time

import trio

from penstock import Hub, Turn, TurnHandle, open_hub
from penstock.connections.connection import open_connection
from penstock.connections.pump import pump
from penstock.limits import Limits
from penstock.metrics import NopMetrics
from penstock.testing import MemoryTransport, user_message
from penstock.web.resume import renderer, replay

RUNS = 5
BURST = 100_000
VIEWERS = 200
PACED = 500
LIMITS = Limits()


async def burst(turn: Turn) -> None:
    """Write as fast as it goes."""
    async with turn.text() as text:
        for number in range(BURST):
            await text.write(f"{number} ")


async def paced(turn: Turn) -> None:
    """Write one delta for each pass of the scheduler, so that nothing is batched."""
    async with turn.text() as text:
        for number in range(PACED):
            await text.write(f"{number} ")
            await trio.sleep(0.001)


async def view(turn: TurnHandle) -> None:
    """Follow a turn as a client's connection does."""
    with turn.follow() as subscription:
        async with open_connection(MemoryTransport()) as connection:
            await pump(subscription, connection, renderer(6), limits=LIMITS.viewer, metrics=NopMetrics())


async def measure_burst(hub: Hub) -> float:
    """Microseconds of CPU for each delta of a burst with one viewer."""
    start = time.process_time()
    turn = await hub.start_turn("burst", burst, [user_message("x")])
    await view(turn)
    return (time.process_time() - start) / BURST * 1e6


async def measure_fanout(hub: Hub) -> float:
    """Microseconds of CPU for each delta delivered to each viewer, one delta a write."""
    start = time.process_time()
    async with trio.open_nursery() as nursery:
        turn = await hub.start_turn("fanout", paced, [user_message("x")])
        for _ in range(VIEWERS):
            nursery.start_soon(view, turn)
    return (time.process_time() - start) / PACED / VIEWERS * 1e6


async def measure_replay(hub: Hub) -> tuple[float, float]:
    """Milliseconds of CPU to come back to a burst for the first time, and the replay's size to the text's."""
    turn = await hub.start_turn("replay", burst, [user_message("x")])
    await turn.wait_ended()
    start = time.process_time()
    frames = replay(turn, 6, LIMITS)
    took = time.process_time() - start
    text = turn.message().text
    return took * 1e3, sum(map(len, frames)) / len(text)


async def run() -> dict[str, float]:
    """Measure everything."""
    bursts, fanouts, replays, ratios = [], [], [], []
    for _ in range(RUNS):
        async with open_hub() as hub:
            bursts.append(await measure_burst(hub))
            fanouts.append(await measure_fanout(hub))
            took, ratio = await measure_replay(hub)
            replays.append(took)
            ratios.append(ratio)
    return {
        "burst_us_per_delta": round(statistics.median(bursts), 2),
        "fanout_us_per_delivery": round(statistics.median(fanouts), 2),
        "fanout_deliveries_per_s": round(1e6 / statistics.median(fanouts)),
        "replay_ms": round(statistics.median(replays), 1),
        "replay_size_ratio": round(statistics.median(ratios), 3),
    }


def main() -> None:
    """Run and print."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    results = trio.run(run)
    if options.json:
        versions = {"python": platform.python_version(), "platform": platform.platform()}
        print(json.dumps({**versions, "results": results}, indent=2))
        return
    print(f"burst of {BURST:,} deltas, one viewer     {results['burst_us_per_delta']:>9} us a delta")
    print(
        f"fan-out to {VIEWERS} viewers, unbatched      {results['fanout_us_per_delivery']:>9} us a delivery"
    )
    print(
        f"                                       {results['fanout_deliveries_per_s']:>9,} deliveries a second"
    )
    print(f"replay of {BURST:,} deltas                {results['replay_ms']:>9} ms")
    print(f"its size                               {results['replay_size_ratio']:>9} of the text's")


if __name__ == "__main__":
    main()
