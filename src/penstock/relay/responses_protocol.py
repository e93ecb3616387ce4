"""How to ask an OpenAI Responses endpoint, and how to ask it again for an answer that broke off.

What the answer means is `responses.py`'s. It is stored (`"store": true`), so that it can be asked for by its id. OpenAI
stops generating when the connection that it streams to is closed, unless the request says `"background": true`; then it
goes on, and is paid for, also after a stop. That is for the app to choose, in `extra_body`.

Source: the API reference of OpenAI, "Responses"; its guide "Background mode".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import httpx2

from penstock.limits import WIRE, WireLimits
from penstock.relay.api_key import bearer
from penstock.relay.model_calls import call_ids
from penstock.relay.recovery import Missing, Recovered, RecoveryRequest
from penstock.relay.responses import NAME, RESPONSE_ID, ResponsesTranslator
from penstock.relay.responses_messages import responses_input, responses_tools
from penstock.relay.rest import Written, rest_of
from penstock.relay.tool_schema import ToolSchema, add_tools
from penstock.turns.turn import Turn
from penstock.wire.codec import encode_json
from penstock.wire.messages import UIMessage


class ResponsesProtocol:
    """How to ask a `/responses` endpoint."""

    name = NAME

    def __init__(
        self, model: str, extra_body: Mapping[str, Any] | None = None, *, limits: WireLimits = WIRE
    ) -> None:
        self._model = model
        self._extra_body = dict(extra_body or {})
        self._limits = limits

    def __repr__(self) -> str:
        return f"<ResponsesProtocol {self._model}>"

    def url(self, base_url: httpx2.URL) -> httpx2.URL:
        """Return the URL of `/responses` for an API's base, or for itself; of a host alone, `/v1/responses`."""
        path = base_url.path.rstrip("/")
        if not path.endswith("/responses"):
            path = (path or "/v1") + "/responses"
        return base_url.copy_with(path=path)

    def headers(self, turn: Turn, api_key: str) -> Mapping[str, str]:
        """Return the key as a bearer token."""
        return bearer(api_key)

    def body(self, turn: Turn) -> bytes:
        """Return the request about the turn's conversation."""
        return self.model_body(turn.messages)

    def model_body(self, messages: Sequence[UIMessage], tools: Sequence[ToolSchema] = ()) -> bytes:
        """Return the request: the whole conversation, and the answer stored, so that it can be recovered."""
        body = {
            "store": True,
            **self._extra_body,
            "model": self._model,
            "input": responses_input(messages),
            "stream": True,
        }
        return encode_json(add_tools(body, responses_tools(tools)))

    def translator(self, turn: Turn) -> ResponsesTranslator:
        """Return a translator whose tool calls have other ids than those that the turn has already."""
        return ResponsesTranslator(limits=self._limits, taken=call_ids(turn.message.parts))

    def recoverer(self, base_url: httpx2.URL, api_key: str) -> ResponsesRecoverer:
        """Return who asks for the rest of an answer that broke off."""
        return ResponsesRecoverer(self.url(base_url), bearer(api_key), limits=self._limits)


class ResponsesRecoverer:
    """Asks for a stored response by its id. `url` is the endpoint that the request was posted to."""

    def __init__(self, url: httpx2.URL, headers: Mapping[str, str], *, limits: WireLimits = WIRE) -> None:
        self._url = url
        self._headers = headers
        self._limits = limits

    def request(self, turn: Turn) -> RecoveryRequest | None:
        """Return the request for the response; None if its id isn't known, or the turn went on after it."""
        match turn.message.metadata:
            case {"upstream": {"protocol": "responses", "id": str(response_id)}} if RESPONSE_ID.fullmatch(
                response_id
            ):
                if Written.of(turn).has_outcomes:
                    return None  # of the next response only what it answers is known
                url = self._url.copy_with(path=f"{self._url.path}/{response_id}")
                return RecoveryRequest("GET", url, self._headers)
        return None

    def read(self, body: bytes, turn: Turn) -> Recovered:
        """Read a response, in whatever state it is."""
        text = body.decode("utf-8", "replace")
        written = Written.of(turn)
        translator = ResponsesTranslator(limits=self._limits, taken=written.earlier_calls)
        chunks = list(translator.feed_answer(text))
        if not translator.ended:
            return Missing.NOT_YET
        return rest_of(chunks, written)
