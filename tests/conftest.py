"""What every test needs: no network, and small models."""

import os
import re


os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")

import pytest
import torch


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


def pytest_collection_modifyitems(config, items):
    """Puts tests with the longest timeouts first where processes share them, so that none waits at the end for one."""
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


def skipped_lines(reports) -> list[str]:
    """One line for each reason, with the tests that were skipped for it."""
    names = {}
    for report in reports:
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        test = re.split(r"[\[@]", report.nodeid)[0]  # without parameters and group
        names.setdefault(reason.removeprefix("Skipped: "), set()).add(test)
    return [f"NOT TESTED: {', '.join(sorted(tests))}: {reason}" for reason, tests in names.items()]
