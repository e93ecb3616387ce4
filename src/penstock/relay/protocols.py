"""The protocols that upstreams speak, by the names that `--protocol` has for them. Each is imported when it is used."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from penstock.limits import WIRE, WireLimits
from penstock.relay.protocol import Protocol


class _Home(NamedTuple):
    module: str
    name: str
    options: frozenset[str]
    """Which of `make_protocol`'s it takes. One that takes a model needs one."""


_MODEL = frozenset(("model", "extra_body"))
_HOMES = {
    "openai": _Home("penstock.relay.openai", "OpenAIProtocol", _MODEL),
    "responses": _Home("penstock.relay.responses_protocol", "ResponsesProtocol", _MODEL),
    "anthropic": _Home("penstock.relay.anthropic", "AnthropicProtocol", _MODEL),
    "ui-stream": _Home("penstock.relay.ui_stream", "UiStreamProtocol", frozenset(("forward_headers",))),
    "chat": _Home("penstock.relay.chat", "ChatProtocol", frozenset(("extra_body",))),
}

PROTOCOL_NAMES = tuple(_HOMES)


def make_protocol(
    name: str,
    model: str | None = None,
    extra_body: Mapping[str, Any] | None = None,
    *,
    forward_headers: Sequence[str] = (),
    limits: WireLimits = WIRE,
) -> Protocol:
    """Make the protocol of that name.

    Args:
        name: one of `PROTOCOL_NAMES`.
        model: the model's name at the upstream, for protocols that have one.
        extra_body: more of the request: `temperature`, `max_tokens`, `tools`, …
        forward_headers: the client's headers that go along, for protocols that pass its request on.
        limits: how large and deep the JSON of an event may be.

    Raises:
        ValueError: if there is no such protocol, it lacks a model, or it has no use for what was given.
    """
    home = _HOMES.get(name)
    if home is None:
        raise ValueError(f"there is no protocol {name}: it is one of {', '.join(PROTOCOL_NAMES)}")
    if "model" in home.options and not model:
        raise ValueError(f"the protocol {name} needs a model")
    all_options = {"model": model, "extra_body": extra_body, "forward_headers": forward_headers}
    options = {option: value for option, value in all_options.items() if value}
    if needless := options.keys() - home.options:
        raise ValueError(f"the protocol {name} has no {min(needless).replace('_', ' ')}")
    make: Any = getattr(importlib.import_module(home.module), home.name)
    protocol: Protocol = make(**options, limits=limits)
    return protocol
