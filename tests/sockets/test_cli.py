"""What a person types wrong gets one sentence that says what to type instead."""

from __future__ import annotations

import socket
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from penstock.cli import main
from penstock.relay.protocols import PROTOCOL_NAMES

MODULE = """
from penstock import Turn

async def answer(turn: Turn) -> None: ...
def plain(turn: Turn) -> None: ...
"""


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["nowhere:answer"], "there is no module nowhere here"),
        (["chat_of_test:none"], "the module chat_of_test has no none"),
        (["chat_of_test:plain"], "must be `async def plain(turn)`"),
        (["chat_of_test"], "MODULE:FUNCTION"),
        (["chat_of_test:answer", "--upstream", "http://x", "--model", "m"], "not both"),
        (["--upstream", "http://x"], "the protocol openai needs a model"),
        (["--upstream", "http://x", "--protocol", "anthropic"], "the protocol anthropic needs a model"),
        (["--upstream", "http://x", "--protocol", "chat", "--model", "m"], "the protocol chat has no model"),
        (["--upstream", "http://x", "--model", "m", "--forward-header", "cookie"], "has no forward headers"),
        (
            ["--upstream", "http://x", "--protocol", "ui-stream", "--forward-header", "host"],
            "the header host can't",
        ),
        (["--upstream", "http://x", "--protocol", "soap"], "'soap' is not one of"),
        (["--protocol", "chat"], "go with --upstream"),
        (["--model", "m"], "go with --upstream"),
        (["--upstream", "nonsense", "--model", "m"], "begins with http:// or https://"),
        (["--journal", "chat.db"], "the journal must be memory:, sqlite:FILE, redis://HOST or nats://HOST"),
        (["--journal", "sqlite:/nowhere/x.db"], "No such file or directory"),
        (["--certfile", __file__], "--certfile and --keyfile go together"),
        (["--sdk-version", "8"], "'8' is not one of"),
        (["--port", "70000"], "70000 is not in the range"),
    ],
)
def test_serve_says_what_is_wrong(
    arguments: list[str], sentence: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chat_of_test.py").write_text(MODULE)
    result = CliRunner().invoke(main, ["serve", "--port", "0", *arguments])
    assert result.exit_code != 0
    assert sentence in result.output
    assert "Traceback" not in result.output


def test_serve_says_that_a_port_is_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        result = CliRunner().invoke(main, ["serve", "--port", str(port)])
    assert result.exit_code == 1
    assert f"can't listen on 127.0.0.1, port {port}: Address already in use" in result.output


def test_serve_knows_every_protocol() -> None:
    """The command line names them without importing them."""
    (option,) = [option for option in main.commands["serve"].params if option.name == "protocol"]
    assert isinstance(option.type, click.Choice)
    assert tuple(option.type.choices) == PROTOCOL_NAMES


@pytest.mark.parametrize(
    ("arguments", "on_conflict"),
    [
        ([], "refuse"),
        (["--on-conflict", "queue"], "queue"),
        (["--upstream", "http://x", "--model", "m"], "refuse"),
        (["--upstream", "http://x", "--protocol", "ui-stream"], "stop"),
        (["--upstream", "http://x", "--protocol", "ui-stream", "--on-conflict", "refuse"], "refuse"),
    ],
)
def test_a_message_on_top_of_another(
    arguments: list[str], on_conflict: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page of an AI SDK route does not tell the server that its user pressed stop."""
    found: dict[str, object] = {}
    monkeypatch.setattr("penstock.cli.serve.run_server", lambda *args, **options: found.update(options))
    assert CliRunner().invoke(main, ["serve", *arguments]).exit_code == 0
    assert found["on_conflict"] == on_conflict
