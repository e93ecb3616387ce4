"""What each scenario is made of: groups of connections, and when is measured.

| scenario | connections | measured |
|---|---|---|
| `tokens` | each asks for a paced turn of its own | once all are there |
| `fanout` | all watch one paced turn | once all are there, and the turn runs |
| `burst` | each takes some turns at full speed, one after the other | all of it |
| `churn` | each takes one short turn; they arrive by the clock | all of it |
| `idle` | each watches, and there is nothing to see | once all are there |
| `stalled` | as `fanout`, and a share stops reading when the measured time begins | as `fanout` |
| `flapping` | as `fanout`, and all drop out again and again, with a reset, and come back | as `fanout` |
| `half-open` | each asks for a long turn at full speed, and never reads nor closes | all of it |
| `resume` | each takes a paced turn, drops out in the middle, and comes back for the rest | all of it |
"""

from __future__ import annotations

import secrets

import msgspec

from penstock.bench.limits import BenchLimits
from penstock.bench.plan import Address, Call, Group, Plan, Transport, fill
from penstock.bench.recipe import Recipe, Scenario, send_frame, turn_body

TRANSPORTS: dict[Scenario, tuple[Transport, ...]] = {
    "tokens": ("post", "eventsource", "websocket"),
    "fanout": ("eventsource", "websocket"),
    "burst": ("post", "eventsource", "websocket"),
    "churn": ("post", "eventsource", "websocket"),
    "idle": ("eventsource", "post", "websocket"),
    "stalled": ("eventsource", "websocket"),
    "flapping": ("eventsource",),
    "half-open": ("post", "eventsource", "websocket"),
    "resume": ("post", "eventsource"),
}
"""The transports that a scenario makes sense with; the first is the one it takes."""

_WATCHING: tuple[Scenario, ...] = ("fanout", "idle", "stalled", "flapping")
_WATCH_FRAME = '{"type": "watch", "requestId": "{n}", "id": "{chat}", "types": "chunk"}'
_END_FRAME = '{"type":"end"'
"""How the last frame of a turn begins, on a WebSocket of the AI SDK."""
_WHY_NOT = {
    "fanout": "a POST starts a turn of its own, and the viewers are to watch one",
    "stalled": "a POST starts a turn of its own, and the viewers are to watch one",
    "flapping": "what comes back must say what it has seen, with Last-Event-ID",
    "resume": "what comes back must ask for the rest, with a GET",
}


def transport_of(recipe: Recipe) -> Transport:
    """Return the transport. Raises ValueError, with a sentence, if the scenario makes no sense with it."""
    possible = TRANSPORTS[recipe.scenario]
    if recipe.transport is None:
        return possible[0]
    if recipe.transport not in possible:
        raise ValueError(
            f"{recipe.scenario} makes no sense with {recipe.transport}: {_WHY_NOT[recipe.scenario]}"
        )
    return recipe.transport


