"""The built-in model: the same words, the same answer, and every part of the wire."""

from __future__ import annotations

import base64
import re
import struct
import time
import zlib
from collections import Counter

import msgspec
import pytest
import trio
import trio.testing
from hypothesis import example, given
from hypothesis import strategies as st

from penstock import TurnState, open_hub
from penstock.demo import model
from penstock.demo.model import COMMANDS, answer
from penstock.demo.partner import ECHO_CHARACTERS, reply
from penstock.testing import user_message
from penstock.turns.error_text import FAILED
from penstock.wire.assembly import assemble
from penstock.wire.chunks import AnyChunk, Error, ReasoningDelta, TextDelta
from penstock.wire.codec import encode
from penstock.wire.messages import UIMessage


async def ask(text: str) -> tuple[TurnState, list[AnyChunk]]:
    """Let the model answer one message."""
    chunks: list[AnyChunk] = []
    async with open_hub() as hub:
        turn = await hub.start_turn("chat", answer, [user_message(text)])
        with turn.follow() as subscription:
            try:
                while True:
                    chunks += [entry.chunk for entry in await subscription.next_batch(100)]
            except trio.EndOfChannel:
                return await turn.wait_ended(), chunks


async def told(text: str) -> UIMessage:
    """Let the model answer well, and return the message."""
    state, chunks = await ask(text)
    assert state is TurnState.finished
    return msgspec.convert(assemble(chunks, ""), UIMessage)


def kinds(chunks: list[AnyChunk]) -> Counter[str]:
    """Count the chunks of each kind."""
    return Counter(chunk.kind for chunk in chunks)


@pytest.mark.parametrize(
    "text",
    [
        "Hello!",
        "I feel {0} and {unknown}",
        "",
        "/nope",
        "/long x",
        "/pace x",
        "/silent x",
        "/long 50",
        *COMMANDS,
    ],
)
async def test_the_same_words_get_the_same_answer(text: str, autojump_clock: trio.testing.MockClock) -> None:
    """Byte for byte but for ids and times; and the hub's grammar found every chunk legal."""

    async def once() -> tuple[TurnState, bytes]:
        state, chunks = await ask(text)
        said = re.sub(rb"(msg|call|approval)_[0-9a-f]{24}", rb"\1_id", b"\n".join(map(encode, chunks)))
        return state, re.sub(rb"@[0-9]{19}", b"@time", said)

    first = await once()
    assert first == await once()
    outcomes = {"/error": TurnState.failed, "/approve": TurnState.suspended}
    assert first[0] is outcomes.get(text, TurnState.finished)
    assert b'"model":"penstock-demo"' in first[1]


async def test_talk_comes_word_by_word(autojump_clock: trio.testing.MockClock) -> None:
    """At the pace of a hosted model, and joined it is the partner's reply."""
    text = "I want to see the sea"
    began = trio.current_time()
    _, chunks = await ask(text)
    deltas = [chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)]
    assert "".join(deltas) == reply(text)
    assert len(deltas) == len(reply(text).split())
    assert trio.current_time() - began == pytest.approx(0.03 * len(deltas))


@pytest.mark.parametrize("text", ["/help", "/nope", "/ long", "/usr/bin is a folder"])
async def test_help_and_unknown_commands_list_all(text: str, autojump_clock: trio.testing.MockClock) -> None:
    """So that nobody has to read the source."""
    words = (await told(text)).text
    assert all(f"- `{command.usage}`: {command.what}" in words for command in COMMANDS.values())
    assert list(COMMANDS) == [
        "/help",
        "/long",
        "/slow",
        "/pace",
        "/reason",
        "/tool",
        "/sources",
        "/file",
        "/data",
        "/approve",
        "/error",
        "/silent",
        "/steps",
    ]


