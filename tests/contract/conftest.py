"""The copy of the package that the contract tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.contract.copies import copy_package, register


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a copy of the package that has all kinds of tests/contract/kinds."""
    where = tmp_path_factory.mktemp("registered")
    register(copy_package(where))
    return where
