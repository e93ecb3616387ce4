"""Runs `drive.mjs`, the real client of `ai` 5, 6 or 7."""

from __future__ import annotations

import fcntl
import json
import shutil
import subprocess
from pathlib import Path
from typing import Any, TypeAlias

import pytest
import trio

from parts import require

HERE = Path(__file__).parent
LOCK = HERE / "package-lock.json"
INSTALLED = HERE / "node_modules" / ".package-lock.json"
DEADLINE_S = 30.0
INSTALL_S = 300.0

Job: TypeAlias = dict[str, Any]


def run_driver(job: Job | list[Job]) -> Any:
    """Do a job of the driver (see there), or several at the same time, and return what came of it.

    Blocks. Skips the test if Node, npm or the packages can't be had; where `CI` is set, it fails then.
    """
    command = _command(require_node())
    done = subprocess.run(
        command, input=json.dumps(job), capture_output=True, text=True, timeout=_seconds(job)
    )
    return _result(done.returncode, done.stdout, done.stderr)


async def drive(job: Job | list[Job]) -> Any:
    """Do a job as `run_driver` does, beside other tasks, such as the server that it talks to."""
    node = await trio.to_thread.run_sync(require_node)
    with trio.fail_after(_seconds(job)):
        done = await trio.run_process(
            _command(node),
            stdin=json.dumps(job).encode(),
            capture_stdout=True,
            capture_stderr=True,
            check=False,
        )
    return _result(done.returncode, done.stdout.decode(), done.stderr.decode())


def _seconds(job: Job | list[Job]) -> float:
    """The driver keeps its deadline itself; this is for a driver that hangs."""
    jobs = job if isinstance(job, list) else [job]
    return 30 + max(float(each.get("deadlineS", DEADLINE_S)) for each in jobs)


def _command(node: str) -> list[str]:
    return [node, str(HERE / "drive.mjs")]


def _result(returncode: int, stdout: str, stderr: str) -> Any:
    assert returncode == 0, stderr
    return json.loads(stdout)


def require_node() -> str:
    """Return the path of Node, with the packages installed; skip the test where they can't be had.

    An async test calls it in a fixture: a skip from inside a nursery says no reason.
    """
    node, npm = shutil.which("node"), shutil.which("npm")
    require("node 20", "apt-get install nodejs npm", node is not None and npm is not None)
    assert node is not None
    assert npm is not None
    with LOCK.open() as file:
        # One test process installs, all others wait for it.
        fcntl.flock(file, fcntl.LOCK_EX)
        if not _is_fresh():
            command = [npm, "ci", "--silent", "--no-audit", "--no-fund"]
            try:
                subprocess.run(command, cwd=HERE, capture_output=True, timeout=INSTALL_S)
            except subprocess.TimeoutExpired:
                pytest.fail(f"npm ci in tests/aisdk took longer than {INSTALL_S:.0f} s")
        require("the npm packages of tests/aisdk", "npm ci in tests/aisdk", _is_fresh())
    return node


def _is_fresh() -> bool:
    return INSTALLED.exists() and INSTALLED.stat().st_mtime >= LOCK.stat().st_mtime
