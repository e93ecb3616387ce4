"""What the README says works in a fresh clone, with a fresh home."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

import pytest

from parts import require

ROOT = Path(__file__).parent.parent


@pytest.fixture
def clone(tmp_path: Path) -> Path:
    """A copy of what git has and what it would take, and nothing else."""
    require("git", "apt-get install git", shutil.which("git") is not None)
    require("make", "apt-get install make", shutil.which("make") is not None)
    listed = subprocess.run(
        ["git", "ls-files", "-co", "--exclude-standard", "-z"], cwd=ROOT, capture_output=True, check=False
    )
    require("a git checkout", "git clone", listed.returncode == 0)
    target = tmp_path / "clone"
    for name in filter(None, listed.stdout.decode().split("\0")):
        if (ROOT / name).is_file():
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


@pytest.mark.timeout(300)
def test_make_run_serves_the_demo_and_ends_cleanly(clone: Path, tmp_path: Path) -> None:
    home = tmp_path / "home"
    home.mkdir()
    environment = {
        name: value
        for name, value in os.environ.items()
        if name not in ("VIRTUAL_ENV", "PYTHONPATH", "PYTHONPYCACHEPREFIX")
    }
    environment |= {"HOME": str(home), "PYTHON": sys.executable}
    with subprocess.Popen(
        ["make", "run", "ARGS=--port 0"],
        cwd=clone,
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            assert process.stderr is not None
            said = ""
            while (found := re.search(r"listening on (http://\S+)", said)) is None:
                line = process.stderr.readline()
                assert line, f"make run ended: {said}"
                said += line
            url = found[1]
            with urllib.request.urlopen(f"{url}/") as page:
                assert b"<title>penstock</title>" in page.read()
            penstock = clone / ".venv" / "bin" / "penstock"
            sent = subprocess.run(
                [penstock, "send", url, "Hello there"], capture_output=True, text=True, check=True
            )
            assert len(sent.stdout) > 5
            os.killpg(process.pid, signal.SIGTERM)
            began = time.monotonic()
            # make itself is told too, and says so with its own status; the server's is what counts here.
            process.wait(20)
            assert time.monotonic() - began < 15
        finally:
            if process.poll() is None:
                os.killpg(process.pid, signal.SIGKILL)
    assert (clone / "penstock.db").exists()
