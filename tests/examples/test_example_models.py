"""The examples that ask a model: official SDKs in a process of their own, and a provider's HTTP API on loopback.

Starting one takes most of the time, so all are started at once, and each is asked everything.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec
import pytest
import trio
from provider import Provider, open_provider, run_mock
from running import open_example

from penstock import open_client
from penstock.client import Received
from penstock.client.client import Client
from penstock.testing import Recording, record, user_message
from penstock.wire.chunks import Error, Finish, TextDelta

OPENAI = {"OPENAI_API_KEY": "none", "OPENAI_BASE_URL": "{url}/v1"}
ANTHROPIC = {"ANTHROPIC_API_KEY": "none", "ANTHROPIC_BASE_URL": "{url}"}
PLAIN = "Die naïve Forelle 🐟 schwamm stromauf."
FAILED = Error(error_text="The answer failed. Please try again.")
BUSY = Error(error_text="The model is busy. Please try again in a moment.")
CUT = Error(error_text="The model's answer was cut off.")
WEATHER = "What is the weather like in Zürich?"
UMBRELLA = [
    ("reasoning", "I have a tool for that."),
    ("text", "I will look."),
    ("tool-get_weather", ({"city": "Zürich"}, "Rain, 11 °C")),
    ("text", "Take an umbrella."),
]


@pytest.fixture(scope="module")
def mock_url() -> Iterator[str]:
    """The published mock's URL."""
    with run_mock() as url:
        yield url


async def ask(url: str, *questions: str) -> dict[str, Recording]:
    """Ask several things at the same time, each in a chat of its own, and return the answers."""
    answers: dict[str, Recording] = {}

    async def ask_one(question: str) -> None:
        answers[question] = await record(f"{url}/api/chat", question)

    async with trio.open_nursery() as nursery:
        for question in questions:
            nursery.start_soon(ask_one, question)
    return answers


def outline(message: Mapping[str, Any]) -> list[tuple[str, Any]]:
    """Name the parts of a message, in order, each with what it says."""
    said: list[tuple[str, Any]] = []
    for part in message["parts"]:
        if part["type"] in ("text", "reasoning"):
            said.append((part["type"], part["text"]))
        elif part["type"].startswith("tool-"):
            said.append((part["type"], (part["input"], part.get("output"))))
    return said


async def check_stop(url: str, provider: Provider) -> None:
    """A stop in the middle of an answer ends the request to the provider."""
    async with (
        open_client(f"{url}/api/chat") as client,
        client.send("stopped", "for ever") as stream,
    ):
        last = None
        async for event in stream:
            if isinstance(event, Received):
                last = event.chunk
            if isinstance(last, TextDelta) and provider.answering:
                assert await client.stop("stopped") == "stopped"
                with trio.fail_after(2):
                    while provider.answering:
                        await trio.sleep(0.01)
    assert last == Finish(finish_reason="other")


def check(answers: dict[str, Recording], said: Callable[[], str]) -> None:
    """What every SDK must come to."""
    plain = answers["plain"]
    assert outline(plain.message) == [("text", PLAIN)]
    assert sum(isinstance(chunk, TextDelta) for chunk in plain.chunks) > 5
    assert plain.chunks[-1] == Finish(finish_reason="stop")
    # The provider's words are in the log, and not with the user.
    assert answers["refused"].chunks[-1] == FAILED
    assert b"private" not in answers["refused"].raw
    assert "private detail" in said()
    # Half an answer is not a short one, however politely its stream ends.
    assert answers["plain, politely"].chunks[-1] == CUT
    assert isinstance(answers["plain, rudely"].chunks[-1], Error)
    for cut in ("plain, politely", "plain, rudely"):
        ((_, text),) = outline(answers[cut].message)
        assert text
        assert PLAIN.startswith(text)
        assert text != PLAIN


EVERYTHING = ("plain", "refused", "plain, politely", "plain, rudely")


