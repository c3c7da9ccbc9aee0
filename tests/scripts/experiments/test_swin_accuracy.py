"""`swin_accuracy.py` with tiny models on a few canvases."""

import json

import pytest

from tests.helpers.scripts import load_experiment


@pytest.mark.slow
def test_accuracy_of_swin_by_the_size_of_objects(tmp_path, capsys, monkeypatch):
    script = load_experiment("swin_accuracy")
    tiny = {
        "ViT": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    }
    tiny["Swin"] = {"embed_dim": 8, "depths": [1, 1], "num_heads": [1, 2], "window_size": 4}
    for name, fields in tiny.items():
        monkeypatch.setitem(script.ARCHITECTURES[name]["config_overrides"], "initializer_range", 0.02)
        for field, value in fields.items():
            monkeypatch.setitem(script.ARCHITECTURES[name]["config_overrides"], field, value)
    numbers = [
        "--num-pretrain",
        "8",
        "--num-train",
        "8",
        "--num-test",
        "4",
        "--batch-size",
        "4",
        "--seeds",
        "1",
    ]
    sizes = ["--size", "64", "--digit-sizes", "14", "28", "--num-noise", "1", "--use-cpu"]
    results = script.main(["--output", str(tmp_path), "--selectors", "saliency", *numbers, *sizes])
    assert json.loads((tmp_path / "results.json").read_text()) == results
    by_windows = results["Swin, 25% of the windows by `saliency`"][0]
    assert by_windows["gflops"] < results["Swin, all windows"][0]["gflops"]
    assert "| digits of 14 px | digits of 28 px |" in capsys.readouterr().out
