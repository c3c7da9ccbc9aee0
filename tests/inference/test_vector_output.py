"""Objects and masks in the formats of other programs, read by those."""

import contextlib
import io
import json

import numpy as np
import PIL.Image
import pytest
import torch
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO

from tests.helpers.classifiers import picture
from tests.helpers.dense import PLAIN, pixel_segmenter
from tests.helpers.rasters import write_geotiff
from vit_hf import segment_tiled
from vit_hf.inference import vector_output
from vit_hf.inference.dense_pictures import picture_of
from vit_hf.inference.detect_tiles import ObjectMask, TiledDetection
from vit_hf.inference.vector_output import (
    coco_annotations,
    detection_features,
    segmentation_features,
    write_json,
)
from vit_hf.readers.georeference import Georeference


PLACE = Georeference((0.5, 0.0, 400000.0, 0.0, -0.5, 5500000.0), "EPSG:32633")
ROTATED = Georeference((0.4, 0.3, 400000.0, 0.3, -0.4, 5500000.0), "EPSG:32633")


def detection(with_masks: bool = False, number: int = 3, **fields) -> TiledDetection:
    generator = np.random.default_rng(0)
    low = generator.integers(0, 30, (number, 2))
    boxes = np.concatenate((low, low + generator.integers(3, 9, (number, 2))), axis=1)
    masks = None
    if with_masks:
        masks = [
            ObjectMask.of(generator.random((bottom - top, right - left)) < 0.6, top, left)
            for left, top, right, bottom in boxes.tolist()
        ]
        boxes = np.array([mask.box for mask in masks]).reshape(-1, 4)
    defaults = {
        "image_size": (40, 50),
        "boxes": torch.from_numpy(boxes).float().reshape(-1, 4),
        "scores": torch.linspace(0.9, 0.5, number),
        "labels": torch.arange(number) % 2,
        "id2label": {0: "tree", 1: "car"},
        "num_tiles": 4,
        "num_computed": 3,
        "num_candidates": 5,
        "masks": masks,
    }
    return TiledDetection(**{**defaults, **fields})


def full_mask(mask: ObjectMask, size) -> np.ndarray:
    whole = np.zeros(size, bool)
    whole[mask.top : mask.top + mask.shape[0], mask.left : mask.left + mask.shape[1]] = mask.pixels
    return whole


def read_coco(path) -> COCO:
    with contextlib.redirect_stdout(io.StringIO()):
        return COCO(str(path))


