"""The model that `penstock serve` runs when it is given none: a partner to talk to, and commands for the wire's parts.

Every answer is a function of the text of the last user message alone, byte for byte but for the ids that the turn
makes and the times that `/pace` tells. The file knows what a producer sees, `Turn`, and nothing of what is below or beside it, so that it is also the
example of how to write one. The words are in `partner.py`.
"""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

import trio

from penstock import Turn
from penstock.demo import partner
from penstock.demo.clock import sleep_until

MODEL = "penstock-demo"
"""The model's name in the message's metadata."""

WORD_S = 0.03
"""Pause after a word: about the pace of a hosted model."""

SLOW_DELTAS = 300
SLOW_DELTA_S = 0.02

LONG_DELTAS = (1, 1_000, 200_000)
"""`/long`: the fewest, the usual and the most deltas. The most are some 13 MB of stream."""

PACE_DELTAS = (1, 500, 200_000)
"""`/pace`: the fewest, the usual and the most deltas."""

PACE_RATE = (0.1, 50.0, 10_000.0)
"""`/pace`: the fewest, the usual and the most deltas a second. More than the most is `/long`."""

SILENT_S = (0.0, 5.0, 600.0)
"""`/silent`: the shortest, the usual and the longest silence, in seconds."""

APPROVAL_S = 60.0
"""How long `/approve now` waits for the user."""

DROP_PNG = (
    "data:image/png;base64,"
    "iVBORw0KGgoAAAANSUhEUgAAABgAAAAYAgMAAACdGdVrAAAACVBMVEUAAAAfesS/4/+t/S4+AAAAAXRSTlMAQObYZgAA"
    "ADpJREFUeNpjYCAGMDogU6wByJRoCJgKDQWrCA0FqWENDQ3AoERTQ0FKWVdCBKFUKpiC6oOaAjMTCQAAPe0M/gF/IH0A"
    "AAAASUVORK5CYII="
)
"""A drop of water, 24 by 24 pixels. Written out, because compressors differ and the answer must not."""

_PASSAGE = (
    "Water gathers behind the wall and waits. A gate opens by a hand's breadth, and the pipe below it fills: "
    "first a thread, then a rope, then a roar that the hill itself can feel. At the foot stands the wheel. "
    "It asks for no more than it can turn with, and the gate gives no more than the pipe can hold. "
    "When the mill is done for the day, the gate comes down, the roar becomes a rope, the rope a thread, "
    "and the water that is still on its way arrives, to the last drop, before it is quiet."
)


async def answer(turn: Turn) -> None:
    """Write the answer to the turn's last user message: a command's, or the partner's.

    Raises RuntimeError for `/error`, which asks for it. Cancelled at any word.
    """
    await turn.metadata({"model": MODEL})
    text = turn.prompt.strip()
    if not text.startswith("/"):
        await _say(turn, partner.reply(text))
        return
    name, *argument = text.split(maxsplit=1)
    command = COMMANDS.get(name.lower())
    if command is None:
        await _say(turn, f"I don't know that command. These I know:\n\n{_listing()}")
    else:
        await command.run(turn, "".join(argument))


async def _help(turn: Turn, argument: str) -> None:
    await _say(turn, f"Just talk to me, or type one of these:\n\n{_listing()}")


async def _long(turn: Turn, argument: str) -> None:
    fewest, usual, most = LONG_DELTAS
    if argument and not re.fullmatch(r"[+-]?[0-9]{1,100}", argument):
        await _say(turn, "`/long` wants a whole number, such as `/long 5000`.")
        return
    count = min(max(int(argument or usual), fewest), most)
    async with turn.text() as text:
        # All of it is there already, so it is written in one go.
        await text.write_all(f"{number} " for number in range(1, count))
        await text.write(f"{count}")


async def _slow(turn: Turn, argument: str) -> None:
    words = _words(_PASSAGE + "\n\n")
    began = trio.current_time()
    async with turn.text() as text:
        for number in range(SLOW_DELTAS):
            # Deadlines from the beginning, not pauses in between: the pace holds however long a write takes.
            await trio.sleep_until(began + number * SLOW_DELTA_S)
            await text.write(words[number % len(words)])


async def _pace(turn: Turn, argument: str) -> None:
    """Say with each delta when it was due, in ns since 1970: a client on this machine can tell how late it is."""
    if not re.fullmatch(r"(?:[0-9]{1,100}(?:\s+[0-9]{1,100}(?:\.[0-9]{1,100})?)?)?", argument):
        await _say(turn, "`/pace` wants a number of pieces and how many a second, such as `/pace 500 50`.")
        return
    count, rate, *_ = (*argument.split(), "", "")
    (fewest, usual, most), (slowest, moderate, fastest) = PACE_DELTAS, PACE_RATE
    deltas = min(max(int(count or usual), fewest), most)
    per_s = min(max(float(rate or moderate), slowest), fastest)
    began, began_ns = trio.current_time(), time.time_ns()
    async with turn.text() as text:
        for number in range(deltas):
            due_s = number / per_s
            # What is late is written at once, and does not put off what follows it.
            if began + due_s > trio.current_time():
                await sleep_until(began + due_s)
            await text.write(f"drop {number:07} @{began_ns + int(due_s * 1e9)} ")


async def _reason(turn: Turn, argument: str) -> None:
    async with turn.step():
        async with turn.reasoning() as thought:
            await _stream(
                thought.write,
                "The question is how much water a pipe can carry. Twice the width is four times the area, "
                "and the walls slow the water less. So it must be more than four times as much.",
            )
        await _say(turn, "A pipe that is twice as wide carries more than **four times** as much water.")


