"""Where images lie on the map."""

import numpy as np
import PIL.Image
import pytest
import tifffile

from tests.helpers.rasters import KEYS, write_geotiff
from vit_hf import open_image
from vit_hf.readers.georeference import read_georeference


PIXELS = np.random.default_rng(0).integers(0, 255, (40, 60, 3), np.uint8)
NORTH_UP = (0.5, 0.0, 400000.0, 0.0, -0.5, 5500000.0)
ROTATED = (0.4, 0.3, 400000.0, 0.3, -0.4, 5500000.0)


class TestGeotiff:
    @pytest.mark.parametrize("transform", [NORTH_UP, ROTATED, (0.5, 0.0, 9.0, 0.0, 0.5, 7.0)])
    def test_transform_and_reference_system(self, tmp_path, transform):
        path = write_geotiff(tmp_path / "image.tif", PIXELS, transform)
        with open_image(path) as source:
            found = read_georeference(source)
        assert found.transform == pytest.approx(transform)
        assert found.crs == "EPSG:32633"

    @pytest.mark.parametrize("transform", [NORTH_UP, ROTATED])
    def test_as_rasterio_reads_it(self, tmp_path, transform):
        rasterio = pytest.importorskip("rasterio")
        for is_point in (False, True):
            path = write_geotiff(tmp_path / "image.tif", PIXELS, transform, is_point=is_point)
            with open_image(path) as source, rasterio.open(path) as raster:
                assert read_georeference(source).transform == pytest.approx(tuple(raster.transform)[:6])
                assert read_georeference(source).crs == raster.crs.to_string()

    def test_points_are_centers(self, tmp_path):
        path = write_geotiff(tmp_path / "image.tif", PIXELS, NORTH_UP, is_point=True)
        with open_image(path) as source:
            transform = read_georeference(source).transform
        assert (transform[2], transform[5]) == (400000.0 - 0.25, 5500000.0 + 0.25)

    def test_image_that_is_shown_turned(self, tmp_path):
        upright = write_geotiff(tmp_path / "stored.tif", PIXELS, NORTH_UP)
        with open_image(upright) as source:
            stored = read_georeference(source)
        for orientation in range(2, 9):
            path = write_geotiff(tmp_path / "image.tif", PIXELS, NORTH_UP, orientation=orientation)
            with open_image(path) as source:
                found = read_georeference(source)
                shown = source.read(0, 0, source.height, source.width)
            # A pixel that is found by its color lies where it did.
            row, column = np.argwhere((shown == PIXELS[11, 29]).all(axis=2))[0]
            place = found.to_map([[column + 0.5, row + 0.5]])
            assert place == pytest.approx(stored.to_map([[29.5, 11.5]]))

    def test_transform_of_a_line(self, tmp_path):
        path = write_geotiff(tmp_path / "image.tif", PIXELS, (1.0, 2.0, 0.0, 2.0, 4.0, 0.0))
        with open_image(path) as source, pytest.raises(ValueError, match="to a line or a point"):
            read_georeference(source)

    def test_none(self, tmp_path):
        tifffile.imwrite(tmp_path / "image.tif", PIXELS)
        for image in (tmp_path / "image.tif", PIXELS):
            with open_image(image) as source:
                assert read_georeference(source) is None

    def test_reference_system_without_a_code(self, tmp_path):
        keys = list(KEYS)
        keys[-1] = 32767
        path = write_geotiff(tmp_path / "image.tif", PIXELS, NORTH_UP, keys=keys)
        with open_image(path) as source:
            assert read_georeference(source).crs is None


class TestWorldFile:
    @pytest.mark.parametrize(("name", "world"), [("a.png", "a.pgw"), ("a.png", "a.wld"), ("a.jpg", "a.jgw")])
    def test_places_are_centers(self, tmp_path, name, world):
        PIL.Image.fromarray(PIXELS).save(tmp_path / name)
        (tmp_path / world).write_text("2\n0\n0\n-2\n101\n499\n")
        with open_image(tmp_path / name) as source:
            assert read_georeference(source).transform == (2, 0, 100, 0, -2, 500)

    def test_no_world_file(self, tmp_path):
        PIL.Image.fromarray(PIXELS).save(tmp_path / "a.png")
        (tmp_path / "a.pgw").write_text("1 2 3")
        with (
            open_image(tmp_path / "a.png") as source,
            pytest.raises(ValueError, match=r"a\.pgw.*six numbers"),
        ):
            read_georeference(source)
