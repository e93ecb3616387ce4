"""Coming back to a turn: every follower ends with the same message, whenever and from wherever it comes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx2
import lanes
import msgspec
import pytest
import trio
import trio.lowlevel

from penstock import Limits, Turn, chat_app
from penstock.journal.entry import Entry
from penstock.limits import HubLimits
from penstock.testing import Recording, open_server, record, user_message
from penstock.web.resume import renderer
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk, Custom, Error, Finish, Start, TextDelta
from penstock.wire.codec import decode_chunk, encode
from penstock.wire.sse_parser import SseParser

Answer = Callable[[Turn], Awaitable[None]]

lane = lanes.lane
pytestmark = pytest.mark.usefixtures("lane")


async def mixed(turn: Turn) -> None:
    """Every kind of part, with a word in several deltas."""
    await turn.metadata({"model": "m"})
    async with turn.step():
        async with turn.reasoning() as thought:
            for word in ("Hm", ", ", "well."):
                await thought.write(word)
        async with turn.tool_call("add", id="c") as call:
            await call.write_input('{"a":')
            await call.write_input("1}")
            await call.output({"so": "far"}, preliminary=True)
            await call.output(2)
        await turn.data("weather", {"t": 1}, id="w")
        await turn.data("weather", {"t": 2}, id="w")
        await turn.data("note", "passing", transient=True)
    async with turn.step(), turn.text() as text:
        for word in ("It", " is", " 2", "."):
            await text.write(word)


@asynccontextmanager
async def serving(answer: Answer, **options: Any) -> AsyncIterator[tuple[str, httpx2.AsyncClient]]:
    """Serve a producer; yield the chat endpoint's URL and a client."""
    async with (
        open_server(chat_app(answer, **options)) as url,
        httpx2.AsyncClient(timeout=None, trust_env=False, verify=False) as client,
    ):
        yield f"{url}/api/chat", client


async def get(client: httpx2.AsyncClient, url: str, **headers: str) -> Recording:
    """Read a whole event stream."""
    response = await client.get(
        url, headers={name.replace("_", "-"): value for name, value in headers.items()}
    )
    events = SseParser().feed(response.content) if response.status_code == 200 else []
    return Recording(response.status_code, dict(response.headers), response.content, events)


async def test_a_turn_that_just_ended_is_replayed_short_and_makes_the_same_message() -> None:
    async with serving(mixed) as (url, client):
        first = await record(url, "x", chat_id="c")
        again = await get(client, f"{url}/c/stream")
    assert again.message == first.message
    kinds = [chunk.kind for chunk in again.chunks]
    assert kinds.count("text-delta") == kinds.count("reasoning-delta") == kinds.count("tool-input-delta") == 1
    assert kinds.count("data-weather") == kinds.count("tool-output-available") == 1
    assert "data-note" not in kinds
    # The first chunk has no id, so that a client which is cut off in a replay comes back for the whole.
    assert again.events[0].last_event_id == ""
    assert again.events[-1].last_event_id == first.events[-1].last_event_id


async def test_every_position_is_resumed_exactly() -> None:
    async with serving(mixed) as (url, client):
        first = await record(url, "x", chat_id="c")
        whole = [event for event in first.events if event.data != "[DONE]"]
        for index, event in enumerate(whole):
            for rest in (
                await get(client, f"{url}/c/stream?after={event.last_event_id}"),
                await get(client, f"{url}/c/stream", last_event_id=event.last_event_id),
            ):
                assert rest.events[:-1] == whole[index + 1 :]


@pytest.mark.parametrize(
    "position", ["garbage", "msg_other.1-0", "{turn}.2-0", "{turn}.1-99999", "{turn}.1-x", "$", "\u00e9"]
)
async def test_a_void_position_is_answered_with_the_whole_message(position: str) -> None:
    async with serving(mixed) as (url, client):
        first = await record(url, "x", chat_id="c")
        response = await client.get(
            f"{url}/c/stream", params={"after": position.format(turn=first.headers["x-penstock-turn"])}
        )
    chunks = [
        decode_chunk(event.data.encode())
        for event in SseParser().feed(response.content)
        if event.data != "[DONE]"
    ]
    assert isinstance(chunks[0], Start)
    assert assemble(chunks, "") == first.message


async def test_nothing_to_resume_is_204() -> None:
    async with serving(mixed, limits=Limits(hub=HubLimits(replay_finished_s=0.0))) as (url, client):
        assert (await get(client, f"{url}/none/stream")).status == 204
        first = await record(url, "x", chat_id="c")
        assert (await get(client, f"{url}/c/stream")).status == 204
        # Who says what it has is sent what it lacks, however late it comes.
        position = first.events[3].last_event_id
        assert (await get(client, f"{url}/c/stream?after={position}")).events == first.events[4:]


