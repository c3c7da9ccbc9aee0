"""`distillation_fidelity.py` on tiny photos and a tiny model."""

import json

import numpy as np
import PIL.Image
import pytest

from tests.helpers.models import tiny_config
from tests.helpers.scripts import load_experiment
from vit_hf import AdaptiveViTModel


@pytest.fixture
def script(tmp_path, monkeypatch):
    """The script, with two photos to train on and two of each kind to test on."""
    script = load_experiment("distillation_fidelity")
    generator, photos = np.random.default_rng(0), {}
    for split in ("train", *script.TEST):
        photos[split] = {"own": [f"{split}-{index}.png" for index in range(2)]}
        for name in photos[split]["own"]:
            pixels = generator.integers(0, 256, (96, 64, 3), dtype=np.uint8)
            PIL.Image.fromarray(pixels).save(tmp_path / name)
    monkeypatch.setattr(script, "PHOTOS", photos)
    monkeypatch.setattr(script, "photo_folders", lambda: {"own": tmp_path})
    return script


def test_before_and_after(script, tmp_path, capsys):
    AdaptiveViTModel(tiny_config(), add_pooling_layer=False).save_pretrained(tmp_path / "model")
    flags = ["--model", str(tmp_path / "model"), "--output", str(tmp_path / "runs"), "--size", "48"]
    flags += ["--steps", "2", "--batch-size", "4", "--test-crop", "32", "--train-crop", "48", "--use-cpu"]
    results = script.main([*flags, "--device", "cpu", "--learning-rate", "1e-3", "--fractions", "0.2"])
    assert len(list((tmp_path / "runs/photos/aerial").iterdir())) == 12
    printed = capsys.readouterr().out
    for name in script.SELECTORS:
        assert f"| {name} | before |" in printed and f"| {name} | after |" in printed
        for kind in script.TEST:
            assert results["before"][kind][name] != results["after"][0][kind][name]
    saved = json.loads((tmp_path / "runs/after-0.json").read_text())
    assert saved["rows"] == results["after"][0]
