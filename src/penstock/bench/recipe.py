"""What a load test is asked for: a scenario, its numbers, and what is sent. From a TOML file, options, or neither.

Everything that is sent is data. Texts may have `{names}`: `{url}` the path of the URL, `{chat}` a chat of the
connection's own (or, in `fanout` and its kin, of all), `{n}` the connection's number, `{turn}` the number of its turn,
`{run}` a random name for this run, `{count}` how many events the turn should have, `{rate}` how many a second.
"""

from __future__ import annotations

import json
import math
import tomllib
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import msgspec

from penstock.bench.limits import BENCH, BenchLimits
from penstock.bench.plan import Transport

Scenario: TypeAlias = Literal[
    "tokens", "fanout", "burst", "churn", "idle", "stalled", "flapping", "half-open", "resume"
]
SCENARIOS: tuple[Scenario, ...] = get_args(Scenario)


class Recipe(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One load test. A field that a scenario has no use for is ignored by it."""

    scenario: Scenario = "tokens"
    transport: Transport | None = None
    """None: the scenario's own."""
    connections: int = 100
    rate: float = 50.0
    """Events a second: of each turn, in `tokens` and `resume`; of the one turn, in `fanout` and its kin. In `churn`:
    new connections a second."""
    duration_s: float = 10.0
    """The measured time."""
    ramp_s: float = 2.0
    """From the first connection's arrival to the last one's."""
    settle_s: float = 1.0
    """From then to the beginning of the measured time."""
    chunks: int = 0
    """Events of one turn, where the time does not say how many."""
    repeats: int = 3
    """Turns that one connection of `burst` takes one after the other."""
    share: float = 0.1
    """Of the connections of `stalled`, how many stop reading."""
    stay_s: float = 1.0
    """From a stream's beginning until its client leaves; of `flapping`, on average."""
    away_s: float = 0.3
    """From then until it comes back."""
    max_in_flight: int = 1_000
    """Connections of `churn` that are open at once. Arrivals over it are not started, and counted as errors."""
    workers: int = 0
    """Load processes. 0: as many as there are cores, less one for the server."""
    prompt: str = ""
    """The text of the user's message in an AI SDK request; the built-in demo takes it for a command."""
    method: str = ""
    path: str = ""
    """Where the stream is, as `{url}/{chat}/watch`."""
    body: str = ""
    """What is sent to ask for it, instead of an AI SDK request."""
    message: str = ""
    """The first message on a WebSocket."""
    headers: dict[str, str] = {}
    end: str = ""
    """How the data of the event begins that ends a stream. Empty: `[DONE]`, or the proper end of the response."""
    producer: bool = True
    """Whether to start the one turn that `fanout` and its kin watch. Without: the server has something to watch."""
    producer_method: str = "POST"
    producer_path: str = "{url}"
    producer_body: str = ""
    """What starts it, instead of an AI SDK request."""
    resume_path: str = "{url}/{chat}/stream"
    stop: bool = True
    """Whether to ask the server, at the end, to stop turns that are still running."""
    stop_path: str = "{url}/{chat}/stop"
    expect: list[str] = []
    """What must hold, as `p99<100ms`."""


_SCENARIO_DEFAULTS: dict[Scenario, dict[str, Any]] = {
    "tokens": {"prompt": "/pace {count} {rate}"},
    "fanout": {"connections": 200, "rate": 20.0, "prompt": "/pace {count} {rate}"},
    "burst": {"connections": 1, "chunks": 20_000, "ramp_s": 0.0, "settle_s": 0.0, "prompt": "/long {count}"},
    "churn": {
        "chunks": 10,
        "max_in_flight": 1_000,
        "ramp_s": 0.0,
        "settle_s": 0.0,
        "prompt": "/long {count}",
    },
    # Servers send a keepalive every 15 s; one shall be seen.
    "idle": {"connections": 500, "duration_s": 20.0, "prompt": "/silent 600"},
    # 200 events a second fill what the kernel buffers for one that does not read, in a few seconds; a server should
    # give it up within 30.
    "stalled": {"connections": 50, "rate": 200.0, "duration_s": 40.0, "prompt": "/pace {count} {rate}"},
    "flapping": {"rate": 20.0, "prompt": "/pace {count} {rate}"},
    "half-open": {
        "connections": 50,
        "chunks": 20_000,
        "duration_s": 40.0,
        "ramp_s": 1.0,
        "settle_s": 0.0,
        "prompt": "/long {count}",
    },
    "resume": {
        "connections": 50,
        "duration_s": 4.0,
        "ramp_s": 1.0,
        "settle_s": 0.0,
        "stay_s": 2.0,
        "prompt": "/pace {count} {rate}",
    },
}


def read_recipe(file: Path) -> dict[str, Any]:
    """Read a recipe's file. Raises ValueError, with a sentence, if it is none."""
    try:
        return tomllib.loads(file.read_text())
    except OSError as error:
        raise ValueError(f"{file} can't be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is no TOML: {error}") from error


def make_recipe(recipe: dict[str, Any], options: dict[str, Any], limits: BenchLimits = BENCH) -> Recipe:
    """Put a recipe together: what was typed wins over the file, the file over the scenario, the scenario over the rest.

    Raises:
        ValueError: with a sentence that says what does not fit.
    """
    scenario = options.get("scenario") or recipe.get("scenario", "tokens")
    if scenario not in SCENARIOS:
        raise ValueError(f"there is no scenario {scenario}; there are {', '.join(SCENARIOS)}")
    try:
        made = msgspec.convert({**_SCENARIO_DEFAULTS[scenario], **recipe, **options}, Recipe)
    except msgspec.ValidationError as error:
        raise ValueError(f"the recipe does not fit: {error}") from error
    _check(made, limits)
    return made


def _check(recipe: Recipe, limits: BenchLimits) -> None:
    bounds: list[tuple[str, float, float, float]] = [
        ("connections", recipe.connections, 1, limits.connections),
        ("rate", recipe.rate, 0.001, limits.rate),
        ("duration_s", recipe.duration_s, 0.1, limits.duration_s),
        ("ramp_s", recipe.ramp_s, 0, limits.duration_s),
        ("settle_s", recipe.settle_s, 0, limits.duration_s),
        ("chunks", recipe.chunks, 0, math.inf),
        ("repeats", recipe.repeats, 1, 1_000),
        ("share", recipe.share, 0, 1),
        ("stay_s", recipe.stay_s, 0.01, limits.duration_s),
        ("away_s", recipe.away_s, 0, limits.duration_s),
        ("max_in_flight", recipe.max_in_flight, 1, limits.connections),
        ("workers", recipe.workers, 0, limits.workers),
    ]
    for name, value, least, most in bounds:
        if not least <= value <= most:
            raise ValueError(f"{name} must be {least:g} to {most:g}, not {value:g}")
    if recipe.scenario == "churn" and recipe.rate * recipe.duration_s > limits.arrivals:
        raise ValueError(
            f"a churn of more than {limits.arrivals:,} connections is too long: less rate, or duration_s"
        )
    for name, text in recipe.headers.items():
        if not name or any(ord(char) < 32 or ord(char) > 255 or char == "\x7f" for char in name + text):
            raise ValueError(f"the header {name!r} can't be sent")
    for name, text in [
        ("method", recipe.method),
        ("path", recipe.path),
        ("producer_method", recipe.producer_method),
        ("producer_path", recipe.producer_path),
        ("resume_path", recipe.resume_path),
        ("stop_path", recipe.stop_path),
    ]:
        if any(not "!" <= char <= "~" for char in text):
            raise ValueError(f"{name} has a character that no request line can have")


def turn_body(prompt: str) -> str:
    """Return the template of an AI SDK request with this text."""
    message = {"id": "user-{n}-{turn}", "role": "user", "parts": [{"type": "text", "text": prompt}]}
    return json.dumps({"id": "{chat}", "messages": [message], "trigger": "submit-message"})


def send_frame(prompt: str) -> str:
    """Return the template of the frame that asks for a turn on the AI SDK's WebSocket."""
    return '{"type": "send", "requestId": "{n}-{turn}", ' + turn_body(prompt).removeprefix("{")