async def test_a_late_follower_of_a_running_turn_gets_the_past_short_and_then_all_that_comes() -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for _ in range(1000):
                await text.write("x")
            await go_on.wait()
            for _ in range(3):
                await text.write("y")

    recordings: list[Recording] = []
    async with serving(answer) as (url, client), trio.open_nursery() as nursery:

        async def follow(start: Callable[[], Awaitable[Recording]]) -> None:
            recordings.append(await start())

        nursery.start_soon(follow, lambda: record(url, "q", chat_id="c"))
        with trio.fail_after(5):
            while "x" * 1000 not in (await client.get(f"{url}/c")).text:
                await trio.sleep(0.01)
        nursery.start_soon(follow, lambda: get(client, f"{url}/c/stream"))
        nursery.start_soon(follow, lambda: get(client, f"{url}/c/stream"))
        await trio.sleep(0.2)
        go_on.set()
    assert len(recordings) == 3
    assert len({msgspec.json.encode(recording.message) for recording in recordings}) == 1
    shorter = min(recordings, key=lambda recording: len(recording.raw))
    assert len([chunk for chunk in shorter.chunks if isinstance(chunk, TextDelta)]) <= 4


@pytest.mark.parametrize("sdk", ["5", "6", "7"])
async def test_workflow_transport_resumes_by_count(sdk: str) -> None:
    """prefix(k) + resume(k) is the whole, for every k, of what this client was sent."""

    async def answer(turn: Turn) -> None:
        await mixed(turn)
        async with turn.lane("worker") as lane, lane.text() as text:
            await text.write("on the side")
        await turn.write(Custom(kind_="penstock.only-for-7"))
        async with turn.text() as text:
            await text.write("The end.")

    async with serving(answer) as (url, client):
        first = await record(url, "x", chat_id="c", headers={"x-penstock-sdk": sdk})
        run = first.headers["x-workflow-run-id"]
        whole = [event.data for event in first.events][:-1]
        assert ("only-for-7" in str(whole)) == (sdk == "7")
        for k in range(len(whole)):
            rest = await get(client, f"{url}/{run}/stream?startIndex={k}")
            assert whole[:k] + [event.data for event in rest.events][:-1] == whole
            assert rest.headers["x-workflow-run-id"] == run
        # It asks until it is told an end, even if it has more than was stored before a crash.
        for k in (len(whole), len(whole) + 5):
            rest = await get(client, f"{url}/{run}/stream?startIndex={k}")
            assert [event.data for event in rest.events][:-1] == whole[-1:]
        last = await get(client, f"{url}/{run}/stream?startIndex=-2")
        assert [event.data for event in last.events][:-1] == whole[-2:]
        assert last.headers["x-workflow-stream-tail-index"] == str(len(whole) - 1)
        for bad in ("x", "1.5", "--1", ""):
            assert (await get(client, f"{url}/{run}/stream?startIndex={bad}")).status in (204, 404)
        assert (await get(client, f"{url}/none/stream?startIndex=0")).status == 404


async def test_workflow_transport_resumes_by_chat_where_it_knows_no_run() -> None:
    async with serving(mixed) as (url, client):
        first = await record(url, "x", chat_id="a~7", headers={"x-penstock-sdk": "7"})
        again = await get(client, f"{url}/a~7/stream?startIndex=0")
        rest = await get(client, f"{url}/a~7/stream?startIndex=3")
    assert again.events == first.events
    assert rest.events == first.events[3:]


async def test_workflow_transport_resumes_at_another_process(tmp_path: Path) -> None:
    """That has nothing of the turn when it is asked, and may not take that for all there is."""
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for word in "abc":
                await text.write(word)
            await turn.flush()
            await go_on.wait()

    recordings: list[Recording] = []
    journal = f"sqlite:{tmp_path / 'journal.db'}"
    async with (
        serving(answer, journal=journal) as (url, client),
        serving(answer, journal=journal) as (other, _),
        trio.open_nursery() as nursery,
    ):

        async def ask() -> None:
            recordings.append(await record(url, "q", chat_id="c"))

        nursery.start_soon(ask)
        with trio.fail_after(5):
            while "abc" not in (await client.get(f"{url}/c")).text:
                await trio.sleep(0.01)
        turn_id = (await client.get(f"{url}/c")).json()["turn"]["id"]

        async def resume() -> None:
            recordings.append(await get(client, f"{other}/{turn_id}/stream?startIndex=4"))

        nursery.start_soon(resume)
        await trio.sleep(0.05)
        go_on.set()
    first, rest = recordings if len(recordings[0].events) > len(recordings[1].events) else recordings[::-1]
    assert [event.data for event in rest.events] == [event.data for event in first.events][4:]


