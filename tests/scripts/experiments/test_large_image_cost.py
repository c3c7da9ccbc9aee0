"""`large_image_cost.py` on small pictures, with little memory."""

import json
import subprocess
import sys

import PIL.Image
import pytest

from tests.helpers.scripts import EXPERIMENTS


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_large_image_cost(tmp_path):
    flags = ["--sides", "256", "2048", "--selectors", "entropy", "--output", str(tmp_path)]
    flags += ["--num-selected-patches", "64", "--memory-limit", "0.05"]
    script = EXPERIMENTS / "large_image_cost.py"
    done = subprocess.run([sys.executable, script, *flags], capture_output=True, text=True, check=True)
    rows = json.loads((tmp_path / "cost.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 2
    for row in rows:
        # The pixels of the larger one are 12 MiB, and 48 MiB as floats.
        assert row.get("out_of_memory", False) == (row["side"] == 2048 and row["way"] == "in memory")
        assert row.get("seconds", 1) > 0 and row.get("peak_mib", 1000) > 100
    assert "| 2048², tif |" in done.stdout and "out of 0.05 GiB" in done.stdout
    assert PIL.Image.open(tmp_path / "cost.png").size[0] > 800
