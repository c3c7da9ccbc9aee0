"""`pretraining_gain.py` on a few tiny canvases."""

import json

import pytest

from tests.helpers.scripts import TINY, load_experiment


@pytest.mark.slow
def test_what_pretraining_brings(tmp_path, capsys, monkeypatch):
    script = load_experiment("pretraining_gain")
    monkeypatch.setattr(script, "ARCHITECTURE", script.ARCHITECTURE | TINY)
    steps = ["--pretraining-steps", "2", "--finetuning-steps", "2", "--batch-size", "4", "--num-test", "8"]
    script.main(["--output", str(tmp_path / "runs"), "--labels", "10", "--seeds", "2", "--use-cpu", *steps])
    results = json.loads((tmp_path / "runs" / "results.json").read_text())["10"]
    assert len(results["scratch"]) == len(results["pretrained"]) == 2
    printed = capsys.readouterr().out
    assert "| labels | seeds | from scratch | pretrained | gain |" in printed and "| 10 | 2 |" in printed
