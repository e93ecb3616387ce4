"""In front of a real route of the AI SDK, which knows nothing of us: its clients show the same, and lose nothing.

The same but for ids: an assistant's message has the turn's id instead of one that the route made up.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx2
import pytest
import trio
from node import HERE, drive, require_node
from served import open_served, told
from test_coming_back import Json, do, shown, visit

from penstock import chat_app
from penstock.relay.ui_stream import UiStreamProtocol
from penstock.relay.upstream import relay
from penstock.testing import open_server, record

HEADERS = {
    "accept-language": "de",
    "authorization": "Bearer of-the-user",
    "cookie": "session=1; theme=dark",
    "x-tenant": "t",
    "x-private": "p",
}


@pytest.fixture(scope="module")
def route() -> Iterator[str]:
    """Run the backend and return its URL."""
    command = [require_node(), str(HERE / "route.mjs")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        yield process.stdout.readline().strip()
        process.terminate()


@asynccontextmanager
async def proxy(route: str, version: int) -> AsyncIterator[str]:
    """Serve the proxy in front of a version's route, and yield its chat endpoint."""
    protocol = UiStreamProtocol(forward_headers=["Cookie", "authorization", "x-tenant"])
    answer = relay(f"{route}/{version}", protocol=protocol)
    async with open_server(chat_app(answer, sdk_version=version)) as url:
        yield f"{url}/api/chat"


async def asked(route: str) -> list[Json]:
    """Return what came to the route."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        requests: list[Json] = (await client.get(f"{route}/requests")).json()
        return requests


async def asked_in(route: str, chat_id: str) -> list[Json]:
    """Return what came to the route of one chat."""
    return [request for request in await asked(route) if json.loads(request["body"])["id"] == chat_id]


async def until_aborted(route: str, chat_id: str) -> None:
    """Wait until the route sees that nobody wants its answer."""
    with trio.fail_after(5):
        while not (await asked_in(route, chat_id))[-1]["aborted"]:
            await trio.sleep(0.02)


def alike(step: Json) -> list[Json]:
    """What a page shows, but for ids, also those of approvals, which are random, and what `ai` 6 calls a bad input."""
    messages = shown(step)
    for part in (part for message in messages for part in message["parts"]):
        if "approval" in part:
            part["approval"].update(id="", signature="")
        if "rawInput" in part:
            part["input"] = part.pop("rawInput")
    return messages


APPROVE = [do("approve", approved=True, reason="so be it")]
DENY = [do("approve", approved=False, reason="no")]
VISITS: dict[str, list[Json]] = {
    "all": [do("send", text="all"), do("send", text="and then")],
    "data": [do("send", text="data")],
    "turns": [do("send", text="turns")],
    "invalid": [do("send", text="invalid")],
    "approved": [do("send", text="approve"), *APPROVE],
    "denied": [do("send", text="approve"), *DENY],
    "answered": [do("send", text="ask"), do("output", output={"at": "home"})],
}
PARTS = {"all": 4, "data": 2, "turns": 8, "invalid": 2, "approved": 2, "denied": 2, "answered": 1}


@pytest.mark.parametrize("version", [6, 7])
async def test_a_page_shows_what_it_shows_without_the_proxy(route: str, version: Any) -> None:
    """Over SSE, and with 7 over a WebSocket; also when it comes back later; and the route is sent the same request."""
    async with proxy(route, version) as url:
        ways: dict[str, Json] = {"direct": {"url": f"{route}/{version}"}, "sse": {"url": url}}
        if version == 7:
            ways["websocket"] = {"url": url, "transport": "websocket"}
        jobs: dict[tuple[str, str], Json] = {}
        for name, steps in VISITS.items():
            for way, options in ways.items():
                back = [] if way == "direct" else [do("reload"), do("resume")]
                if version == 6 and name in ("approved", "denied"):
                    back = back[:1]  # A client of 6 that replays a message has no words for a decision.
                jobs[name, way] = {**visit("", version, f"{name}-{way}-{version}", *steps, *back), **options}
        results = dict(zip(jobs, await drive(list(jobs.values())), strict=True))
        for (name, way), result in results.items():
            direct = [alike(step) for step in results[name, "direct"]["steps"]]
            assert len(direct[0][-1]["parts"]) > PARTS[name]
            shows = [alike(step) for step in result["steps"]]
            later = [direct[-1]] * (len(shows) - len(direct))
            assert shows == [*direct, *later], (name, way)
    requests = await asked(route)
    for name in VISITS:
        bodies = {
            way: [
                request["body"]
                for request in requests
                if json.loads(request["body"])["id"] == f"{name}-{way}-{version}"
            ]
            for way in ways
        }
        firsts = {way: json.loads(all_bodies[0]) for way, all_bodies in bodies.items()}
        for way, all_bodies in bodies.items():
            assert {**firsts[way], "id": ""} == {**firsts["direct"], "id": ""}
            assert len(all_bodies) == len(bodies["direct"])
        # Byte for byte, with the chat's id as long as the other's.
        assert bodies["sse"][0] == bodies["direct"][0].replace(f"{name}-direct", f"{name}-sse")


@pytest.mark.parametrize("version", [6, 7])
async def test_streams_that_a_route_merges_at_once_are_one_step(route: str, version: Any) -> None:
    """A page shows the same parts as without the proxy; of 6, where a page of its own loses the text, as of 7."""
    async with proxy(route, version) as url:
        ask = [do("send", text="merged"), do("reload"), do("resume")]
        direct, proxied = await drive(
            [
                visit(f"{route}/7", 7, "merged-direct", ask[0]),
                visit(url, version, f"merged-{version}", *ask),
            ]
        )
    expected, *shows = (
        [part for part in shown(step)[-1]["parts"] if part["type"] != "step-start"]
        for step in (*direct["steps"], *proxied["steps"])
    )
    kinds = [part["type"] for part in expected]
    assert kinds == ["text", "reasoning", "source-url", "text", "tool-add", "text"]
    assert len(expected[0]["text"].split()) == 20
    assert shows == [expected] * 3
    assert {step["error"] for step in proxied["steps"]} == {None}


async def test_the_request_is_passed_on_as_it_came(route: str) -> None:
    """Every byte of the body, in either form, and of the headers those that are allowed."""
    message = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Grüße"}]}
    whole = {"messages": [message], "id": "whole", "custom": {"a": [1.0, None]}, "trigger": "submit-message"}
    body = json.dumps(whole, ensure_ascii=False, indent=1).encode()
    async with proxy(route, 6) as url, httpx2.AsyncClient(trust_env=False, verify=False) as client:
        headers = {**HEADERS, "content-type": "application/json", "x-request-id": "r-1"}
        response = await client.post(url, content=body, headers=headers)
        assert b"You said " in response.content
    [request] = await asked_in(route, "whole")
    assert request["body"].encode() == body
    came = request["headers"]
    assert {name: came.get(name) for name in HEADERS} == {**HEADERS, "x-private": None}
    assert came["x-request-id"] == "r-1"
    assert came["x-penstock-turn"] == response.headers["x-penstock-turn"]
    assert int(came["content-length"]) == len(body)
    assert came["host"] in route


async def test_only_the_last_message_is_passed_on_as_only_that(route: str) -> None:
    """To a route that keeps the conversation itself. This one doesn't, and fails: the user reads a sentence."""
    message = {"id": "u", "role": "user", "parts": [{"type": "text", "text": "Hello"}]}
    async with proxy(route, 6) as url, httpx2.AsyncClient(trust_env=False, verify=False) as client:
        response = await client.post(url, json={"id": "last", "message": message})
    [request] = await asked_in(route, "last")
    assert json.loads(request["body"]) == {"id": "last", "message": message}
    assert b'"errorText":"' in response.content


