"""`segmentation_iou.py` on a few tiny canvases."""

import json

from tests.helpers.scripts import TINY, load_experiment


def test_iou_by_the_fraction_of_patches(tmp_path, capsys, monkeypatch):
    script = load_experiment("segmentation_iou")
    monkeypatch.setattr(script, "ARCHITECTURE", script.ARCHITECTURE | TINY)
    sizes = ["--size", "96", "--num-noise", "2", "--batch-size", "4", "--num-test", "4", "--steps", "2"]
    sizes.append("--use-cpu")
    script.main(
        [
            "--output",
            str(tmp_path / "runs"),
            "--selectors",
            "random",
            "--shares",
            "0.5",
            "--seeds",
            "1",
            *sizes,
        ]
    )
    assert json.loads((tmp_path / "runs" / "results.json").read_text()).keys() == {"all 1.0", "random 0.5"}
    printed = capsys.readouterr().out
    assert "| all | 100% | 1 |" in printed and "| random | 50% | 1 |" in printed
