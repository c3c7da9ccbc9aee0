"""`vit-hf predict --tile`."""

import json
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.helpers.models import tiny_config
from tests.helpers.scripts import command
from vit_hf import AdaptiveViTForImageClassification, AdaptiveViTImageProcessor, predict_tiled


main = command("predict")


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A model, two scans of one name and a damaged one."""
    AdaptiveViTForImageClassification(tiny_config()).save_pretrained(tmp_path / "model")
    AdaptiveViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(tmp_path / "model")
    generator = np.random.default_rng(0)
    for name, size in {"a/scan.png": (100, 70), "b/scan.png": (20, 30), "broken.png": (50, 50)}.items():
        path = tmp_path / "scans" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(generator.integers(0, 256, (*size, 3), dtype=np.uint8)).save(path)
    broken = tmp_path / "scans" / "broken.png"
    broken.write_bytes(broken.read_bytes()[:300])
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(*flags: str) -> int:
    return main(["scans", "--model_name_or_path", "model", "--use_cpu", *flags])


def test_lines_and_heat_maps(folder, capsys):
    assert run("--tile", "40", "--aggregate", "max", "--top_k", "2", "--heat_maps", "maps") == 1
    captured = capsys.readouterr()
    first, second = (json.loads(line) for line in captured.out.splitlines())
    assert (first["file"], first["num_tiles"]) == ("scans/a/scan.png", 6)
    assert (second["file"], second["num_tiles"]) == ("scans/b/scan.png", 1)
    model = AdaptiveViTForImageClassification.from_pretrained("model")
    expected = predict_tiled(model, "scans/a/scan.png", tile=40, aggregate="max")
    assert first["label"] == expected.label
    best = expected.probabilities.topk(2)
    assert [entry["score"] for entry in first["top_k"]] == pytest.approx(best.values.tolist(), abs=1e-5)
    assert "broken.png" in captured.err and "1 of 3 files could not be used" in captured.err
    assert {path.name for path in (folder / "maps").iterdir()} == {
        "scan_heat_map.png",
        "scan_2_heat_map.png",
    }


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--tile 0", "tile=0 must be"),
        ("--tile 40 --overlap 1", "overlap=1.0 must be"),
        ("--tile 40 --aggregate median", "invalid choice: 'median'"),
        ("--tile 40 --with_patches", "with_patches is about images seen whole"),
        ("--heat_maps maps", "heat_maps are made of tiles: set tile"),
    ],
)
def test_says_what_is_wrong(folder, capsys, flags, message):
    with pytest.raises(SystemExit) as exit:
        run(*flags.split())
    assert exit.value.code == 2
    assert message in capsys.readouterr().err


def test_regression_has_no_votes(folder, capsys):
    AdaptiveViTForImageClassification(tiny_config(num_labels=1)).save_pretrained(folder / "model")
    with pytest.raises(SystemExit):
        run("--tile", "40", "--aggregate", "vote")
    assert "a regression has none. Choose from 'mean', 'max', 'topk-mean'" in capsys.readouterr().err
    run("--tile", "40", "--heat_maps", "maps")
    assert isinstance(json.loads(capsys.readouterr().out.splitlines()[0])["value"], float)


def test_names_that_are_not_utf8(folder):
    """As JSON writes them, without tiles, too."""
    named = "scans/\udcff.png"
    Path("scans/a/scan.png").rename(named)
    for flags in (["--tile", "40"], []):
        assert run("--output", "lines.jsonl", *flags) == 1
        lines = Path("lines.jsonl").read_text(encoding="utf-8").splitlines()
        assert sorted(json.loads(line)["file"] for line in lines) == ["scans/b/scan.png", named]
