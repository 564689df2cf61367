"""Fixtures that several stages share."""

from __future__ import annotations

import os
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def data_root() -> Path:
    """The real data sets: the folder SPARSE_DDPM_DATA, or ``../shared/data`` of the repository."""
    named = os.environ.get("SPARSE_DDPM_DATA")
    path = Path(named) if named else Path(__file__).resolve().parents[2] / "shared" / "data"
    if not path.is_dir():
        pytest.skip(f"no real data: {path} is not a folder (set SPARSE_DDPM_DATA)")
    return path
