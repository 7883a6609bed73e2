"""A pytest plugin: one of several processes runs its share of the tests until their time is up, and notes each outcome.

Tests that are marked `gpu`, which go through every configuration, come last. A test that is not begun in time is noted
as such, never as passed. The environment says which share (2/12), until when (seconds since the epoch), and the file of
notes. Loads without pytest, for those who only name it.
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
    """Keep this process's share."""
    number, shares = map(int, os.environ[SHARE].split("/"))
    ordered = sorted(items, key=lambda item: item.get_closest_marker("gpu") is not None)  # stable
    kept = ordered[number::shares]
    config.hook.pytest_deselected(items=[item for item in items if item not in kept])
    items[:] = kept


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Begin nothing when the time is up."""
    import pytest

    if time.time() > float(os.environ[UNTIL]):
        pytest.skip(NOT_BEGUN)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Note how a test ended, or why it did not begin."""
    if report.when == "call" or report.outcome != "passed":
        outcome = report.outcome if report.when == "call" or report.skipped else "error"
        _note(report.nodeid, outcome, report)


def pytest_collectreport(report: pytest.CollectReport) -> None:
    """Note a file that cannot be loaded."""
    if report.failed:
        _note(report.nodeid, "error", report)


def _note(name: str, outcome: str, report: Any) -> None:
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