@pytest.mark.parametrize(
    ("text", "count"),
    [
        ("/long 3", 3),
        ("/LONG  3 ", 3),
        ("/long\n3", 3),
        ("/long", 1_000),
        ("/long 0", 1),
        ("/long -5", 1),
        ("/long " + "9" * 99, 2_500),
    ],
)
async def test_long_writes_as_many_pieces_as_it_is_told(
    text: str, count: int, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At full speed, within its bounds, and each can be told from the others."""
    assert model.LONG_DELTAS == (1, 1_000, 200_000)
    monkeypatch.setattr(model, "LONG_DELTAS", (1, 1_000, 2_500))
    began = trio.current_time()
    state, chunks = await ask(text)
    assert state is TurnState.finished
    assert trio.current_time() == began
    deltas = [chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)]
    assert len(deltas) == count
    assert "".join(deltas) == " ".join(str(number) for number in range(1, count + 1))


async def test_slow_keeps_its_pace(autojump_clock: trio.testing.MockClock) -> None:
    """A few hundred pieces, 50 a second."""
    began = trio.current_time()
    _, chunks = await ask("/slow")
    assert kinds(chunks)["text-delta"] == 300
    assert trio.current_time() - began == pytest.approx(299 / 50)


@pytest.mark.parametrize(
    ("text", "count", "rate"),
    [
        ("/pace 30 20", 30, 20),
        ("/pace 3  0.5", 3, 0.5),
        ("/pace 100", 100, 50),
        ("/pace", 500, 50),
        ("/pace 0 0", 1, 0.1),
        ("/pace " + "9" * 99 + " 1000000", 2_500, 10_000),
    ],
)
async def test_pace_tells_when_each_piece_was_due(
    text: str,
    count: int,
    rate: float,
    autojump_clock: trio.testing.MockClock,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Against one schedule, within its bounds, and each can be told from the others."""
    assert model.PACE_DELTAS == (1, 500, 200_000)
    monkeypatch.setattr(model, "PACE_DELTAS", (1, 500, 2_500))
    began, began_ns = trio.current_time(), time.time_ns()
    _, chunks = await ask(text)
    deltas = [chunk.delta for chunk in chunks if isinstance(chunk, TextDelta)]
    told_ns = [int(re.fullmatch(r"drop [0-9]{7} @([0-9]{19}) ", delta)[1]) for delta in deltas]  # type: ignore[index]
    assert [delta[5:12] for delta in deltas] == [f"{number:07}" for number in range(count)]
    assert [ns - told_ns[0] for ns in told_ns] == pytest.approx([k / rate * 1e9 for k in range(count)], abs=1)
    assert 0 <= told_ns[0] - began_ns < 10e9
    assert trio.current_time() - began == pytest.approx((count - 1) / rate)


async def test_pace_makes_up_for_what_was_late(autojump_clock: trio.testing.MockClock) -> None:
    """A producer that was held up says the old times, and is back on its schedule at once."""
    real = trio.sleep_until
    held_up = False

    async def late_once(deadline: float) -> None:
        nonlocal held_up
        await real(deadline if held_up else deadline + 0.5)
        held_up = True

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trio, "sleep_until", late_once)
        began = trio.current_time()
        await ask("/pace 100 100")
    assert trio.current_time() - began == pytest.approx(0.99)


@pytest.mark.parametrize(
    ("text", "silence_s"),
    [("/silent 20", 20), ("/silent 0.5", 0.5), ("/silent", 5), ("/silent -3", 0), ("/silent 1000000", 600)],
)
async def test_silent_is_silent(text: str, silence_s: float, autojump_clock: trio.testing.MockClock) -> None:
    """For as long as it was told, within its bounds; then it speaks."""
    began = trio.current_time()
    words = (await told(text)).text
    assert words == f"I was silent for {silence_s:g} seconds."
    assert trio.current_time() - began == pytest.approx(silence_s + 0.03 * len(words.split()))


@pytest.mark.parametrize(
    "text",
    [
        "/silent nan",
        "/silent inf",
        "/silent 1e9",
        "/silent x",
        "/long 1.5",
        "/long ٣",
        "/pace x",
        "/pace 1.5",
        "/pace 5 -1",
    ],
)
async def test_what_is_no_number_is_answered_in_words(
    text: str, autojump_clock: trio.testing.MockClock
) -> None:
    """And nothing else happens."""
    assert (await told(text)).text.startswith(f"`{text.split()[0]}` wants a ")


async def test_reason_thinks_before_it_speaks(autojump_clock: trio.testing.MockClock) -> None:
    """Reasoning, then text, in a step."""
    assert [part["type"] for part in (await told("/reason")).parts] == ["step-start", "reasoning", "text"]
    _, chunks = await ask("/reason")
    assert len([chunk for chunk in chunks if isinstance(chunk, ReasoningDelta)]) > 10


async def test_tool_shows_every_state_of_a_call(autojump_clock: trio.testing.MockClock) -> None:
    """Streamed input, a preliminary output, an output; and a call that fails. The turn does not."""
    _, chunks = await ask("/tool")
    count = kinds(chunks)
    assert count["tool-input-start"] == 1
    assert count["tool-input-delta"] == 4
    assert count["tool-input-available"] == 2
    assert count["tool-output-available"] == 2
    assert count["tool-output-error"] == 1
    parts = msgspec.convert(assemble(chunks, ""), UIMessage).parts
    level, rain = (part for part in parts if part["type"].startswith("tool-"))
    assert level["state"] == "output-available"
    assert level["input"] == {"reservoir": "Upper Lake", "unit": "m"}
    assert level["output"] == {"status": "done", "level": 41.7, "unit": "m"}
    assert rain["state"] == "output-error"
    assert parts[-1]["type"] == "text"


