"""Processes in which the package is not installed."""

import os
import subprocess
import sys
import textwrap


def run_elsewhere(script: str, tmp_path, installed: bool = False) -> str:
    """Runs `script` in a fresh process; without this package unless `installed`."""
    environment = {**os.environ, "HF_HOME": str(tmp_path / "home"), "HF_HUB_OFFLINE": "1"}
    code = textwrap.dedent(script)
    result = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", code if installed else ELSEWHERE + code],
        cwd=tmp_path,
        env=environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 0, result.stderr
    return result.stdout


ELSEWHERE = """
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "vit_hf":
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Absent())
"""
