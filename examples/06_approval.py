"""A tool that asks first, in both ways. `delete_note` may run when the user has said yes, and not before.

    cd examples
    penstock serve 06_approval:over_two_requests
    penstock serve 06_approval:inside_the_stream

Then open http://127.0.0.1:8000, name a note (`shopping` or `plans`), and decide.

Over two requests is the AI SDK's own way: the producer returns, nothing waits, and the answer may come days later and to
another process. Inside the stream is for a tool that holds something open meanwhile: a transaction, a browser, a lock.
"""

from __future__ import annotations

import trio

from penstock import Turn

NOTES = {"shopping": "milk", "plans": "sleep"}
PATIENCE_S = 120.0


async def over_two_requests(turn: Turn) -> None:
    """Ask and return; when the user has decided, the client's next request runs this again, in the same turn."""
    if turn.messages[-1].role == "user":
        async with turn.step(), turn.tool_call("delete_note", {"name": turn.prompt.strip()}) as tool:
            await tool.request_approval(reason="A note that is deleted is gone.")
        return
    # The input is the journal's, as it was asked about: a client can decide, and can't put another in its place.
    calls = turn.approved_calls()
    for call in calls:
        async with turn.step(), turn.resume_call(call) as tool:
            await tool.output(await delete_note(call.input["name"]))
    await say(turn, "Done." if calls else "Nothing was deleted.")


async def inside_the_stream(turn: Turn) -> None:
    """Ask and wait here. Stopping the turn, or closing the hub, ends the wait as it would any other."""
    async with turn.step(), turn.tool_call("delete_note", {"name": turn.prompt.strip()}) as tool:
        # holder="connection" would end the wait when the page that was asked is closed, as if it had run out of patience.
        verdict = await tool.approval(wait_s=PATIENCE_S, reason="A note that is deleted is gone.")
        if verdict.approved:
            await tool.output(await delete_note(turn.prompt.strip()))
    # Not approved isn't always denied: nobody may have answered.
    await say(turn, "Done." if verdict.approved else f"Nothing was deleted: {verdict.decision.value}.")


async def delete_note(name: str) -> dict[str, bool]:
    """Delete a note, if there is one."""
    await trio.lowlevel.checkpoint()
    return {"deleted": NOTES.pop(name, None) is not None}


async def say(turn: Turn, words: str) -> None:
    """Write a text part."""
    async with turn.text() as text:
        await text.write(words)