@pytest.mark.parametrize("version", [6, 7])
async def test_a_lost_page_a_second_page_and_a_stop(route: str, version: Any) -> None:
    """The answer survives its page; a page that comes in the middle sees it whole; a stop reaches the route."""
    lost = [do("send", text="slow 40", cuts=[12]), do("resume")]
    second = [do("begun"), do("reload"), do("resume")]
    stop = [do("send", text="slow 900", until=20), do("stop"), do("settle"), do("reload"), do("resume")]
    async with proxy(route, version) as url:
        first, other, stopped, *uncut = await drive(
            [
                visit(url, version, f"shared-{version}", *lost),
                visit(url, version, f"shared-{version}", *second),
                visit(url, version, f"stopped-{version}", *stop),
                visit(f"{route}/{version}", version, "direct", do("send", text="slow 40")),
            ]
        )
        await until_aborted(route, f"stopped-{version}")
    whole = shown(uncut[0]["steps"][-1])
    assert first["steps"][0]["error"] == "terminated"
    assert shown(first["steps"][-1]) == shown(other["steps"][-1]) == whole
    assert [request["aborted"] for request in await asked_in(route, f"shared-{version}")] == [False]
    settled, _, resumed = (shown(step) for step in stopped["steps"][-3:])
    text = settled[-1]["parts"][-1]["text"]
    assert 0 < len(text.split()) < 900
    assert settled == resumed


