"""Foreign VAEs of every form, and the law that adapters are held to."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest


def _law():
    spec = importlib.util.spec_from_file_location("adapters_law", Path(__file__).with_name("law.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def gain_is_real():
    """See law.py."""
    return _law().gain_is_real
