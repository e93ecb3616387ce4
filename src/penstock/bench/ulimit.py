"""The limit of open descriptors, which a load of many connections meets first."""

from __future__ import annotations

import resource


def raise_descriptor_limit() -> int:
    """Raise this process's limit to the hard one, and return it."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    return hard
