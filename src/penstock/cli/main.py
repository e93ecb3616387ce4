"""What a person types: `penstock serve`, `send`, `watch`, `bench`. Each command is a thin face of a function elsewhere."""

from __future__ import annotations

import os
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, Literal, NoReturn

import click
import trio

from penstock.cli.serve_command import serve

_TRANSPORT = click.option(
    "--transport",
    type=click.Choice(["sse", "websocket"]),
    help="A WebSocket, if the URL begins with ws:, and else SSE.",
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="penstock", message="%(prog)s %(version)s")
def main() -> None:
    """A streaming server for AI chat that gets the streaming part right."""


main.add_command(serve)


@main.command()
@click.argument("url")
@click.argument("text", required=False)
@click.option("--chat", "chat_id", metavar="ID", help="The chat; a new one where it is left out.")
@click.option("--resume", is_flag=True, help="Send nothing; print the chat's newest answer.")
@click.option("--raw", is_flag=True, help="Print each chunk's JSON, one a line.")
@_TRANSPORT
def send(
    url: str,
    text: str | None,
    chat_id: str | None,
    resume: bool,
    raw: bool,
    transport: Literal["sse", "websocket"] | None,
) -> None:
    """Send TEXT to the chat at URL and print the answer as it comes."""
    from penstock.cli.send import resume as resume_answer
    from penstock.cli.send import send as send_message

    if resume:
        if chat_id is None or text is not None:
            raise click.UsageError("--resume goes with --chat, and without TEXT.")
        _exit_with(lambda: resume_answer(url, chat_id, raw=raw, transport=transport))
    if text is None:
        raise click.UsageError("Give TEXT, or --resume and --chat.")
    _exit_with(lambda: send_message(url, text, chat_id=chat_id, raw=raw, transport=transport))


@main.command()
@click.argument("url")
@click.argument("chat_id", metavar="CHAT")
@click.option("--types", metavar="A,B", help="Only these kinds of chunks and events.")
@click.option("--lane", metavar="NAME", help="All of this lane.")
@click.option("--raw", is_flag=True, help="Print each event as JSON, one a line.")
@_TRANSPORT
def watch(
    url: str,
    chat_id: str,
    types: str | None,
    lane: str | None,
    raw: bool,
    transport: Literal["sse", "websocket"] | None,
) -> None:
    """Print what happens in CHAT at URL, as it happens, until Ctrl-C."""
    from penstock.cli.watch import watch as watch_chat

    kinds = None if types is None else types.split(",")
    _exit_with(lambda: watch_chat(url, chat_id, types=kinds, lane=lane, raw=raw, transport=transport))


@main.command()
@click.argument("url")
@click.option(
    "--recipe", type=click.Path(path_type=Path), help="A TOML file with the scenario and its numbers."
)
@click.option(
    "--scenario",
    type=click.Choice(
        ["tokens", "fanout", "burst", "churn", "idle", "stalled", "flapping", "half-open", "resume"]
    ),
    help="tokens, if neither this nor a recipe says it.",
)
@click.option(
    "--transport",
    type=click.Choice(["post", "eventsource", "websocket"]),
    help="POST as the AI SDK does, GET as EventSource does, or a WebSocket. The scenario has its own.",
)
@click.option("--connections", type=int, help="How many.")
@click.option("--rate", type=float, help="Events a second of each turn; in churn, new connections a second.")
@click.option("--duration", "duration_s", type=float, help="Seconds that are measured.")
@click.option("--ramp", "ramp_s", type=float, help="Seconds from the first arrival to the last.")
@click.option("--settle", "settle_s", type=float, help="Seconds from then to the measured time.")
@click.option("--chunks", type=int, help="Events of a turn, in burst, churn, half-open, resume.")
@click.option("--repeats", type=int, help="Turns of each connection, in burst.")
@click.option("--share", type=float, help="Of the connections, those that stop reading, in stalled.")
@click.option("--stay", "stay_s", type=float, help="Seconds until a client leaves, in flapping and resume.")
@click.option("--away", "away_s", type=float, help="Seconds until it comes back.")
@click.option("--max-in-flight", type=int, help="Connections at once, in churn.")
@click.option("--workers", type=int, help="Load processes; else one for each core, less one.")
@click.option("--prompt", help="The user's text; /pace {count} {rate} or the like, if you leave it out.")
@click.option("--method", help="Of the request for a stream.")
@click.option(
    "--path", help="Of the request for a stream, such as {url}/{chat}/watch; {url} is the URL's path."
)
@click.option("--body", help="Of the request for a stream, instead of an AI SDK request.")
@click.option("--message", help="The first message on a WebSocket.")
@click.option(
    "--header", "headers", multiple=True, metavar="NAME:VALUE", help="With each request. Repeatable."
)
@click.option("--end", help="How the event begins that ends a stream; else [DONE] or the response's end.")
@click.option("--producer/--no-producer", default=None, help="Whether to start the turn that viewers watch.")
@click.option("--producer-path", help="Where to start it; the URL, if you leave it out.")
@click.option("--resume-path", help="Where the rest of a stream is: {url}/{chat}/stream.")
@click.option("--stop/--no-stop", default=None, help="Whether to stop, at the end, what still runs.")
@click.option("--pid", type=int, help="The server's process: its CPU and memory are measured, too.")
@click.option("--expect", multiple=True, metavar="EXPR", help="Such as p99<100ms or errors=0. Repeatable.")
@click.option("--json", "json_file", metavar="FILE", help="Where to put the result as JSON; - for stdout.")
@click.option(
    "--report", type=click.Path(path_type=Path, dir_okay=False), help="Where to put a page with plots."
)
def bench(
    url: str,
    recipe: Path | None,
    pid: int | None,
    json_file: str | None,
    report: Path | None,
    **options: Any,
) -> None:
    """Load the server at URL, ours or any other that streams, and say how it bore it.

    Exits with 1 if an --expect does not hold, with 3 if nothing could be measured. Ctrl-C ends the run early.
    """
    try:
        from penstock.cli.bench import bench as run_bench
    except ModuleNotFoundError as exc:
        if exc.name is None or exc.name.partition(".")[0] not in ("hdrh", "rich"):
            raise
        raise click.ClickException("This needs two more packages: pip install 'penstock[bench]'") from exc

    try:
        status = run_bench(url, options, recipe=recipe, pid=pid, json_file=json_file, report=report)
    except ValueError as exc:
        raise click.UsageError(f"{exc}.") from exc
    except KeyboardInterrupt:
        status = 130
    sys.exit(status)


def _exit_with(command: Callable[[], Awaitable[int]]) -> NoReturn:
    """Run a command that talks to a server and exit with its status."""
    try:
        status = trio.run(command)
    except KeyboardInterrupt:
        status = 130
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader left; keep the interpreter from flushing once more at its end.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    sys.exit(status)
