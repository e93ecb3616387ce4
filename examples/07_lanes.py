"""Workers side by side, each in a lane of its own: a viewer sees all of them report, and can look into any one.

    cd examples
    penstock serve 07_lanes:answer

Then look into the second worker of a chat, and on another terminal give them something to do:

    penstock watch http://127.0.0.1:8000 chat-1 --lane worker:2
    penstock send http://127.0.0.1:8000 "rivers, lakes, unicorns" --chat chat-1
"""

from __future__ import annotations

import trio

from penstock import Turn

WORKER_S = 30.0
FACTS = {
    "rivers": "The Rhine carries 2300 cubic metres a second into the sea.",
    "lakes": "Lake Geneva keeps its water for eleven years.",
    "glaciers": "The Aletsch glacier moves 150 metres a year.",
}

# Of all turns together: a limit in `answer` would be one for each.
working = trio.CapacityLimiter(8)


async def answer(turn: Turn) -> None:
    """Give each topic to a worker, wait for all of them, and tell what they found."""
    topics = [topic.strip() for topic in turn.prompt.split(",") if topic.strip()][:20]
    found: dict[str, str] = {}
    # The answer's own nursery: a stop, or an error that nobody expected, ends every worker before it ends the turn.
    async with trio.open_nursery() as nursery:
        for number, topic in enumerate(topics, 1):
            nursery.start_soon(work, turn, f"worker:{number}", topic, found)
    async with turn.text() as text:
        for topic in topics:
            await text.write(f"- {topic}: {found.get(topic, 'nothing was found.')}\n")


async def work(turn: Turn, name: str, topic: str, found: dict[str, str]) -> None:
    """Look one topic up, in a lane. A failure that was to be expected is this worker's, and not the whole answer's."""
    try:
        async with working, turn.lane(name) as lane:
            # The deadline is inside the lane, so that too late is how the lane ends. Outside it the lane would be cut.
            with trio.fail_after(WORKER_S):
                found[topic] = await look_up(topic)
                words = found[topic].split()
                async with lane.text() as text:
                    for count, word in enumerate(words, 1):
                        await text.write(f"{word} ")
                        await lane.report({"topic": topic, "done": count / len(words)})
                        await trio.sleep(0.05)
    except (LookupError, trio.TooSlowError):
        pass  # the lane says that it failed


async def look_up(topic: str) -> str:
    """Find a fact. A real worker asks a model."""
    await trio.sleep(0.2)
    return FACTS[topic]
