"""A model that may call Python functions. One of them asks the user first.

    cd examples
    export UPSTREAM=http://127.0.0.1:11434/v1 MODEL=llama3.2   # any OpenAI-compatible server; this is Ollama
    penstock serve 13_tools:answer

Then open http://127.0.0.1:8000 and ask for a table for two in Bergen. Whatever the model makes of it, nothing is booked
before you have said yes.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Annotated

import trio
from msgspec import Meta

from penstock import ToolError, Turn, open_upstream, run_tools, tool

UPSTREAM = os.environ.get("UPSTREAM", "http://127.0.0.1:11434/v1")
MODEL = os.environ.get("MODEL", "llama3.2")
People = Annotated[int, Meta(ge=1, le=12)]


@dataclass
class Table:
    """What the model and the page get as JSON."""

    restaurant: str
    seats: int
    city: str


TABLES = [Table("Forellen", 2, "Bergen"), Table("Regn", 6, "Bergen"), Table("Linde", 4, "Zürich")]


def find_tables(city: str, people: People) -> list[Table]:
    """Find free tables. This one is not async: it runs in a thread, where it may block.

    Args:
        city: without its country.
        people: how many will come.
    """
    return [table for table in TABLES if table.city == city and table.seats >= people]


async def book_table(restaurant: str, people: People) -> dict[str, str]:
    """Book a table at a restaurant that find_tables has found."""
    await trio.sleep(0.1)  # a real one asks a service, with a deadline: `with trio.fail_after(10):`
    if not any(table.restaurant == restaurant and table.seats >= people for table in TABLES):
        # The model reads this, and so may the user. Any other exception's text stays in the log.
        raise ToolError("That restaurant has no such table.")
    return {"booked": restaurant, "for": f"{people}"}


TOOLS = [tool(find_tables), tool(book_table, approval="A table that is booked is paid for.")]


async def answer(turn: Turn) -> None:
    """Ask the model, run what it calls, and ask again, until it has an answer or the user has to decide."""
    async with open_upstream(UPSTREAM, MODEL) as upstream:
        await run_tools(turn, upstream, TOOLS)
