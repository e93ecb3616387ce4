"""What a client may do to a chat from outside its stream, whichever transport it asks over: stop it, decide in it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from penstock.limits import WireLimits
from penstock.turns.approvals import Decision, Verdict
from penstock.turns.hub import Hub
from penstock.web.auth import NO_CHAT
from penstock.web.request import HttpError


async def stop(
    hub: Hub, chat_id: str, who: str, body: Mapping[str, Any], limits: WireLimits
) -> dict[str, str]:
    """Stop a chat's turn for somebody, and return the state that it came to.

    Raises:
        HttpError: 404, if there is no such chat.
        StoreUnavailableError: if the end could not be stored.
    """
    why = body.get("reason")
    why = why[: limits.reason_chars] if isinstance(why, str) else ""
    state = await hub.stop(chat_id, f"{who}: {why}" if why else who)
    if state is None:
        raise HttpError(404, NO_CHAT)
    return {"state": state.value}


async def approve(
    hub: Hub, chat_id: str, approval_id: str, who: str, body: Mapping[str, Any], limits: WireLimits
) -> dict[str, str]:
    """Decide for somebody whether a tool call may run, and return the decision.

    Raises:
        HttpError: 400 for what is no decision, 404 where none is asked for, 409 where another was made before.
    """
    approved, why = body.get("approved"), body.get("reason", "")
    if not isinstance(approved, bool) or not isinstance(why, str):
        raise HttpError(400, 'Say {"approved": true} or {"approved": false}, with a "reason" if you like.')
    said = Verdict(Decision.approved if approved else Decision.denied, why[: limits.reason_chars], who)
    verdict = await hub.decide(chat_id, approval_id, said)
    if verdict is None:
        raise HttpError(404, "There is no such approval.")
    if verdict.decision is not said.decision:
        raise HttpError(409, f"This was decided before: {verdict.decision.value}.")
    return {"decision": verdict.decision.value}
