"""The examples that need nobody else, each served as its reader would serve it."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import httpx2
import msgspec
import trio
from running import PENSTOCK, environment, open_example

from penstock import open_client
from penstock.client import Received
from penstock.client.client import Client
from penstock.client.events import Snapshot
from penstock.testing import record, user_message
from penstock.wire.chunks import TextDelta, ToolApprovalRequest


def texts(message: Any) -> str:
    """Join the text of a message's text parts."""
    return "".join(part["text"] for part in message["parts"] if part["type"] == "text")


def tool(message: Any) -> Any:
    """Return the message's only tool part."""
    (part,) = (part for part in message["parts"] if part["type"].startswith("tool-"))
    return part


async def post(url: str, **fields: object) -> httpx2.Response:
    """POST JSON and return the whole answer."""
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.post(url, json=fields)


async def get(url: str, *, token: str = "") -> httpx2.Response:
    """GET, as the owner of a token."""
    headers = {b"authorization": f"Bearer {token}".encode()} if token else {}
    async with httpx2.AsyncClient(trust_env=False, timeout=10) as client:
        return await client.get(url, headers=headers)


async def test_the_smallest_app_answers_and_the_line_in_its_docstring_works() -> None:
    with trio.fail_after(30):
        async with open_example("01_smallest:answer") as example:
            sent = await trio.run_process(
                [PENSTOCK, "send", example.url, "Hello there"],
                capture_stdout=True,
                stderr=None,
                env=environment(),
            )
            recording = await record(f"{example.url}/api/chat", "again")
    assert sent.stdout.decode().strip() == "You said: Hello there"
    assert texts(recording.message) == "You said: again "


async def test_a_quart_app_keeps_its_routes_and_each_user_their_chats() -> None:
    ada = {"authorization": "Bearer secret-1"}
    with trio.fail_after(30):
        async with open_example("02_quart_app.py", CHAT_TOKENS="ada:secret-1,bob:secret-2") as example:
            chats = f"{example.url}/api/chat"
            home = await get(f"{example.url}/")
            nobody = await record(chats, "Hello", chat_id="ada.1")
            own = await record(chats, "Hello", chat_id="ada.1", headers=ada)
            others = await record(chats, "Hello", chat_id="bob.1", headers=ada)
            read = {
                token: await get(f"{chats}/ada.1", token=token)
                for token in ("secret-1", "secret-2", "", "naïf")
            }
            statistics = await get(f"{example.url}/statistics")
    assert "before it had a chat" in home.text
    assert (nobody.status, own.status, others.status) == (401, 200, 404)
    assert texts(own.message) == "Hello, ada. You said: Hello"
    assert [response.status_code for response in read.values()] == [200, 404, 401, 401]
    assert read["secret-1"].json()["turn"]["state"] == "finished"
    assert statistics.json()["turns_running"] == 0


async def ask_to_delete(client: Client, chat_id: str, note: str) -> str:
    """Ask for a note to be deleted, and return the approval's id, with the stream left."""
    async with client.send(chat_id, note) as stream:
        async for event in stream:
            if isinstance(event, Received) and isinstance(event.chunk, ToolApprovalRequest):
                return event.chunk.approval_id
    raise AssertionError("it did not ask")


def decided(messages: Sequence[Any], *, approved: bool) -> list[Any]:
    """Return the history as a client of the AI SDK has it once its user has decided."""
    history = json.loads(json.dumps(messages))
    part = tool(history[-1])
    part["state"] = "approval-responded"
    part["approval"] = {"id": part["approval"]["id"], "approved": approved}
    return history  # type: ignore[no-any-return]


async def test_a_tool_that_asks_runs_after_a_yes_and_not_after_a_no_over_two_requests() -> None:
    answers: dict[bool, Any] = {}
    with trio.fail_after(30):
        async with open_example("06_approval:over_two_requests") as example:
            chats = f"{example.url}/api/chat"
            for approved in (False, True):  # a no first: the note is still there to be deleted
                chat_id = f"chat-{approved}"
                question = user_message("plans")
                await record(chats, "", chat_id=chat_id, body={"messages": [msgspec.to_builtins(question)]})
                state = (await get(f"{chats}/{chat_id}")).json()
                assert state["turn"]["state"] == "suspended"
                assert tool(state["messages"][-1])["state"] == "approval-requested"
                await record(
                    chats,
                    "",
                    chat_id=chat_id,
                    body={"messages": decided(state["messages"], approved=approved)},
                )
                answers[approved] = (await get(f"{chats}/{chat_id}")).json()
                assert answers[approved]["turn"]["id"] == state["turn"]["id"]
    assert tool(answers[True]["messages"][-1])["output"] == {"deleted": True}
    assert texts(answers[True]["messages"][-1]) == "Done."
    assert tool(answers[False]["messages"][-1])["state"] == "output-denied"
    assert texts(answers[False]["messages"][-1]) == "Nothing was deleted."


async def test_a_tool_that_asks_inside_its_stream_goes_on_there() -> None:
    messages: dict[bool, Any] = {}
    with trio.fail_after(30):
        async with open_example("06_approval:inside_the_stream") as example:
            async with open_client(f"{example.url}/api/chat") as client:
                for approved in (False, True):
                    chat_id = f"chat-{approved}"
                    approval = await ask_to_delete(client, chat_id, "plans")
                    await client.approve(chat_id, approval, approved)
                    async with client.follow(chat_id) as stream:
                        async for _ in stream:
                            pass
                    messages[approved] = (await get(f"{example.url}/api/chat/{chat_id}")).json()["messages"][
                        -1
                    ]
    assert tool(messages[True])["output"] == {"deleted": True}
    assert texts(messages[True]) == "Done."
    assert tool(messages[False])["state"] == "output-denied"
    assert texts(messages[False]) == "Nothing was deleted: denied."


async def test_workers_report_in_the_chat_and_write_in_their_lanes() -> None:
    lane: list[str] = []
    with trio.fail_after(30):
        async with open_example("07_lanes:answer") as example:
            chats = f"{example.url}/api/chat"
            async with open_client(chats) as client, trio.open_nursery() as nursery:
                watching = trio.Event()

                async def watch() -> None:
                    async with client.watch("chat-1", lane="worker:2") as stream:
                        async for event in stream:
                            if isinstance(event, Snapshot):
                                watching.set()
                            elif isinstance(event, Received) and isinstance(event.chunk, TextDelta):
                                lane.append(event.chunk.delta)

                nursery.start_soon(watch)
                await watching.wait()
                recording = await record(chats, "rivers, lakes, unicorns", chat_id="chat-1")
                nursery.cancel_scope.cancel("the answer is over")
    message = recording.message
    states = {part["data"]["lane"]: part["data"]["state"] for part in message["parts"] if "data" in part}
    assert states == {"worker:1": "finished", "worker:2": "finished", "worker:3": "failed"}
    assert texts(message).splitlines()[1:] == [
        "- lakes: Lake Geneva keeps its water for eleven years.",
        "- unicorns: nothing was found.",
    ]
    # The lane's words, one by one, and not another lane's; the answer's own text comes after them.
    assert "".join(lane).startswith("Lake Geneva keeps its water for eleven years. ")
    assert "".join(lane).count("Rhine") <= 1