def test_who_has_more_than_was_stored_is_told_that_the_turn_is_lost() -> None:
    """Else it would ask for ever."""
    chunks: list[AnyChunk] = [TextDelta(id="t", delta="x"), Error(error_text="Lost.")]
    entries = [Entry(offset, chunk, encode(chunk), b"") for offset, chunk in enumerate(chunks)]
    render = renderer(7, skip=5)
    assert render(entries[:1]) == b""
    assert render(entries[1:]) == entries[1].frame


async def test_stop_ends_the_turn_for_everyone_and_keeps_the_partial_message() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write("Half")
            await trio.sleep_forever()

    recordings: list[Recording] = []
    async with serving(answer) as (url, client), trio.open_nursery() as nursery:
        assert (await client.post(f"{url}/c/stop")).status_code == 404

        async def follow() -> None:
            recordings.append(await record(url, "q", chat_id="c"))

        nursery.start_soon(follow)
        with trio.fail_after(5):
            while "Half" not in (await client.get(f"{url}/c")).text:
                await trio.sleep(0.01)
        for _ in range(2):
            stopped = await client.post(f"{url}/c/stop", json={"reason": "enough"})
            assert stopped.json() == {"state": "stopped"}
        state = (await client.get(f"{url}/c")).json()
        replay = await get(client, f"{url}/c/stream")
    assert state["turn"]["state"] == "stopped"
    assert state["messages"][-1]["parts"][0]["text"] == "Half"
    assert [chunk.kind for chunk in recordings[0].chunks[-2:]] == ["abort", "finish"]
    assert "anyone: enough" in str(recordings[0].chunks[-2])
    assert replay.message == recordings[0].message


async def test_turn_and_recover_say_how_it_ended_with_the_message() -> None:
    async with serving(mixed) as (url, client):
        first = await record(url, "x", chat_id="c")
        turn_id = first.headers["x-penstock-turn"]
        for path in ("", "/recover"):
            state = (await client.get(f"{url}/c/turns/{turn_id}{path}")).json()
            assert (state["id"], state["state"], state["missing"]) == (turn_id, "finished", False)
            assert state["message"] == first.message
            assert state["position"] == first.events[-2].last_event_id
        assert (await client.get(f"{url}/c/turns/msg_none")).status_code == 404
        assert (await client.get(f"{url}/other/turns/{turn_id}")).status_code == 404


async def ask_first(turn: Turn) -> None:
    """A producer that asks for an approval in the AI SDK's way."""
    for call in turn.approved_calls():
        async with turn.resume_call(call) as tool:
            await tool.output({"deleted": call.input["file"]})
    if turn.messages[-1].role == "user":
        async with turn.step(), turn.tool_call("delete", {"file": "a.txt"}, id="d") as tool:
            await tool.request_approval()
    else:
        async with turn.step(), turn.text() as text:
            await text.write("Done.")


@pytest.mark.parametrize("approved", [True, False])
async def test_an_approval_continues_the_same_turn_and_its_replay_is_one_message(approved: bool) -> None:
    async with serving(ask_first) as (url, client):
        first = await record(url, "delete it", chat_id="c")
        assert (await client.get(f"{url}/c")).json()["turn"]["state"] == "suspended"
        assert (await get(client, f"{url}/c/stream")).message == first.message
        history = (await client.get(f"{url}/c")).json()["messages"]
        part = history[-1]["parts"][-1]
        assert part["state"] == "approval-requested"
        part["state"] = "approval-responded"
        part["approval"] = {**part["approval"], "approved": approved, "reason": "so be it"}
        second = await record(
            url, "", chat_id="c", body={"messages": history, "messageId": history[-1]["id"]}
        )
        state = (await client.get(f"{url}/c")).json()
        replay = await get(client, f"{url}/c/stream?sdk=7")
        run = second.headers["x-workflow-run-id"]
        counted = await get(client, f"{url}/{run}/stream?startIndex=0")
    assert second.headers["x-penstock-turn"] == first.headers["x-penstock-turn"]
    assert isinstance(second.chunks[0], Start)
    assert state["turn"]["state"] == "finished"
    assert [message["role"] for message in state["messages"]] == ["user", "assistant"]
    tool = next(part for part in state["messages"][-1]["parts"] if part["type"] == "tool-delete")
    assert tool["state"] == ("output-available" if approved else "output-denied")
    assert state["messages"][-1]["parts"][-1]["text"] == "Done."
    assert replay.message == state["messages"][-1]
    assert [isinstance(chunk, Start) for chunk in replay.chunks].count(True) == 1
    assert [isinstance(chunk, Finish) for chunk in replay.chunks].count(True) == 1
    assert counted.chunks[0].kind == "start"


