"""The Python of `docs/dense_tiles.md` runs, on small models under the names that it uses."""

import re
from pathlib import Path

import pytest

from tests.helpers.classifiers import picture
from tests.helpers.dense import detr, segformer
from tests.helpers.rasters import write_geotiff


GUIDE = Path(__file__).parents[2] / "docs" / "dense_tiles.md"
CHECKPOINTS = {"nvidia/segformer-b0-finetuned-ade-512-512": segformer, "facebook/detr-resnet-50": detr}


def test_blocks_run(tmp_path, monkeypatch, capsys):
    pytest.importorskip("tifffile", reason="pip install vit_hf[large]")
    text = GUIDE.read_text()
    for name, build in CHECKPOINTS.items():
        model, processor = build()
        for part in (model, processor):
            part.save_pretrained(tmp_path / name.replace("/", "--"))
        text = text.replace(f'"{name}"', repr(str(tmp_path / name.replace("/", "--"))))
    # Tiles of 64 pixels, which these models take, have no room for such a halo.
    text = text.replace("halo=32", "halo=8").replace("threshold=0.5", "threshold=0.1")
    monkeypatch.chdir(tmp_path)
    write_geotiff(tmp_path / "scene.tif", picture(100, 150), (0.5, 0.0, 4e5, 0.0, -0.5, 5.5e6))
    names = {}
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 4
    for block in blocks:
        exec(block, names)
    assert "tiles computed" in capsys.readouterr().out
    for name in ("scene_mask.tif", "scene.coco.json", "scene.geojson", "scene.png"):
        assert (tmp_path / name).stat().st_size > 0
