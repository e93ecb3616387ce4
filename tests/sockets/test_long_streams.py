"""Streams that are long or quiet are not cut, on a real server and real sockets, by a clock that runs fast."""

from __future__ import annotations

import lanes
import pytest
import trio
import trio.testing

from penstock import Limits, Turn, chat_app
from penstock.limits import ConnectionLimits
from penstock.testing import open_server, record

lane = lanes.lane
pytestmark = pytest.mark.usefixtures("lane")


async def test_a_stream_that_is_quiet_for_two_minutes_is_kept_alive(
    mock_clock: trio.testing.MockClock,
) -> None:
    """Longer than every deadline of head, body, keep-alive and write on the way."""
    mock_clock.rate = 60

    async def answer(turn: Turn) -> None:
        await trio.sleep(122)
        async with turn.text() as text:
            await text.write("At last.")

    began = trio.current_time()
    limits = Limits(connection=ConnectionLimits(keepalive_s=15))
    async with open_server(chat_app(answer, limits=limits)) as url:
        recording = await record(f"{url}/api/chat", "x")
    assert trio.current_time() - began > 122
    assert recording.message["parts"][0]["text"] == "At last."
    # Every 15 s and a bit: each is late by sixty times what the machine is late.
    assert 5 <= recording.raw.count(b": keepalive\n\n") <= 9


async def test_a_stream_that_talks_for_two_minutes_is_not_cut(mock_clock: trio.testing.MockClock) -> None:
    mock_clock.rate = 60

    async def answer(turn: Turn) -> None:
        async with turn.text() as text:
            for number in range(122):
                await text.write(f"{number} ")
                await trio.sleep(1)

    async with open_server(chat_app(answer)) as url:
        recording = await record(f"{url}/api/chat", "x")
    assert recording.message["parts"][0]["text"].split() == [str(number) for number in range(122)]
