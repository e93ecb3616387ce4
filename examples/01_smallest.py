"""The smallest app: a function that is given a turn, and writes the answer into it.

    cd examples
    penstock serve 01_smallest:answer

Then open http://127.0.0.1:8000, or ask on another terminal:

    penstock send http://127.0.0.1:8000 "Hello there"
"""

from __future__ import annotations

import trio

from penstock import Turn


async def answer(turn: Turn) -> None:
    """Say back what the user said, a word at a time. Your model goes here."""
    async with turn.text() as text:
        for word in f"You said: {turn.prompt}".split():
            await text.write(f"{word} ")
            await trio.sleep(0.05)
