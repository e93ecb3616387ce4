"""What tests of several folders have in common."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from parts import require

pytest.register_assert_rewrite("penstock.testing.store_suite")


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
