"""`resolution_transfer.py` with a few steps."""

import subprocess
import sys

import pytest

from tests.helpers.scripts import EXPERIMENTS


@pytest.mark.slow
def test_resolution_transfer(tmp_path):
    flags = ["--encodings", "rotary_mixed", "none", "--seeds", "0", "--steps", "3", "--output", str(tmp_path)]
    done = subprocess.run(
        [sys.executable, EXPERIMENTS / "resolution_transfer.py", *flags],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "| rotary_mixed | 1 |" in done.stdout and "| none | 1 |" in done.stdout
    for name in ("transfer.png", "similarity_rotary_mixed.png"):
        assert (tmp_path / name).stat().st_size > 10_000
