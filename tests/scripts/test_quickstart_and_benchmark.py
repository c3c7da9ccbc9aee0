"""The commands of the Makefile, made short."""

import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import PIL.Image
import pytest
from huggingface_hub import ModelCard


SCRIPTS = Path(__file__).parents[2] / "scripts"


def run(script: str, *arguments: str, cwd: Path) -> str:
    command = [sys.executable, str(SCRIPTS / script), *arguments]
    result = subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=580)
    assert result.returncode == 0, result.stderr[-3000:]
    return result.stdout


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_quickstart(tmp_path):
    steps = ["--small-steps", "2", "2", "--large-steps", "2", "--num-test", "20", "--batch-size", "8"]
    out = run("quickstart.py", "--output", "result", "--quiet", *steps, cwd=tmp_path)
    folder = tmp_path / "result"
    rows = json.loads((folder / "quickstart.json").read_text())["rows"]
    assert [row["tokens"] for row in rows] == [25, 24, 24, 1024]
    for row in rows:
        assert row["name"] in out and row["images_per_second"] > 0
    assert ModelCard.load(folder / "README.md").data.eval_results[0].metric_type == "accuracy"
    with PIL.Image.open(folder / "report.png") as report:
        assert min(report.size) > 800
    assert (folder / "model.safetensors").is_file() and (folder / "preprocessor_config.json").is_file()
    predictions = [json.loads(line) for line in out.splitlines() if line.startswith('{"file"')]
    assert [Path(line["file"]).name[0] for line in predictions] == ["0", "1", "2", "3"]
    assert all(line["label"] in "0123456789" for line in predictions)
    # Again over its own result, but never over something else.
    other = tmp_path / "other"
    other.mkdir()
    (other / "mine.txt").touch()
    refused = subprocess.run(
        [sys.executable, str(SCRIPTS / "quickstart.py"), "--output", str(other)],
        capture_output=True,
        text=True,
    )
    assert refused.returncode != 0 and "something else" in refused.stderr and (other / "mine.txt").exists()


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_benchmark(tmp_path):
    out = run(
        "benchmark.py",
        "--size",
        "tiny",
        "--repeats",
        "1",
        "--tables",
        "dense",
        "selection",
        "reduction",
        "large",
        "file",
        "swin",
        "--output",
        "rows.json",
        cwd=tmp_path,
    )
    rows = json.loads((tmp_path / "rows.json").read_text())
    assert all(row["median_s"] > 0 for row in rows)
    # Dense, selection, reduction of one image and of eight, large, file, and the two of Swin.
    assert list(Counter(row["table"] for row in rows).values()) == [2, 10, 7, 7, 2, 6, 8, 6]
    assert out.count("| model | image |") == 7
    for row in [row for row in rows if "decoding" in row]:
        assert row["decoding"] + row["preparing"] + row["encoder"] == pytest.approx(1)