async def _tool(turn: Turn, argument: str) -> None:
    async with turn.step():
        async with turn.tool_call("get_water_level", title="Water level") as call:
            for delta in ('{"reser', 'voir": "Up', 'per Lake", ', '"unit": "m"}'):
                await trio.sleep(WORD_S)
                await call.write_input(delta)
            await call.output({"status": "measuring"}, preliminary=True)
            await trio.sleep(10 * WORD_S)
            await call.output({"status": "done", "level": 41.7, "unit": "m"})
        async with turn.tool_call("get_rainfall", {"days": 7}, title="Rainfall") as call:
            await trio.sleep(10 * WORD_S)
            await call.error("The rain gauge does not answer.")
    async with turn.step():
        await _say(
            turn,
            "The Upper Lake stands at 41.7 m. I can't tell how much rain fell, because the gauge does not answer.",
        )


async def _sources(turn: Turn, argument: str) -> None:
    await turn.source("https://en.wikipedia.org/wiki/Penstock", title="Penstock")
    await turn.source_document("Operating the gate", "application/pdf", filename="gate.pdf")
    await _say(turn, "A web page and a document say what a penstock is and how its gate is worked.")


async def _file(turn: Turn, argument: str) -> None:
    await turn.file(DROP_PNG, "image/png")
    await _say(turn, "Here is a drop of water.")


async def _data(turn: Turn, argument: str) -> None:
    await turn.data("reading", {"gauge": "intake", "flow": 12.5})
    for percent in range(0, 101, 25):
        await turn.data("progress", {"percent": percent}, id="filling")
        await turn.data("notice", {"text": f"{percent} % full"}, transient=True)
        await trio.sleep(5 * WORD_S)
    await _say(turn, "One reading, one progress that was replaced in place, and notices that nobody keeps.")


async def _error(turn: Turn, argument: str) -> None:
    async with turn.text() as text:
        await _stream(text.write, "This answer is about to fail in the middle of a")
        raise RuntimeError("a detail of the demo that belongs in the log and never on the wire")


async def _silent(turn: Turn, argument: str) -> None:
    shortest, usual, longest = SILENT_S
    if argument and not re.fullmatch(r"[+-]?[0-9]{1,100}(?:\.[0-9]{1,100})?", argument):
        await _say(turn, "`/silent` wants a number of seconds, such as `/silent 20`.")
        return
    silence_s = min(max(float(argument or usual), shortest), longest)
    await trio.sleep(silence_s)
    await _say(turn, f"I was silent for {silence_s:g} seconds.")


async def _steps(turn: Turn, argument: str) -> None:
    await turn.metadata({"steps": {"first": "asking"}})
    async with turn.step():
        await _say(turn, "Let me ask how far the gate is open.")
        async with turn.tool_call("get_gate", {"gate": "north"}) as call:
            await trio.sleep(5 * WORD_S)
            await call.output({"gate": "north", "open": 0.4})
    await turn.metadata({"steps": {"first": "asked", "second": "telling"}})
    async with turn.step():
        await _say(turn, "The north gate is open by two fifths.")
    await turn.metadata({"steps": {"second": "told"}})


class _Command(NamedTuple):
    usage: str
    what: str
    run: Callable[[Turn, str], Awaitable[None]]


async def _approve(turn: Turn, argument: str) -> None:
    """Ask before a gate is opened: by ending the stream until the user has decided, or inside it."""
    if turn.messages[-1].role == "assistant":
        calls = turn.approved_calls()
        for call in calls:
            async with turn.resume_call(call) as gate:
                await gate.output({"open": True})
        await _say(turn, "The gate is open." if calls else "The gate stays shut.")
        return
    async with turn.step():
        await _say(turn, "I won't do this without your word.")
        async with turn.tool_call("open_gate", {"gate": "Spillway"}, title="Open a gate") as gate:
            if argument != "now":
                await gate.request_approval()
                return
            verdict = await gate.approval(holder="connection", wait_s=APPROVAL_S)
            if verdict.approved:
                await gate.output({"open": True})
    await _say(turn, "The gate is open." if verdict.approved else "The gate stays shut.")


COMMANDS = {
    command.usage.split()[0]: command
    for command in (
        _Command("/help", "this list", _help),
        _Command("/long N", "N pieces of text at full speed, 1 to 200000", _long),
        _Command("/slow", "300 pieces of text, 50 a second", _slow),
        _Command("/pace N R", "N pieces of text, R a second, each with the time when it was due", _pace),
        _Command("/reason", "reasoning, then text", _reason),
        _Command(
            "/tool", "a tool call with streamed input and a preliminary output, and one that fails", _tool
        ),
        _Command("/sources", "a web page and a document as sources", _sources),
        _Command("/file", "a small picture", _file),
        _Command("/data", "data parts: kept, replaced, transient", _data),
        _Command("/approve", "a tool that asks first; `/approve now` waits for you in the stream", _approve),
        _Command("/error", "some text, then an exception", _error),
        _Command("/silent S", "nothing for S seconds, 0 to 600, then text", _silent),
        _Command("/steps", "two steps with a tool between", _steps),
    )
}
"""What a message may begin with instead of being talk, by name."""


def _listing() -> str:
    return "\n".join(f"- `{command.usage}`: {command.what}" for command in COMMANDS.values())


async def _say(turn: Turn, words: str) -> None:
    async with turn.text() as text:
        await _stream(text.write, words)


async def _stream(write: Callable[[str], Awaitable[None]], words: str) -> None:
    for word in _words(words):
        await write(word)
        await trio.sleep(WORD_S)


def _words(text: str) -> list[str]:
    """Cut a text after the space that follows each word; joined, it is the text again."""
    return re.findall(r"\S+\s*|\s+", text)
