"""penstock as a relay of a model, beside what people would put there instead: 50 and 200 turns at 50 tokens a second.

    python benchmarks/relay.py [--rounds 5] [--output FILE]

Each relay is one process on one core; its model (`peers/relay/upstream.mjs`, OpenAI's protocol) and the load are on the
other. A token says in its own text when the model was to say it, so lateness is the model's, the relay's and the load's
together: what the model and the load alone have is measured as well. Needs `requirements/peers.txt`, node, and
`npm ci` in `peers/relay`. Every run is kept in the output.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path

from harness.load import Figures, LoadError, bench, errors_of, figures, wait_quiet
from harness.rounds import run_rounds
from harness.servers import PEERS, Kind, Server
from harness.session import Session

TURNS = (50, 200)
"""At once. The second is more than most relays bear."""
RATE = 50
RAMP_S, SETTLE_S, DURATION_S = 1.5, 0.5, 2.0
MINUTES = 11.0
"""What is not done by then is left out; 60 runs take 7.6."""
RELAYS = PEERS / "relay"
PROVIDER = str(RELAYS / "node_modules" / "@ai-sdk" / "openai-compatible")


def _model(port: int, other: int) -> list[str]:
    return ["node", str(RELAYS / "upstream.mjs"), str(other)]


def _penstock(journal: str) -> Callable[[Path, int, int], list[str]]:
    def command(folder: Path, port: int, other: int) -> list[str]:
        program = str(Path(sys.executable).with_name("penstock"))
        where = journal.replace("FILE", str(folder / "chat.db"))
        model = ("--upstream", f"http://127.0.0.1:{other}/v1", "--model", "paced")
        return [program, "serve", "--port", str(port), "--journal", where, "--log-level", "error", *model]

    return command


def _python(file: str) -> Callable[[Path, int, int], list[str]]:
    return lambda folder, port, other: [sys.executable, str(RELAYS / file), str(port), str(other)]


KINDS = (
    Kind("penstock", "penstock, `memory:`", _penstock("memory:"), companion=_model, ours=True),
    Kind("penstock-sqlite", "penstock, `sqlite:`", _penstock("sqlite:FILE"), companion=_model, ours=True),
    Kind(
        "fastapi",
        "FastAPI `EventSourceResponse`, httpx",
        _python("fastapi_relay.py"),
        "no journal, grammar, resume, ids, limits, proof of life; a client that leaves ends the answer",
        companion=_model,
    ),
    Kind(
        "sse-starlette",
        "sse-starlette, httpx",
        _python("sse_starlette_relay.py"),
        "no journal, grammar, resume, ids, limits, proof of life; a client that leaves ends the answer",
        companion=_model,
    ),
    Kind(
        "node",
        "AI SDK route, Node",
        lambda folder, port, other: ["node", str(RELAYS / "node_route.mjs"), str(port), str(other)],
        "no journal, resume, ids, keepalive; a client that leaves ends the answer",
        needs=("node", PROVIDER),
        companion=_model,
    ),
    Kind(
        "model",
        "the model and the load alone",
        lambda folder, port, other: ["node", str(RELAYS / "upstream.mjs"), str(port)],
        needs=("node",),
    ),
)


def relay(server: Server, turns: int) -> Figures:
    """Make one run. A relay that does not keep up is late, or has turns without an answer: that fails the run."""
    wait_quiet(server)
    result = bench(
        server,
        "tokens",
        RAMP_S + SETTLE_S + DURATION_S,
        connections=turns,
        rate=RATE,
        ramp=RAMP_S,
        settle=SETTLE_S,
        duration=DURATION_S,
    )
    found = figures(result)
    if result.errors or result.opened < turns:
        raise LoadError(f"{result.opened} of {turns} turns began, {errors_of(result) or 'no errors'}")
    assert result.server is not None
    found["kb"] = round((result.server.rss_after_kb - result.server.rss_before_kb) / turns, 1)
    found["delivered"] = round(found["events"] / (turns * RATE * found["duration_s"]), 4)
    return found


def take(session: Session, number: int) -> None:
    """Make one round."""
    for turns in TURNS:
        for server in session.servers():
            make = partial(relay, server, turns)
            session.run("relay", server, make, turns=turns, rate=RATE, round=number)


if __name__ == "__main__":
    sys.exit(run_rounds("penstock as a relay, beside its peers", KINDS, MINUTES, take))