FAILURES: dict[str, tuple[str, list[str]]] = {
    "refuse": ("Your plan has no more answers.", []),
    "error": ("An error occurred.", ["So far, "]),
    "break": ("The model's answer was cut off.", ["You said "]),
}
"""The error that the user reads, and the text that stays."""


async def test_an_answer_that_fails_says_so_and_keeps_its_text(route: str) -> None:
    """Also on a page that comes later. The route is asked once."""
    async with proxy(route, 7) as url:
        results = await drive(
            [visit(url, 7, says, do("send", text=says), do("reload"), do("resume")) for says in FAILURES]
        )
    for (says, (error, texts)), result in zip(FAILURES.items(), results, strict=True):
        sent, _, resumed = result["steps"]
        for step in (sent, resumed):
            assert (step["status"], step["error"]) == ("error", error)
            parts = [part for message in step["messages"][1:] for part in message["parts"]]
            assert [part["text"] for part in parts if "text" in part] == texts
        assert len(await asked_in(route, says)) == 1


LOST = "The server stopped before the answer was complete."


@pytest.mark.parametrize("version", [6, 7])
async def test_the_proxy_is_killed_and_comes_back(route: str, version: Any, tmp_path: Path) -> None:
    """What it had stored is there, on the same page and on a new one, and is said to be not the whole.

    The route knows that nobody listens.
    """
    chat_id = f"killed-{version}"
    serving = partial(running, f"sqlite:{tmp_path / 'chat.db'}", f"{route}/{version}", version)
    results: list[Json] = []
    back = [do("wait", state="lost"), do("resume"), do("reload"), do("resume")]

    async def use(url: str) -> None:
        results.extend(await drive([visit(url, version, chat_id, do("send", text="slow 900"), *back)]))

    async with trio.open_nursery() as nursery:
        async with serving() as (url, process):
            nursery.start_soon(use, url)
            await until_written(f"{url}/{chat_id}", 60)
            process.kill()
            await process.wait()
        await until_aborted(route, chat_id)
        async with serving(port=httpx2.URL(url).port or 0) as (again, _):
            assert again == url
            while not results:
                await trio.sleep(0.02)
    [result] = results
    sent, _, same_page, reloaded, new_page = result["steps"]
    assert (sent["status"], sent["error"]) == ("error", "terminated")
    for step in (same_page, new_page):
        assert (step["status"], step["error"]) == ("error", LOST)
    assert same_page["messages"] == reloaded["messages"] == new_page["messages"]
    words = new_page["messages"][-1]["parts"][-1]["text"].split()
    assert words == [str(number) for number in range(len(words))]
    assert 30 <= len(words) < 900, "who is asked before it dies may know a flush more than what was stored"


async def until_written(url: str, count: int) -> None:
    """Wait until a chat's answer has so many words."""
    async with httpx2.AsyncClient(trust_env=False, verify=False) as client:
        with trio.fail_after(20):
            while True:
                response = await client.get(url)
                if response.status_code == 200:
                    parts = response.json()["messages"][-1]["parts"]
                    if sum(len(part.get("text", "").split()) for part in parts) >= count:
                        return
                await trio.sleep(0.02)


@asynccontextmanager
async def running(
    journal: str, upstream: str, version: int, *, port: int = 0
) -> AsyncIterator[tuple[str, trio.Process]]:
    """A proxy as a process; whatever is left of it is killed at the end."""
    async with trio.open_nursery() as nursery:
        command = [sys.executable, str(HERE / "proxy_server.py"), journal, upstream, str(version), str(port)]
        process = await nursery.start(partial(trio.run_process, command, stdout=subprocess.PIPE, check=False))
        try:
            with trio.fail_after(20):
                line = b""
                while not line.endswith(b"\n"):
                    data = await process.stdout.receive_some(100)
                    assert data, "the proxy ended before it listened"
                    line += data
            yield f"{line.decode().strip()}/api/chat", process
        finally:
            process.kill()


async def test_the_command_line_serves_a_route(route: str) -> None:
    """A header that it names goes along."""
    options = ["--protocol", "ui-stream", "--sdk-version", "7", "--forward-header", "cookie"]
    async with open_served("--upstream", f"{route}/7", *options) as url:
        recording = await record(url, "Grüße", chat_id="command", headers=HEADERS)
    assert told(recording) == (200, "You said Grüße", ["finish", "[DONE]"])
    [request] = await asked_in(route, "command")
    assert request["headers"]["cookie"] == HEADERS["cookie"]
    assert "authorization" not in request["headers"]
    assert request["headers"]["x-penstock-turn"] == recording.message["id"]
