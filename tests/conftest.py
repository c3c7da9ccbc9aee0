"""What every test needs: no network, and small models."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch

from tests.helpers.skips import skipped_lines


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    """Puts tests with the longest timeouts first where processes share them, so that none waits at the end
    for one."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        items.sort(key=timeout_of, reverse=True)


def timeout_of(item) -> float:
    marker = item.get_closest_marker("timeout")
    return marker.args[0] if marker else 0


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Ends with what was not tested, and why: it looks like success otherwise."""
    result = yield
    for line in skipped_lines(terminalreporter.stats.get("skipped", [])):
        terminalreporter.write_line(line, yellow=True)
    return result
