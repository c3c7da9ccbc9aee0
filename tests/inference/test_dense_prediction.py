"""Files of masks and boxes, as the `predict` command writes them."""

import json
import re
from pathlib import Path

import numpy as np
import PIL.Image
import pytest

from tests.helpers.classifiers import picture
from tests.helpers.dense import detr, mask2former, ours, segformer
from tests.helpers.rasters import write_geotiff
from tests.helpers.scripts import command
from vit_hf.arguments import DenseArguments
from vit_hf.inference import dense_prediction
from vit_hf.inference.box_merging import BOX_MERGERS
from vit_hf.inference.dense_prediction import (
    check_dense_arguments,
    dense_class_of,
    load_dense_model,
    predict_files_dense,
)


main = command("predict")
TRANSFORM = (0.5, 0.0, 400000.0, 0.0, -0.5, 5500000.0)


def save(build, folder: Path, **fields) -> str:
    model, processor = build(**fields)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture
def scenes(tmp_path, monkeypatch) -> Path:
    """A raster on the map, a photo, and a damaged file."""
    folder = tmp_path / "scenes"
    folder.mkdir()
    write_geotiff(folder / "raster.tif", picture(90, 120), TRANSFORM)
    PIL.Image.fromarray(picture(50, 40)).save(folder / "photo.png")
    (folder / "broken.png").write_bytes((folder / "photo.png").read_bytes()[:300])
    monkeypatch.chdir(tmp_path)
    return folder


def run(model: str, *flags: str) -> int:
    return main(["scenes", "--model_name_or_path", model, "--use_cpu", "--output", "out", *flags])


def lines(capsys) -> dict[str, dict]:
    captured = capsys.readouterr()
    assert "broken.png" in captured.err
    results = map(json.loads, captured.out.splitlines())
    return {Path(result["file"]).name: result for result in results}


class TestCommand:
    def test_masks(self, scenes, tmp_path, capsys):
        model = save(segformer, tmp_path / "model")
        assert run(model, "--tile", "64", "--halo", "8", "--format", "tif", "geojson", "picture") == 1
        found = lines(capsys)
        raster = found["raster.tif"]
        assert raster["kind"] == "masks"
        assert raster["outputs"] == ["raster_mask.tif", "raster.geojson", "raster.png"]
        assert (raster["crs"], raster["transform"]) == ("EPSG:32633", list(TRANSFORM))
        assert sum(raster["classes"].values()) == pytest.approx(1, abs=1e-4)
        assert raster["num_tiles"] == raster["num_computed_tiles"] > 1
        assert found["photo.png"]["transform"] is None
        names = {path.name for path in (tmp_path / "out").iterdir()}
        assert names == {
            f"{stem}{end}"
            for stem in ("raster", "photo")
            for end in ("_mask.tif", ".geojson", ".png", ".json")
        }
        features = json.loads((tmp_path / "out" / "raster.geojson").read_text())
        assert features["coordinates"] == "map"

    def test_objects_over_an_adaptive_vit(self, scenes, tmp_path, capsys):
        model = save(detr, tmp_path / "model", patch_selector="variance", num_selected_patches=0.5)
        flags = ("--threshold", "0.1", "--scales", "1", "0.5", "--num_selected_patches", "0.25")
        assert run(model, *flags) == 1
        result = lines(capsys)["raster.tif"]
        assert result["outputs"] == ["raster.coco.json", "raster.geojson", "raster.png"]
        coco = json.loads((tmp_path / "out" / "raster.coco.json").read_text())
        assert len(coco["annotations"]) == result["num_objects"] == sum(result["objects"].values()) > 0
        assert coco["images"][0]["file_name"] == "raster.tif"

    @pytest.mark.parametrize("universal", ["objects", "masks"])
    def test_universal_models(self, scenes, tmp_path, capsys, universal):
        model = save(mask2former, tmp_path / "model")
        assert run(model, "--universal", universal, "--threshold", "0.01") == 1
        assert lines(capsys)["photo.png"]["kind"] == universal

    @pytest.mark.parametrize(
        ("flags", "message"),
        [
            ("--format coco", "format 'coco' is not for masks"),
            ("--format bmp", "format='bmp' is unknown"),
            ("--format tif npy", "one of tif, npy and zarr"),
            ("--halo -1", "halo=-1"),
            ("--scales 0", r"scales=\[0\.0\]|scales=\(0\.0,\)"),
            ("--tile_selector variance", "needs num_selected_tiles"),
            ("--patch_selector variance", "patch_selector is for adaptive ViTs"),
            ("--heat_maps maps --tile 32", "are for classifiers"),
        ],
    )
    def test_refusals(self, scenes, tmp_path, capsys, flags, message):
        model = save(segformer, tmp_path / "model")
        with pytest.raises(SystemExit) as error:
            run(model, *flags.split())
        assert error.value.code == 2
        assert re.search(message, capsys.readouterr().err)

    def test_output_is_needed(self, scenes, tmp_path, capsys):
        model = save(segformer, tmp_path / "model")
        with pytest.raises(SystemExit):
            main(["scenes", "--model_name_or_path", model, "--use_cpu"])
        assert "set output to a folder" in capsys.readouterr().err