async def test_a_new_message_supersedes_a_suspended_turn() -> None:
    async with serving(ask_first) as (url, client):
        first = await record(url, "delete it", chat_id="c")
        second = await record(url, "never mind", chat_id="c")
        old = (await client.get(f"{url}/c/turns/{first.headers['x-penstock-turn']}")).json()
    assert second.status == 200
    assert old["state"] == "stopped"
    assert old["message"]["parts"][-1]["state"] == "output-error"


async def test_stop_ends_a_suspended_turn() -> None:
    async with serving(ask_first) as (url, client):
        await record(url, "delete it", chat_id="c")
        assert (await client.post(f"{url}/c/stop")).json() == {"state": "stopped"}
        assert (await client.get(f"{url}/c")).json()["turn"]["state"] == "stopped"


async def test_a_continuation_of_what_is_not_there_is_refused() -> None:
    async with serving(ask_first) as (url, client):
        body = {
            "id": "c",
            "messages": [{"id": "msg_none", "role": "assistant", "parts": [{"type": "text", "text": "x"}]}],
        }
        response = await client.post(url, json=body)
    assert (response.status_code, response.text) == (
        404,
        "The answer to be continued is not here any more.",
    )


async def test_a_hundred_thousand_deltas_are_replayed_short_and_fast() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(100_000):
                await text.write(f"{number} ")

    async with serving(answer) as (url, client):
        first = await record(url, "x", chat_id="c")
        text = first.message["parts"][0]["text"]
        replay = await get(client, f"{url}/c/stream")
    assert replay.message == first.message
    assert len(replay.raw) < 2 * len(text)


@pytest.mark.parametrize("on_conflict", ["stop", "queue"])
async def test_a_message_on_top_of_another_stops_it_or_waits(on_conflict: str) -> None:
    go_on = trio.Event()

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            await text.write(f"Re: {turn.prompt}")
            if turn.prompt == "first":
                await go_on.wait()

    recordings: dict[str, Recording] = {}
    async with serving(answer, on_conflict=on_conflict) as (url, client), trio.open_nursery() as nursery:

        async def say(text: str) -> None:
            recordings[text] = await record(url, text, chat_id="c")

        nursery.start_soon(say, "first")
        with trio.fail_after(5):
            while "Re: first" not in (await client.get(f"{url}/c")).text:
                await trio.sleep(0.01)
        nursery.start_soon(say, "second")
        if on_conflict == "queue":
            await trio.sleep(0.1)
            assert not recordings
            go_on.set()
    assert recordings["second"].message["parts"][0]["text"] == "Re: second"
    ends = {"stop": ["abort", "finish"], "queue": ["text-end", "finish"]}
    assert [chunk.kind for chunk in recordings["first"].chunks[-2:]] == ends[on_conflict]


async def test_two_who_post_stop_and_approve_at_once_make_one_turn_with_one_end() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.tool_call("go", {}, id="c") as call:
            verdict = await call.approval(holder="turn")
            if verdict.approved:
                await call.output(True)

    async with serving(answer) as (url, client):
        for race in range(200):
            chat = f"c{race}"
            body = {"messages": [msgspec.to_builtins(user_message("x"))]}
            posted: list[Recording] = []

            async def post(
                chat: str = chat, body: dict[str, Any] = body, posted: list[Recording] = posted
            ) -> None:
                posted.append(await record(url, "", chat_id=chat, body=body))

            async def approve(chat: str = chat) -> None:
                text = (await client.get(f"{url}/{chat}")).text
                approval = text.partition('"approval":{"id":"')[2].partition('"')[0]
                response = await client.post(f"{url}/{chat}/approvals/{approval}", json={"approved": True})
                assert response.status_code in (200, 404, 405, 409)

            async def stop(chat: str = chat) -> None:
                assert (await client.post(f"{url}/{chat}/stop")).status_code in (200, 404)

            with trio.fail_after(10):
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(post)
                    nursery.start_soon(post)
                    while "approval-requested" not in (await client.get(f"{url}/{chat}")).text:
                        await trio.lowlevel.checkpoint()
                    for racer in (
                        (stop, approve, stop, approve) if race % 2 else (approve, stop, approve, stop)
                    ):
                        nursery.start_soon(racer)
            assert len({recording.headers["x-penstock-turn"] for recording in posted}) == 1
            assert len({recording.raw for recording in posted}) == 1
            terminal = [chunk for chunk in posted[0].chunks if isinstance(chunk, Finish)]
            assert terminal == posted[0].chunks[-1:]


async def test_a_client_that_counts_may_refuse_joined_deltas() -> None:
    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(5000):
                await text.write(f"{number} ")

    async with serving(answer) as (url, _):
        exact = await record(url, "x", headers={"x-penstock-exact": "1"})
    assert len([chunk for chunk in exact.chunks if isinstance(chunk, TextDelta)]) == 5000
