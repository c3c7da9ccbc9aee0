"""`detection_ap.py` on a few tiny canvases."""

import json

import pytest

from tests.helpers.scripts import TINY, load_experiment


pytest.importorskip("pycocotools", reason="pip install vit_hf[detection]")
pytest.importorskip("torchmetrics", reason="pip install vit_hf[detection]")

VIT = {name: value for name, value in TINY.items() if name != "num_channels"}
HEAD = {
    "d_model": 32,
    "num_queries": 30,
    "encoder_layers": 1,
    "decoder_layers": 2,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 16,
    "decoder_ffn_dim": 16,
    "num_feature_levels": 1,
}


def test_average_precision_by_the_fraction_of_patches(tmp_path, capsys, monkeypatch):
    script = load_experiment("detection_ap")
    monkeypatch.setattr(script, "ARCHITECTURE", script.ARCHITECTURE | VIT)
    monkeypatch.setattr(script, "DETECTOR", script.DETECTOR | HEAD)
    flags = ["--size", "96", "--num-noise", "2", "--num-digits", "2", "--batch-size", "4", "--num-test", "4"]
    flags += ["--steps", "2", "--seeds", "1", "--ways", "variance", "resize", "--shares", "0.25"]
    script.main([*flags, "--jobs", "1", "--use-cpu", "--output", str(tmp_path / "runs")])
    results = json.loads((tmp_path / "runs" / "results.json").read_text())
    assert results.keys() == {"all 1.0", "variance 0.25", "resize 0.25"}
    printed = capsys.readouterr().out
    # Patches of 8 pixels: 144 of a canvas, a quarter of them, and those of a canvas of half the side.
    for row in ("| all | 144 | 1 |", "| variance | 36 | 1 |", "| resize | 36 | 1 |"):
        assert row in printed