async def test_sources_names_both_kinds(autojump_clock: trio.testing.MockClock) -> None:
    """A web page and a document, each with an id of its own."""
    parts = (await told("/sources")).parts
    assert [part["type"] for part in parts] == ["source-url", "source-document", "text"]
    assert parts[0]["sourceId"] != parts[1]["sourceId"]


async def test_file_is_a_picture_that_opens(autojump_clock: trio.testing.MockClock) -> None:
    """A PNG whose checksums and pixels are right."""
    file = (await told("/file")).parts[0]
    assert (file["type"], file["mediaType"]) == ("file", "image/png")
    png = base64.b64decode(file["url"].removeprefix("data:image/png;base64,"), validate=True)
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    blocks, at = {}, 8
    while at < len(png):
        (size,) = struct.unpack(">I", png[at : at + 4])
        name, body = png[at + 4 : at + 8], png[at + 8 : at + 8 + size]
        assert struct.unpack(">I", png[at + 8 + size : at + 12 + size]) == (zlib.crc32(name + body),)
        blocks[name] = body
        at += 12 + size
    assert list(blocks) == [b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND"]
    assert blocks[b"IHDR"][:10] == struct.pack(">IIBB", 24, 24, 2, 3)
    assert len(zlib.decompress(blocks[b"IDAT"])) == 24 * (1 + 24 * 2 // 8)


async def test_data_is_kept_replaced_or_forgotten(autojump_clock: trio.testing.MockClock) -> None:
    """One part each for the kept and the replaced, none for the transient."""
    _, chunks = await ask("/data")
    count = kinds(chunks)
    assert (count["data-reading"], count["data-progress"], count["data-notice"]) == (1, 5, 5)
    parts = msgspec.convert(assemble(chunks, ""), UIMessage).parts
    assert [part["type"] for part in parts] == ["data-reading", "data-progress", "text"]
    assert parts[1]["data"] == {"percent": 100}


async def test_error_hides_its_detail(autojump_clock: trio.testing.MockClock) -> None:
    """Some text, then a sentence of ours: the exception's own is for the log."""
    state, chunks = await ask("/error")
    assert state is TurnState.failed
    assert kinds(chunks)["text-delta"] > 3
    assert chunks[-1] == Error(error_text=FAILED)
    assert not any(b"never on the wire" in encode(chunk) for chunk in chunks)


async def test_steps_are_two_with_a_tool_between(autojump_clock: trio.testing.MockClock) -> None:
    """And the message's metadata grows on the way."""
    message = await told("/steps")
    assert [part["type"] for part in message.parts] == [
        "step-start",
        "text",
        "tool-get_gate",
        "step-start",
        "text",
    ]
    assert message.metadata == {"model": "penstock-demo", "steps": {"first": "asked", "second": "told"}}


@pytest.mark.parametrize(
    ("text", "answers"),
    [
        ("Hello", "good to have you|all ears|Good to see you"),
        ("hi, I am Ada", "good to have you|all ears|Good to see you"),
        ("My name is Ada.", "Ada"),
        ("I feel lost in my garden", "lost in your garden"),
        ("I want to leave my job", "leave your job|keeps you from it"),
        ("I can't find my keys!", "find your keys"),
        ("I\N{RIGHT SINGLE QUOTATION MARK}m afraid", "afraid"),
        ("I hate rain, and you", "rain, and me"),
        ("are you real?", "real"),
        ("Why is the sky blue?", "Why do you think|your own guess"),
        ("why", "."),
        ("thank you", "welcome|pleasure"),
        ("tell me a joke", "stream|nursery|backpressure"),
        ("", "didn't catch"),
        (" \n ", "didn't catch"),
        ("mumble", "."),
    ],
)
def test_the_partner_turns_words_round(text: str, answers: str) -> None:
    """As ELIZA did."""
    assert re.search(answers, reply(text))


@given(st.one_of(st.text(), st.from_regex(r"(I|you|my name is|why|because|can you|i'm) [^\n]{0,300}\??")))
@example("my name is {0}")
@example("i feel {0.__class__} {")
@example("\ud800")
def test_any_text_gets_a_short_answer(text: str) -> None:
    """One that never fails and never grows with the question."""
    words = reply(text)
    assert words == reply(text)
    assert 0 < len(words) < 2 * ECHO_CHARACTERS + 200


@pytest.mark.parametrize(
    "text",
    ["a " * 500_000, "why " * 200_000, "i feel" * 100_000, "i am feeling so " * 50_000, " " * 1_000_000],
)
def test_no_text_takes_long(text: str) -> None:
    """A megabyte of anything, in a moment."""
    began = time.perf_counter()
    reply(text)
    assert time.perf_counter() - began < 0.2
