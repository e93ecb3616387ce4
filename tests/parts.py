"""The real parts that some tests drive (npm packages, browsers, programs), what happens where one is missing, and ports."""

from __future__ import annotations

import os
import socket

import pytest


def require(part: str, how: str, found: bool) -> None:
    """Go on if `found`; else skip the test by the part's name, or fail it where `CI` is set: there all parts are due.

    Args:
        part: what is missing, as a person would name it.
        how: how to get it.
        found: whether it is there.
    """
    if not found:
        message = f"{part} is missing; {how}"
        if os.environ.get("CI"):
            pytest.fail(message, pytrace=False)
        pytest.skip(message)


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port