async def check_openai(mock_url: str) -> None:
    """It is streamed, stopped, cut, refused and busy."""
    async with (
        open_provider(mock_url) as provider,
        open_example("03_openai:answer", **_at(provider, OPENAI)) as example,
    ):
        await check_stop(example.url, provider)
        answers = await ask(example.url, *EVERYTHING, "busy")
    check(answers, example.log)
    assert answers["busy"].chunks[-1] == BUSY


async def check_anthropic(mock_url: str) -> None:
    """It thinks and uses a tool, besides."""
    async with (
        open_provider(mock_url) as provider,
        open_example("04_anthropic:answer", **_at(provider, ANTHROPIC)) as example,
    ):
        await check_stop(example.url, provider)
        answers = await ask(example.url, *EVERYTHING, "busy")
        weather = await record(f"{example.url}/api/chat", WEATHER)
        last = json.loads(provider.bodies[-1])
    check(answers, example.log)
    assert answers["busy"].chunks[-1] == BUSY
    assert outline(weather.message) == UMBRELLA
    assert weather.chunks[-1] == Finish(finish_reason="stop")
    # The thinking went back as it came, with its signature, before the tool's result.
    thought, *_ = last["messages"][-2]["content"]
    assert (thought["type"], thought["thinking"]) == ("thinking", "I have a tool for that.")
    assert thought["signature"]
    assert last["messages"][-1]["content"][0]["content"] == "Rain, 11 °C"


async def check_pydantic_ai(mock_url: str) -> None:
    """Its turns run side by side, each in an asyncio loop of its own, and one of them uses a tool."""
    async with (
        open_provider(mock_url) as provider,
        open_example("05_pydantic_ai:answer", **_at(provider, OPENAI)) as example,
    ):
        await check_stop(example.url, provider)
        answers = await ask(example.url, *EVERYTHING, WEATHER)
    check(answers, example.log)
    assert outline(answers[WEATHER].message) == UMBRELLA


async def check_tools(mock_url: str) -> None:
    """The model calls Python functions, and what it books is booked once the user has said yes."""
    messages = [msgspec.to_builtins(user_message("A table for two in Bergen"))]
    variables = {"UPSTREAM": f"{mock_url}/v1", "MODEL": "gpt-4.1"}
    async with open_example("13_tools:answer", **variables) as example:
        chats = f"{example.url}/api/chat"
        async with open_client(chats) as client:
            asked = await record(chats, "", chat_id="tables", body={"messages": messages})
            messages = await state_of(client, "suspended")
            booking = messages[-1]["parts"][-1]
            assert booking["approval"]["requestReason"] == "A table that is booked is paid for."
            booking |= {"state": "approval-responded", "approval": booking["approval"] | {"approved": True}}
            said = await record(chats, "", chat_id="tables", body={"messages": messages})
            messages = await state_of(client, "finished")
    assert "tool-output-available" in {chunk.kind for chunk in asked.chunks}
    assert said.chunks[-1] == Finish(finish_reason="stop")
    forellen = {"restaurant": "Forellen", "seats": 2, "city": "Bergen"}
    regn = {"restaurant": "Regn", "seats": 6, "city": "Bergen"}
    booked = ({"restaurant": "Forellen", "people": 2}, {"booked": "Forellen", "for": "2"})
    assert outline(messages[-1]) == [
        ("text", "I will look."),
        ("tool-find_tables", ({"city": "Bergen", "people": 2}, [forellen, regn])),
        ("tool-book_table", booked),
        ("text", "Forellen expects you."),
    ]


async def state_of(client: Client, state: str) -> list[Any]:
    """Return the messages of the chat about tables, whose turn is in this state."""
    chat = await client.state("tables")
    assert chat is not None
    assert chat["turn"]["state"] == state
    messages: list[Any] = chat["messages"]
    return messages


async def test_official_sdks_are_streamed_stopped_cut_and_refused(mock_url: str) -> None:
    with trio.fail_after(90):
        async with trio.open_nursery() as nursery:
            for check_sdk in (check_openai, check_anthropic, check_pydantic_ai, check_tools):
                nursery.start_soon(check_sdk, mock_url)


def _at(provider: Provider, variables: dict[str, str]) -> dict[str, str]:
    return {name: value.format(url=provider.url) for name, value in variables.items()}
