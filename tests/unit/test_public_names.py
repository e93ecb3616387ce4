"""What those who write apps import: from `penstock`, or from a folder of it that is a face of its own."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest

import penstock

ROOT = Path(__file__).parents[2]
FACES = {
    "penstock",
    "penstock.client",
    "penstock.server",
    "penstock.testing",
    "penstock.demo.model",  # an app to borrow, in the React example
    "penstock.relay.upstream",  # of `relay`, whose name is the folder's
}
SHOWN = [ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")), *sorted(ROOT.glob("examples/*.py"))]


@pytest.mark.parametrize("name", penstock.__all__)
def test_every_name_is_there(name: str) -> None:
    assert getattr(penstock, name) is not None


def test_what_is_shown_needs_no_inner_module() -> None:
    shown = 0
    for path in [*SHOWN, ROOT / "examples/09_react/serve.py"]:
        for module, names in re.findall(r"^ *from (penstock[\w.]*) import (.+)$", path.read_text(), re.M):
            assert module in FACES, path
            for name in names.split(", "):
                assert hasattr(importlib.import_module(module), name), (path, name)
                shown += 1
    assert shown > 30
