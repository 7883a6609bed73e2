"""A pytest plugin with which several processes share the tests. Each process runs its share within a time limit and
records the outcomes.

Tests marked `gpu`, which try every configuration, run last. A test that does not begin in time is recorded as "not
begun", never as passed. Environment variables contain the share (such as 2/12), the time limit (seconds since the
epoch) and the name of the file for the outcomes. The module can be imported without pytest.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pytest

__all__ = [
    "NOTES",
    "SHARE",
    "UNTIL",
    "pytest_collection_modifyitems",
    "pytest_collectreport",
    "pytest_runtest_logreport",
    "pytest_runtest_setup",
]

SHARE, UNTIL, NOTES = "GPU_CHECK_SHARE", "GPU_CHECK_UNTIL", "GPU_CHECK_NOTES"
NOT_BEGUN = "not begun: out of time"


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep only the tests of this process's share."""
    number, shares = map(int, os.environ[SHARE].split("/"))
    # The sort is stable, so that the tests have the same order in all processes.
    ordered = sorted(items, key=lambda item: item.get_closest_marker("gpu") is not None)
    shard = ordered[number::shares]
    config.hook.pytest_deselected(items=[item for item in items if item not in shard])
    items[:] = shard


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip the test if the time limit has passed."""
    import pytest

    if time.time() > float(os.environ[UNTIL]):
        pytest.skip(NOT_BEGUN)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Record how a test ended, or why it did not begin."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        _record(report.nodeid, outcome, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Record a test file that cannot be loaded."""
    if report.failed:
        _record(report.nodeid, "error", report)


def _record(name: str, outcome: str, report: Any) -> None:
    text = ""
    if outcome == "skipped":
        text = str(report.longrepr[-1]).removeprefix("Skipped: ")
        outcome = "not begun" if text == NOT_BEGUN else outcome
    elif outcome != "passed":
        crash = getattr(report.longrepr, "reprcrash", None)
        text = (crash.message if crash else str(report.longrepr)).strip().partition("\n")[0]
    line = json.dumps({"test": name, "outcome": outcome, "text": text[:500]})
    with Path(os.environ[NOTES]).open("a", encoding="utf-8") as file:
        file.write(line + "\n")
