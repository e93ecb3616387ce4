"""`penstock serve --metrics` and `--keep-…`: what one process says of itself, and what it forgets."""

from __future__ import annotations

import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from typing import Any, NamedTuple

import httpx2
import msgspec
import pytest
from click.testing import CliRunner
from prometheus_client.parser import text_string_to_metric_families

from penstock.cli import main
from penstock.metrics import MEASURES
from penstock.testing import user_message


class Served(NamedTuple):
    """Where a server is."""

    url: str
    metrics_url: str
    client: httpx2.Client

    def say(self, chat_id: str, message_id: str) -> str:
        """Have a message answered; return the turn's id."""
        message = {**msgspec.to_builtins(user_message("Hello")), "id": message_id}
        body = {"id": chat_id, "messages": [message], "trigger": "submit-message"}
        response = self.client.post(f"{self.url}/api/chat", json=body)
        assert response.status_code == 200
        found = re.search(r'"messageId":"([^"]+)"', response.text)
        assert found is not None
        return found[1]

    def numbers(self) -> dict[tuple[str, ...], float]:
        """Scrape: values by name and labels' values."""
        response = self.client.get(self.metrics_url)
        assert response.headers["content-type"] == "text/plain; version=0.0.4; charset=utf-8"
        return {
            (sample.name.removeprefix("penstock_"), *sample.labels.values()): sample.value
            for family in text_string_to_metric_families(response.text)
            for sample in family.samples
        }


@pytest.fixture
def served() -> Iterator[Served]:
    """A server that keeps two turns of a chat, and says what it counts."""
    command = [sys.executable, "-m", "penstock", "serve", "--port", "0", "--journal", "memory:"]
    command += ["--metrics", "0", "--keep-turns", "2"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        assert process.stderr is not None
        metrics = re.fullmatch(
            r"metrics are at (http://127\.0\.0\.1:\d+/metrics)\n", process.stderr.readline()
        )
        found = re.search(r"listening on (http://127\.0\.0\.1:\d+) ", process.stderr.readline())
        assert metrics is not None
        assert found is not None
        with httpx2.Client(timeout=20, trust_env=False) as client:
            yield Served(found[1], metrics[1], client)
    finally:
        process.kill()
        process.communicate()


def test_what_is_counted_can_be_scraped_and_what_is_old_is_forgotten(served: Served) -> None:
    before = served.numbers()
    assert (
        before["turns_ended_total", "finished"]
        == before["turns_running",]
        == before["server_connections",]
        == 0
    )
    assert not {name for name, *_ in before if name.startswith("worker")}
    turns = [served.say("c", f"u{number}") for number in range(3)]
    found = [served.client.get(f"{served.url}/api/chat/c/turns/{turn}").status_code for turn in turns]
    assert found == [404, 200, 200]
    after = served.numbers()
    assert after["turns_ended_total", "finished"] == 3
    assert after["connections_closed_total", "finished"] == 3
    assert after["server_requests_total", "http"] == 6  # of scrapes it does not speak
    assert after["server_connections",] == 1
    assert after["turns_running",] == 0
    assert len(after) < 2 * len(MEASURES)

    for url, status in ((served.url + "/metrics", 404), (served.metrics_url + "/more", 404)):
        assert served.client.get(url).status_code == status


def test_where_the_numbers_can_not_be_is_said() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        for address, complaint in (
            (port, f"can't listen on 127.0.0.1, port {port}: Address already in use"),
            ("here", "'here' is no [HOST:]PORT."),
            ("1.2.3.4:70000", "is no [HOST:]PORT."),
        ):
            options = ["--journal", "memory:", "--port", "0", "--metrics", address]
            done = CliRunner().invoke(main, ["serve", *options])
            assert done.exit_code in (1, 2)
            assert complaint in done.output


@pytest.mark.parametrize(
    ("journal", "arguments", "retention"),
    [
        ("sqlite:x.db", [], (86_400, 20, 1 << 30, 2_592_000)),
        ("memory:", [], (86_400, 20, 256 << 20, 2_592_000)),
        ("memory:", ["--keep-turn-s", "60", "--keep-turns", "3"], (60, 3, 256 << 20, 2_592_000)),
        ("redis://x", ["--keep-mib", "2", "--keep-chat-s", "90"], (86_400, 20, 2 << 20, 90)),
    ],
)
def test_what_is_kept_is_an_option(
    journal: str, arguments: list[str], retention: tuple[float, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    found: dict[str, Any] = {}
    monkeypatch.setattr("penstock.cli.serve.run_server", lambda *args, **options: found.update(options))
    assert CliRunner().invoke(main, ["serve", "--journal", journal, *arguments]).exit_code == 0
    kept = found["retention"]
    assert (kept.turn_age_s, kept.turns_per_chat, kept.bytes, kept.chat_age_s) == retention
