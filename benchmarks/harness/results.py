"""Files of results: what each run found, on what machine, with which versions; those that are in git."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from harness.machine import versions
from harness.servers import Kind
from harness.session import Session

RESULTS = Path(__file__).parent.parent / "results"
"""Where those are that docs/performance.md is made from."""


def read_results(name: str) -> dict[str, Any]:
    """Return the file of this name that is in git."""
    data: dict[str, Any] = json.loads((RESULTS / name).read_text())
    return data


def write_results(file: Path, data: dict[str, Any]) -> None:
    """Write a file, with a line for each of its runs."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join(f"  {json.dumps(run)}" for run in data["runs"])
    head = json.dumps({**data, "runs": None}, indent=1)
    file.write_text(head.replace('"runs": null', f'"runs": [\n{lines}\n ]') + "\n")


def session_results(
    session: Session, kinds: Sequence[Kind], *, started_at: str, machine: dict[str, str | int], mode: str = ""
) -> dict[str, Any]:
    """Return what a session found, for its file.

    Args:
        session: it has ended.
        kinds: the servers that were asked for.
        started_at: when, as ISO 8601 has it.
        machine: as it was described before anything was measured.
        mode: the name of its plan, if it had one.
    """
    return {
        **({"mode": mode} if mode else {}),
        "started_at": started_at,
        "minutes": round(session.elapsed_s / 60, 1),
        "machine": machine,
        "versions": versions(),
        "servers": [
            {"name": kind.name, "title": kind.title, "less": kind.less, "ours": kind.ours}
            for kind in kinds
            if kind.name not in session.missing
        ],
        "missing": session.missing,
        "left_out": session.left_out,
        "runs": session.runs,
    }