class TestCoco:
    @pytest.mark.parametrize("with_masks", [False, True])
    def test_pycocotools_reads_it(self, tmp_path, with_masks):
        result = detection(with_masks)
        write_json(tmp_path / "a.json", coco_annotations(result, "a.tif", image_id=7))
        coco = read_coco(tmp_path / "a.json")
        assert [name["name"] for name in coco.loadCats(coco.getCatIds())] == ["tree", "car"]
        annotations = coco.loadAnns(coco.getAnnIds(imgIds=7))
        assert len(annotations) == 3
        for index, annotation in enumerate(annotations):
            left, top, width, height = annotation["bbox"]
            assert [left, top, left + width, top + height] == result.boxes[index].tolist()
            assert annotation["score"] == pytest.approx(result.scores[index].item())
            decoded = coco.annToMask(annotation)
            if with_masks:
                assert np.array_equal(decoded, full_mask(result.masks[index], (40, 50)))
                assert annotation["area"] == decoded.sum()
            else:
                assert decoded.sum() == pytest.approx(annotation["area"], rel=0.5)

    def test_masks_at_every_border(self):
        generator = np.random.default_rng(1)
        for _ in range(30):
            whole = generator.random((6, 5)) < 0.6
            runs = vector_output.coco_segmentation(ObjectMask.of(whole), 6, 5)
            decoded = coco_mask.decode(coco_mask.frPyObjects(runs, 6, 5))
            assert np.array_equal(decoded, whole)

    def test_images_too_large_for_run_lengths_have_polygons(self):
        mask = ObjectMask.of(np.ones((3, 4), bool), 99_990, 99_980)
        (ring,) = vector_output.coco_segmentation(mask, 100_000, 100_000)
        assert sorted(zip(ring[0::2], ring[1::2], strict=True)) == [
            (99_980, 99_990), (99_980, 99_993), (99_984, 99_990), (99_984, 99_993),
        ]  # fmt: skip

    def test_nothing_found(self, tmp_path):
        write_json(tmp_path / "a.json", coco_annotations(detection(number=0), "a.tif"))
        coco = read_coco(tmp_path / "a.json")
        assert (len(coco.getAnnIds()), len(coco.getImgIds())) == (0, 1)

    def test_labels_without_names(self):
        content = coco_annotations(detection(id2label={}), "a.tif")
        assert content["categories"] == [{"id": 0, "name": "0"}, {"id": 1, "name": "1"}]

    def test_interrupted_write_leaves_what_was_there(self, tmp_path, monkeypatch):
        (tmp_path / "a.json").write_text("before")

        def interrupted(*args):
            raise KeyboardInterrupt

        monkeypatch.setattr(vector_output.os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_json(tmp_path / "a.json", coco_annotations(detection(), "a.tif"))
        assert (tmp_path / "a.json").read_text() == "before"


class TestGeojson:
    @pytest.mark.parametrize("place", [None, PLACE, ROTATED], ids=["pixels", "map", "rotated"])
    def test_geopandas_reads_boxes(self, tmp_path, place):
        geopandas = pytest.importorskip("geopandas")
        result = detection(georeference=place)
        write_json(tmp_path / "a.geojson", detection_features(result))
        frame = geopandas.read_file(tmp_path / "a.geojson")
        assert list(frame["class"]) == ["tree", "car", "tree"]
        assert frame.geometry.is_valid.all()
        assert frame["score"].tolist() == pytest.approx(result.scores.tolist())
        sides = result.boxes[:, 2:] - result.boxes[:, :2]
        scale = 1 if place is None else 0.25
        assert frame.geometry.area.tolist() == pytest.approx((sides.prod(1) * scale).tolist())
        if place is not None:
            assert frame.crs.to_epsg() == 32633
            centers = place.to_map(((result.boxes[:, 2:] + result.boxes[:, :2]) / 2).numpy())
            found = np.stack((frame.geometry.centroid.x, frame.geometry.centroid.y), axis=1)
            np.testing.assert_allclose(found, centers, atol=1e-6)

    def test_masks_with_holes(self, tmp_path):
        shapely = pytest.importorskip("shapely")
        result = detection(with_masks=True)
        content = detection_features(result, tolerance=0)
        for feature, mask in zip(content["features"], result.masks, strict=True):
            assert shapely.geometry.shape(feature["geometry"]).area == mask.area
        assert content["coordinates"] == "pixels"

    def test_nothing_found(self, tmp_path):
        write_json(tmp_path / "a.geojson", detection_features(detection(number=0)))
        content = json.loads((tmp_path / "a.geojson").read_text())
        assert content["features"] == []

    @pytest.mark.parametrize("suffix", [".npy", ".zarr", ".tif"])
    def test_areas_of_a_mask(self, tmp_path, suffix):
        shapely = pytest.importorskip("shapely")
        image = picture(300, 280)
        image[:] = image[:10, :10].repeat(30, 0).repeat(28, 1)
        names = {0: "water", 1: "tree", 2: "background"}
        model = pixel_segmenter(num_labels=3, id2label=names)
        result = segment_tiled(model, image, PLAIN, tile=128, output=tmp_path / f"mask{suffix}")
        content = segmentation_features(result, tolerance=0)
        for value in (0, 1):
            of_class = [
                shapely.geometry.shape(feature["geometry"])
                for feature in content["features"]
                if feature["properties"]["label"] == value
            ]
            assert sum(shape.area for shape in of_class) == (result.mask == value).sum()
            assert all(shape.is_valid for shape in of_class)
        assert {feature["properties"]["class"] for feature in content["features"]} <= {"water", "tree"}
        rough = segmentation_features(result, tolerance=2.0, min_area=2000)
        assert rough["simplified_by_pixels"] == 2.0
        assert all(feature["properties"]["pixels"] >= 2000 for feature in rough["features"])


class TestRasters:
    @pytest.mark.parametrize("place", [PLACE, ROTATED], ids=["north_up", "rotated"])
    def test_mask_opens_where_the_image_lies(self, tmp_path, place):
        rasterio = pytest.importorskip("rasterio")
        image = picture(70, 90)
        path = write_geotiff(tmp_path / "image.tif", image, place.transform)
        model = pixel_segmenter()
        marked = np.zeros((2, 2), bool)
        marked[0] = True
        result = segment_tiled(
            model, path, PLAIN, tile=35, overlap=0, output=tmp_path / "mask.tif", tile_selector=marked
        )
        with rasterio.open(path) as source, rasterio.open(tmp_path / "mask.tif") as mask:
            assert mask.transform == source.transform
            assert mask.crs == source.crs
            assert mask.nodata == result.background == 255
            assert np.array_equal(mask.read(1), result.mask)
            assert len(set(mask.colormap(1).values())) > 200
            assert mask.block_shapes == [(256, 256)]
        assert result.georeference.crs == "EPSG:32633"
        features = segmentation_features(result, tolerance=0)["features"]
        inside = np.concatenate([np.array(feature["geometry"]["coordinates"][0]) for feature in features])
        corners = place.to_map(np.array([[0, 0], [90, 0], [90, 35], [0, 35]]))
        assert (inside >= corners.min(axis=0) - 1e-6).all() and (inside <= corners.max(axis=0) + 1e-6).all()


class TestPicture:
    def test_of_both_kinds(self):
        image = picture(40, 50)
        for result in (
            detection(),
            detection(number=0),
            segment_tiled(pixel_segmenter(), image, PLAIN, tile=32),
        ):
            drawn = picture_of(result, image)
            assert isinstance(drawn, PIL.Image.Image)
            assert drawn.width > 50
            assert drawn.height >= 40
        plain = segment_tiled(pixel_segmenter(), image, PLAIN, tile=32, tile_selector=np.zeros((2, 2)))
        assert np.array_equal(np.asarray(picture_of(plain, image))[:40, :50], image)

    def test_image_of_another_size(self):
        with pytest.raises(ValueError, match="has 30x50 pixels, and the result is of an image of 40x50"):
            picture_of(detection(), picture(30, 50))
