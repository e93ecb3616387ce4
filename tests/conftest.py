"""What tests of several folders have in common."""

from __future__ import annotations

import shutil
import signal
from pathlib import Path

import pytest

from parts import require

pytest.register_assert_rewrite("penstock.testing.store_suite")

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
