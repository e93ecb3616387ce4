"""Without a web server: a hub of turns in your own Trio program, on a journal that outlasts it.

    cd examples
    python 08_trio_only.py

It writes an answer, has two followers, stops it halfway, closes everything, and reads the rest from turns.db.
"""

from __future__ import annotations

import sys
from uuid import uuid4

import trio

from penstock import Turn, TurnHandle, UIMessage, chunks, open_hub


async def count(turn: Turn) -> None:
    """Answer with numbers, until somebody stops it."""
    async with turn.text() as text:
        for number in range(1, 1000):
            await text.write(f"{number} ")
            await trio.sleep(0.02)


async def follow(name: str, turn: TurnHandle, after: int = -1, entries: int = sys.maxsize) -> int:
    """Print what follows an offset, to the turn's end or so many entries; return the offset of the last.

    A follower has a cursor and no queue: nobody, however slow, makes the producer or another follower wait.
    """
    last = after
    with turn.follow(after) as subscription:
        while last - after < entries:
            try:
                # What is there now, in one go.
                batch = await subscription.next_batch(min(100, entries - (last - after)))
            except trio.EndOfChannel:
                break
            texts = [entry.chunk.delta for entry in batch if isinstance(entry.chunk, chunks.TextDelta)]
            print(f"{name}: {''.join(texts)}", flush=True)
            last = batch[-1].offset
    return last


async def main(journal: str) -> None:
    """Produce, follow, stop; then come back to it, as another process would."""
    question = UIMessage(id=str(uuid4()), role="user", parts=[{"type": "text", "text": "Count, please."}])
    async with open_hub(journal=journal) as hub:
        # The turn runs in the hub, not here: nobody has to follow it, and it outlives whoever does.
        turn = await hub.start_turn("chat-1", count, [question])
        with trio.fail_after(10):
            seen = await follow("early", turn, entries=10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow, "whole", turn)
            await trio.sleep(0.3)
            print("stop:", (await turn.stop("seen enough")).value)

    # All is closed; the journal has every entry that was shown to anybody.
    async with open_hub(journal=journal) as hub:
        again = await hub.newest_turn("chat-1")
        assert again is not None
        await follow("early, come back", again, after=seen)
        print(f"{again.state.value}: {again.message().text}")


if __name__ == "__main__":
    trio.run(main, sys.argv[1] if len(sys.argv) > 1 else "sqlite:turns.db")