class TestRunning:
    def test_files_that_are_done_are_not_computed_again(self, scenes, tmp_path, monkeypatch):
        model, processor = segformer()
        files = [str(scenes / "raster.tif")]
        arguments = DenseArguments(tile_selector="variance", num_selected_tiles="0.5")
        (first,) = predict_files_dense(model, processor, files, tmp_path / "out", arguments, tile=48)
        assert first.result["num_computed_tiles"] < first.result["num_tiles"]
        assert first.result["background"] == {"value": 255, "class": "no class"}
        with monkeypatch.context() as patch:
            patch.setattr(dense_prediction, "segment_tiled", None)
            (again,) = predict_files_dense(model, processor, files, tmp_path / "out", arguments, tile=48)
        assert again == first
        (other,) = predict_files_dense(model, processor, files, tmp_path / "out", arguments, tile=64)
        assert other.result["num_tiles"] != first.result["num_tiles"]
        (tmp_path / "out" / "raster_mask.tif").unlink()
        predictions = predict_files_dense(model, processor, files, tmp_path / "out", arguments, tile=64)
        assert next(predictions) == other
        assert (tmp_path / "out" / "raster_mask.tif").exists()

    def test_another_selection_is_computed_anew(self, scenes, tmp_path, capsys):
        model = save(ours, tmp_path / "model", patch_selector="variance", num_selected_patches=0.5)
        run(model)
        first = (tmp_path / "out" / "photo_mask.tif").stat().st_mtime_ns
        run(model)
        assert (tmp_path / "out" / "photo_mask.tif").stat().st_mtime_ns == first
        run(model, "--num_selected_patches", "0.25")
        assert (tmp_path / "out" / "photo_mask.tif").stat().st_mtime_ns > first

    def test_changes_of_an_adaptive_vit(self, tmp_path):
        path = save(ours, tmp_path / "model")
        assert dense_class_of(path) == "ForSemanticSegmentation"
        model, processor = load_dense_model(
            path, patch_selector="variance", num_selected_patches=0.5, resolution=48
        )
        assert model.config.patch_selector == "variance"
        assert processor.size["height"] == 48
        model, _ = load_dense_model(path, token_reducer="merge", keep_rate=0.5, reduction_layers=[1])
        assert model.config.token_reducer == "merge"

    def test_choices_are_those_of_the_tables(self):
        fields = DenseArguments.__dataclass_fields__
        assert fields["merging"].metadata["choices"] == tuple(BOX_MERGERS)
        check_dense_arguments(DenseArguments())

    def test_empty_image_of_no_data(self, tmp_path):
        PIL.Image.fromarray(np.zeros((30, 40, 3), np.uint8)).save(tmp_path / "a.png")
        model, processor = segformer()
        (prediction,) = predict_files_dense(
            model, processor, [str(tmp_path / "a.png")], tmp_path / "out", DenseArguments(nodata=0)
        )
        assert prediction.result["num_computed_tiles"] == 0
        assert prediction.result["classes"] == {"no class": 1.0}
