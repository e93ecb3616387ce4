"""The key to a model upstream: from the caller or the environment, and only to whom it belongs."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

import httpx2

LOGGED = 3_000
"""Characters of an error that quotes an upstream."""
_OWNERS = {"api.openai.com": "OPENAI_API_KEY", "api.anthropic.com": "ANTHROPIC_API_KEY"}


def environment_api_key(url: httpx2.URL, environment: Mapping[str, str] = os.environ) -> str:
    """Return the key that the environment has for this upstream, or an empty string.

    `PENSTOCK_UPSTREAM_API_KEY` goes to any; `OPENAI_API_KEY` and `ANTHROPIC_API_KEY` only to OpenAI and Anthropic
    themselves, because they are set on many machines for other programs and a local server has no business seeing them.
    """
    key = environment.get("PENSTOCK_UPSTREAM_API_KEY", "").strip()
    if not key and url.scheme == "https":
        key = environment.get(_OWNERS.get(url.host, ""), "").strip()
    return key


def redacted(text: str, api_key: str) -> str:
    """Return a text without the key, for upstreams quote the one that they don't know, and no longer than is logged."""
    return (text.replace(api_key, "[key]") if api_key else text)[:LOGGED]


def bearer(api_key: str) -> dict[str, str]:
    """Return the header that sends a key as a bearer token; none for an empty key."""
    return {"authorization": f"Bearer {api_key}"} if api_key else {}


def checked_api_key(url: httpx2.URL, api_key: str | None) -> str:
    """Return the key to use: the caller's, or the environment's where the caller gave None.

    Raises ValueError, which does not show it, if it holds what no header can.
    """
    if api_key is None:
        api_key = environment_api_key(url)
    if api_key and not re.fullmatch(r"[!-~]+", api_key):
        raise ValueError("the upstream's API key holds a character that no key has")
    return api_key