class Compiler:
    """Makes a plan of a recipe.

    Args:
        recipe: what is asked for.
        address: of the server.
        path: the URL's path, without a slash at the end, and its query.
        limits: what is done at most.
    """

    def __init__(self, recipe: Recipe, address: Address, path: str, limits: BenchLimits) -> None:
        self._recipe = recipe
        self._address = address
        self._limits = limits
        self._transport = transport_of(recipe)
        self._names = {"url": path, "rate": f"{recipe.rate:g}"}
        self._begin_s = recipe.ramp_s + recipe.settle_s
        self._until_s = self._begin_s + recipe.duration_s

    def plan(self) -> Plan:
        """Return the plan."""
        recipe = self._recipe
        until_done = recipe.scenario in ("burst", "resume")
        measure_s = recipe.duration_s
        if recipe.scenario == "burst":
            measure_s = self._limits.burst_s
        elif recipe.scenario == "resume":
            measure_s = recipe.ramp_s + recipe.duration_s + recipe.away_s + self._limits.drain_s
        return Plan(
            address=self._address,
            groups=tuple(self._groups()),
            run=secrets.token_hex(4),
            measure_from_s=0.0 if until_done else self._begin_s,
            measure_s=measure_s,
            until_done=until_done,
            drain_s=self._limits.drain_s,
            stop_s=self._limits.stop_s,
            samples=self._limits.samples,
        )

    def _groups(self) -> list[Group]:
        recipe, whole = self._recipe, self._streams()
        change = msgspec.structs.replace
        match recipe.scenario:
            case "tokens":
                return [change(whole, turns=0, rate=recipe.rate, drains=True)]
            case "burst":
                return [change(whole, turns=recipe.repeats, drains=True, must_end=True)]
            case "churn":
                arrivals = int(recipe.rate * recipe.duration_s)
                return [
                    change(
                        whole,
                        connections=arrivals,
                        every_s=1 / recipe.rate,
                        max_in_flight=recipe.max_in_flight,
                        drains=True,
                        must_end=True,
                    )
                ]
            case "resume":
                return [
                    change(
                        whole,
                        rate=recipe.rate,
                        chunks=recipe.chunks or int(recipe.rate * recipe.duration_s),
                        conduct="drop",
                        back=self._call("GET", recipe.resume_path)
                        if self._transport == "post"
                        else whole.call,
                        drains=True,
                        must_end=True,
                    )
                ]
            case "half-open":
                return [change(whole, conduct="vanish")]
            case "idle":
                return [whole]
            case "fanout":
                return [change(whole, rate=recipe.rate), *self._producer()]
            case "flapping":
                return [change(whole, rate=recipe.rate, conduct="flap"), *self._producer()]
            case "stalled":
                deaf = round(recipe.connections * recipe.share)
                return [
                    change(whole, connections=recipe.connections - deaf, rate=recipe.rate),
                    change(whole, connections=deaf, conduct="stall", stall_at_s=self._begin_s),
                    *self._producer(),
                ]

    def _streams(self) -> Group:
        """What the measured connections of all scenarios have in common."""
        recipe = self._recipe
        watches = recipe.scenario in _WATCHING and self._transport != "post"
        posts = self._transport == "post"
        sends = self._transport == "websocket" and not recipe.message and not watches
        path = {"post": "{url}", "websocket": "{url}/ws", "eventsource": "{url}"}[self._transport]
        if self._transport == "eventsource" and watches:
            # Chunks only: the whole message at a turn's end has in it when everything was due.
            path = "{url}/{chat}/watch?types=chunk"
        body = recipe.body or (turn_body(recipe.prompt) if posts else "")
        message = ""
        if self._transport == "websocket":
            message = recipe.message or (_WATCH_FRAME if watches else send_frame(recipe.prompt))
        shared = recipe.scenario in ("fanout", "stalled", "flapping")
        return Group(
            call=self._call(recipe.method or ("POST" if posts else "GET"), recipe.path or path, body),
            transport=self._transport,
            connections=recipe.connections,
            every_s=recipe.ramp_s / recipe.connections,
            chat="bench-{run}" if shared else "bench-{run}-{n}-{turn}",
            chunks=recipe.chunks,
            until_s=self._until_s,
            stop=self._stop() if posts or sends else None,
            message=fill(message, self._names),
            end=recipe.end or (_END_FRAME if sends else ""),
            stay_s=recipe.stay_s,
            away_s=recipe.away_s,
        )

    def _producer(self) -> list[Group]:
        """The one who starts what all watch."""
        recipe = self._recipe
        if not recipe.producer:
            return []
        body = recipe.producer_body or turn_body(recipe.prompt)
        return [
            Group(
                call=self._call(
                    recipe.producer_method,
                    recipe.producer_path,
                    body if recipe.producer_method != "GET" else "",
                ),
                transport="post",
                # When the last viewers have been let in.
                first_at_s=recipe.ramp_s + recipe.settle_s / 2,
                chat="bench-{run}",
                rate=recipe.rate,
                until_s=self._until_s,
                stop=self._stop(),
                measured=False,
            )
        ]

    def _stop(self) -> Call | None:
        return self._call("POST", self._recipe.stop_path, "{}") if self._recipe.stop else None

    def _call(self, method: str, path: str, body: str = "") -> Call:
        target = fill(path, self._names)
        return Call(
            method=method,
            target=target if target.startswith("/") else f"/{target}",
            body=fill(body, self._names),
            headers=tuple(self._recipe.headers.items()),
        )
