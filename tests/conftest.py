"""What tests of several folders have in common."""

from __future__ import annotations

import os
import shutil
import signal
import sys
from pathlib import Path

import pytest

from parts import require

pytest.register_assert_rewrite("penstock.testing.store_suite", "penstock.testing.store_following")

if sys.dont_write_bytecode:
    # Tests start some hundred processes, each of which would compile all that it imports: 1.5 s, and an SDK takes longer.
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
    sys.dont_write_bytecode = False
    sys.pycache_prefix = str(Path(__file__).parents[1] / ".pytest_cache" / "bytecode")
    os.environ["PYTHONPYCACHEPREFIX"] = sys.pycache_prefix

# `nohup`, and a shell's `&`, have a program ignore these, and all that it starts. Tests send them to what they start.
for _number, _usual in ((signal.SIGINT, signal.default_int_handler), (signal.SIGHUP, signal.SIG_DFL)):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, _usual)


@pytest.fixture
def chromium() -> str:
    """The browser, and what drives it."""
    found = shutil.which("chromium")
    require("Chromium", "apt-get install chromium", found is not None)
    require("Node", "apt-get install nodejs npm", shutil.which("node") is not None)
    driver = Path(__file__).parent / "browser" / "node_modules"
    require("playwright-core", "npm ci in tests/browser", driver.is_dir())
    assert found is not None
    return found
